// The path that serves every call: direct differences, weights, sum of differences (kernels/direct_distances,
// weights, difference).
#include "differences.h"
#include "field.h"
#include "kernels/direct_distances.cuh"

namespace pfgm {
namespace {

template <class T, class C>
void run(const FieldCall& call, Arena& arena) {
  WeightCall<T, C> weights = weights_of<T, C>(call);
  const int64_t B = weights.batch, M = weights.count, N = weights.dim;
  weights.splits = distance_splits(B, M, N);
  DistanceCall<T, C> distances{};
  distances.x = weights.x;
  distances.charges = weights.charges;
  distances.gaps = arena.take<double>(weights.splits * B * M);
  distances.least = arena.take<double>(B * groups_of(M));
  distances.arrived = arena.take<int>(B);
  distances.batch = B;
  distances.count = M;
  distances.dim = N;
  distances.splits = weights.splits;
  distances.divisor = weights.divisor;
  distances.offset = weights.offset;
  const bool moment = call.op == FieldOp::kSecondMoment;
  double* projection = moment ? arena.take<double>(weights.splits * B * M) : nullptr;
  const auto differences = take_differences<T>(call, arena, call.op != FieldOp::kLogDensity);
  if (arena.measures()) return;

  launch_distances<false>(distances, call.stream);
  if (weights.splits > 1)
    launch_merge_gaps({distances.gaps, distances.least, B, M, weights.splits}, call.stream);
  weights.gaps = distances.gaps;
  weights.least = distances.least;
  weights.arrived = distances.arrived;
  if (moment) {
    distances.u = static_cast<const T*>(call.u);
    distances.gaps = projection;
    launch_distances<true>(distances, call.stream);
    weights.projection = projection;
  }
  finish_by_differences(call, weights, differences);
}

}  // namespace

void run_direct(const FieldCall& call, Arena& arena) {
  if (call.is_double) call.bytes ? run<double, uint8_t>(call, arena) : run<double, double>(call, arena);
  else call.bytes ? run<float, uint8_t>(call, arena) : run<float, float>(call, arena);
}

}  // namespace pfgm
