// The second half of the direct way, of the floats' way and of the bytes' score: kernels/weights, difference.
#include "differences.h"
#include "kernels/finish.cuh"
#include "kernels/weighted_difference.cuh"

namespace pfgm {

template <class T>
Differences<T> take_differences(const FieldCall& call, Arena& arena, bool sums) {
  const int64_t B = call.batch, M = call.count, N = call.dim;
  Differences<T> result{};
  result.state = arena.take<RowState>(B);
  result.parts = static_cast<int>(row_parts(B, M));
  result.part = arena.take<RowPart>(B * result.parts);
  result.largest = call.log_weights ? arena.take<double>(B * result.parts) : nullptr;
  if (!sums) return result;
  const bool score = call.op == FieldOp::kScore;
  result.sets = score ? 2 : 1;
  result.splits =
      score ? weighted_difference_splits<T, 2>(B, M, N) : weighted_difference_splits<T, 1>(B, M, N);
  result.weights = arena.take<T>(B * M);
  result.rates = score ? arena.take<T>(B * M) : nullptr;
  result.partial = arena.take<T>(result.splits * result.sets * B * N);
  return result;
}

template <class T, class C>
void finish_by_differences(const FieldCall& call, WeightCall<T, C> weights, const Differences<T>& memory) {
  const int64_t B = weights.batch, M = weights.count, N = weights.dim;
  const bool score = call.op == FieldOp::kScore;
  weights.weights = memory.weights;
  weights.rates = memory.rates;
  weights.state = memory.state;
  weights.part = memory.part;
  weights.largest = memory.largest;
  weights.lse = call.lse;
  weights.rate = static_cast<T*>(call.rate);
  weights.trace = static_cast<T*>(call.trace);
  if (score) launch_weights<Coefficients::kScore>(weights, call.stream);
  else if (call.op == FieldOp::kSecondMoment)
    launch_weights<Coefficients::kSecondMoment>(weights, call.stream);
  else launch_weights<Coefficients::kWeights>(weights, call.stream);
  if (memory.sets == 0) return;

  const WeightedDifferenceCall<T, C> difference{{weights.weights, weights.rates},
                                                weights.charges,
                                                weights.state,
                                                memory.partial,
                                                B,
                                                M,
                                                N,
                                                memory.splits,
                                                weights.divisor,
                                                weights.offset,
                                                call.log_weights != nullptr};
  if (score) launch_weighted_difference<2>(difference, call.stream);
  else launch_weighted_difference<1>(difference, call.stream);
  launch_finish(FinishCall<T, C>{call.op, weights.x, weights.r, static_cast<const T*>(call.r_next),
                                 weights.charges, weights.state, memory.partial, B, N, memory.splits,
                                 memory.sets, weights.divisor, weights.offset, call.log_weights != nullptr,
                                 static_cast<T*>(call.out), static_cast<T*>(call.gradient)},
                call.stream);
}

template Differences<float> take_differences(const FieldCall&, Arena&, bool);
template Differences<double> take_differences(const FieldCall&, Arena&, bool);
template void finish_by_differences(const FieldCall&, WeightCall<float, float>, const Differences<float>&);
template void finish_by_differences(const FieldCall&, WeightCall<float, uint8_t>, const Differences<float>&);
template void finish_by_differences(const FieldCall&, WeightCall<double, double>, const Differences<double>&);
template void finish_by_differences(const FieldCall&, WeightCall<double, uint8_t>,
                                    const Differences<double>&);

}  // namespace pfgm
