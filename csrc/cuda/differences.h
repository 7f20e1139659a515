// From gaps to a field operator's outputs by differences around the anchor: the second half of every way that
// does not pack its weights.
#pragma once

#include "field.h"
#include "kernels/weights.cuh"

namespace pfgm {

/// What every WeightCall says of the query and the charges.
template <class T, class C>
WeightCall<T, C> weights_of(const FieldCall& call) {
  WeightCall<T, C> weights{};
  weights.log_weights = call.log_weights;
  weights.x = static_cast<const T*>(call.x);
  weights.r = static_cast<const T*>(call.r);
  weights.charges = static_cast<const C*>(call.charges);
  weights.batch = call.batch;
  weights.count = call.count;
  weights.dim = call.dim;
  weights.splits = 1;
  weights.parts = static_cast<int>(row_parts(call.batch, call.count));
  weights.divisor = static_cast<T>(call.divisor);
  weights.offset = static_cast<T>(call.offset);
  weights.aug_dim = call.aug_dim;
  weights.power = call.power;
  weights.gap_unit = 1;
  return weights;
}

/// What the second half needs of the arena; without sums (no output but lse) only the rows' state.
template <class T>
struct Differences {
  RowState* state;       // (batch)
  int parts;             // blocks a row
  RowPart* part;         // (batch, parts)
  double* largest;       // (batch, parts), where charges have weights
  int64_t sets, splits;  // 1, or 2 sets of coefficients (score); splits of the charges
  T* weights;            // (batch, count)
  T* rates;              // (batch, count): score
  T* partial;            // (splits, sets, batch, dim)
};
template <class T>
Differences<T> take_differences(const FieldCall& call, Arena& arena, bool sums);

/// Weights, sums and outputs (differences.cu); `weights` says what the gaps are, its outputs are set there.
template <class T, class C>
void finish_by_differences(const FieldCall& call, WeightCall<T, C> weights, const Differences<T>& memory);

}  // namespace pfgm
