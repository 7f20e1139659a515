// The way that serves every call: direct differences, weights, sum of differences (kernels/distances, weights, combine).
#include "field.h"
#include "kernels/combine.cuh"
#include "kernels/distances.cuh"
#include "kernels/weights.cuh"

namespace pfgm {
namespace {

template <class T, class C>
void run(const FieldCall& call) {
  const auto x = static_cast<const T*>(call.x);
  const auto r = static_cast<const T*>(call.r);
  const auto charges = static_cast<const C*>(call.charges);
  const T divisor = static_cast<T>(call.divisor), offset = static_cast<T>(call.offset);
  const int64_t B = call.batch, M = call.charges_count, N = call.dim;
  const bool score = call.wanted == Wanted::kScore, moment = call.wanted == Wanted::kMoment;

  const int64_t splits = distance_splits(B, M, N);
  DistanceCall<T, C> distances{x, charges, nullptr, call.take<double>(splits * B * M), B, M, N, splits, divisor, offset};
  launch_distances<false>(distances, call.stream);
  double* projection = nullptr;
  if (moment) {
    DistanceCall<T, C> project = distances;
    project.u = static_cast<const T*>(call.u);
    project.gaps = projection = call.take<double>(splits * B * M);
    launch_distances<true>(project, call.stream);
  }

  const bool sums = call.wanted != Wanted::kLogDensity;
  WeightCall<T, C> weights{distances.gaps, projection, call.log_weights, x, r, charges, B, M, N, splits, divisor, offset,
                           call.aug_dim, call.power, /*relative=*/false, /*gap_unit=*/1.0,
                           sums ? call.take<T>(B * M) : nullptr, score ? call.take<T>(B * M) : nullptr,
                           call.take<RowState>(B), call.lse, static_cast<T*>(call.rate), static_cast<T*>(call.trace),
                           Packing{}, nullptr};
  if (score) launch_weights<Coefficients::kScore>(weights, call.stream);
  else if (moment) launch_weights<Coefficients::kMoment>(weights, call.stream);
  else launch_weights<Coefficients::kWeights>(weights, call.stream);
  if (!sums) return;

  const int sets = score ? 2 : 1;
  const int64_t parts = combine_splits(B, M, N, score ? CombineShared<T, 2>::kRows : CombineShared<T, 1>::kRows);
  const CombineCall<T, C> combine{{weights.weights, weights.rates}, charges, weights.state, call.take<T>(parts * sets * B * N),
                                  B, M, N, parts, divisor, offset};
  if (score) launch_combine<2>(combine, call.stream);
  else launch_combine<1>(combine, call.stream);
  launch_finish(FinishCall<T, C>{call.wanted, x, r, static_cast<const T*>(call.r_next), charges, weights.state, combine.partial,
                                 B, N, parts, sets, divisor, offset, static_cast<T*>(call.vector),
                                 static_cast<T*>(call.gradient)},
                call.stream);
}

}  // namespace

void run_direct(const FieldCall& call) {
  if (call.is_double) call.bytes ? run<double, uint8_t>(call) : run<double, double>(call);
  else call.bytes ? run<float, uint8_t>(call) : run<float, float>(call);
}

}  // namespace pfgm
