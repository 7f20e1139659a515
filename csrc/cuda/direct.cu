// The way that serves every call: direct differences, weights, sum of differences (kernels/distances, weights, combine).
#include "differences.h"
#include "field.h"
#include "kernels/distances.cuh"

namespace pfgm {
namespace {

template <class T, class C>
void run(const FieldCall& call) {
  WeightCall<T, C> weights = weights_of<T, C>(call);
  const int64_t B = weights.batch, M = weights.count, N = weights.dim;
  weights.splits = distance_splits(B, M, N);
  DistanceCall<T, C> distances{weights.x, weights.charges, nullptr, call.take<double>(weights.splits * B * M), B, M, N, weights.splits,
                               weights.divisor, weights.offset};
  launch_distances<false>(distances, call.stream);
  weights.gaps = distances.gaps;
  if (call.wanted == Wanted::kMoment) {
    distances.u = static_cast<const T*>(call.u);
    distances.gaps = call.take<double>(weights.splits * B * M);
    launch_distances<true>(distances, call.stream);
    weights.projection = distances.gaps;
  }
  finish_by_differences(call, weights);
}

}  // namespace

void run_direct(const FieldCall& call) {
  if (call.is_double) call.bytes ? run<double, uint8_t>(call) : run<double, double>(call);
  else call.bytes ? run<float, uint8_t>(call) : run<float, float>(call);
}

}  // namespace pfgm
