// The second half of the direct way, of the floats' way and of the bytes' score: kernels/weights, combine.
#include "differences.h"
#include "kernels/combine.cuh"

namespace pfgm {

template <class T, class C>
void finish_by_differences(const FieldCall& call, WeightCall<T, C> weights) {
  const int64_t B = weights.batch, M = weights.count, N = weights.dim;
  const bool sums = call.wanted != Wanted::kLogDensity, score = call.wanted == Wanted::kScore;
  weights.weights = sums ? call.take<T>(B * M) : nullptr;
  weights.rates = score ? call.take<T>(B * M) : nullptr;
  weights.state = call.take<RowState>(B);
  weights.lse = call.lse;
  weights.rate = static_cast<T*>(call.rate);
  weights.trace = static_cast<T*>(call.trace);
  if (score) launch_weights<Coefficients::kScore>(weights, call.stream);
  else if (call.wanted == Wanted::kMoment) launch_weights<Coefficients::kMoment>(weights, call.stream);
  else launch_weights<Coefficients::kWeights>(weights, call.stream);
  if (!sums) return;

  const int sets = score ? 2 : 1;
  const int64_t parts = combine_splits(B, M, N, score ? CombineShared<T, 2>::kRows : CombineShared<T, 1>::kRows);
  const CombineCall<T, C> combine{{weights.weights, weights.rates}, weights.charges, weights.state,
                                  call.take<T>(parts * sets * B * N), B, M, N, parts, weights.divisor, weights.offset};
  if (score) launch_combine<2>(combine, call.stream);
  else launch_combine<1>(combine, call.stream);
  launch_finish(FinishCall<T, C>{call.wanted, weights.x, weights.r, static_cast<const T*>(call.r_next), weights.charges, weights.state,
                                 combine.partial, B, N, parts, sets, weights.divisor, weights.offset,
                                 static_cast<T*>(call.vector), static_cast<T*>(call.gradient)},
                call.stream);
}

template void finish_by_differences(const FieldCall&, WeightCall<float, float>);
template void finish_by_differences(const FieldCall&, WeightCall<float, uint8_t>);
template void finish_by_differences(const FieldCall&, WeightCall<double, double>);
template void finish_by_differences(const FieldCall&, WeightCall<double, uint8_t>);

}  // namespace pfgm
