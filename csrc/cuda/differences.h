// From gaps to a field operator's outputs by differences around the anchor (kernels/weights, combine): the second half of every way
// that does not pack its weights.
#pragma once

#include "field.h"
#include "kernels/combine.cuh"
#include "kernels/weights.cuh"

namespace pfgm {

/// `weights` says what the gaps are; its outputs are set here.
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

/// What every WeightCall says of the query and the charges.
template <class T, class C>
WeightCall<T, C> weights_of(const FieldCall& call) {
  WeightCall<T, C> weights{};
  weights.log_weights = call.log_weights;
  weights.x = static_cast<const T*>(call.x);
  weights.r = static_cast<const T*>(call.r);
  weights.charges = static_cast<const C*>(call.charges);
  weights.batch = call.batch;
  weights.count = call.charges_count;
  weights.dim = call.dim;
  weights.splits = 1;
  weights.divisor = static_cast<T>(call.divisor);
  weights.offset = static_cast<T>(call.offset);
  weights.aug_dim = call.aug_dim;
  weights.power = call.power;
  weights.gap_unit = 1;
  return weights;
}

}  // namespace pfgm
