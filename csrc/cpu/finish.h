// The end of every path: a row's sums become what the operator returns, or NaN.
#pragma once

#include <cmath>
#include <limits>

#include "field.h"

namespace pfgm {

/// The answer of one row: `shift` = Σ w (y_j − y_a), `pull` = Σ w c (y_j − y_a), and x, y_a: everything is
/// made of them.
template <class T, class S>
void finish_row(const FieldCall& call, int64_t row, const T* anchor, const S* shift, const S* pull,
                double rate, double trace, double lse) {
  const int64_t N = call.dim;
  const T* x = static_cast<const T*>(call.x) + row * N;
  if (call.lse) call.lse[row] = lse;
  if (call.op == FieldOp::kLogDensity) return;
  T* out = static_cast<T*>(call.out) + row * N;
  if (call.op == FieldOp::kPosteriorMean) {
    for (int64_t k = 0; k < N; ++k) out[k] = static_cast<T>(anchor[k] + shift[k]);
    return;
  }
  if (call.op == FieldOp::kFieldStep) {
    const double r = static_cast<const T*>(call.r)[row], next = static_cast<const T*>(call.r_next)[row];
    const T factor = static_cast<T>((next - r) / r);
    for (int64_t k = 0; k < N; ++k) out[k] = static_cast<T>(x[k] + factor * ((x[k] - anchor[k]) - shift[k]));
    return;
  }
  for (int64_t k = 0; k < N; ++k) out[k] = static_cast<T>((x[k] - anchor[k]) - shift[k]);
  if (call.op != FieldOp::kScore) return;
  T* gradient = static_cast<T*>(call.gradient) + row * N;
  const S scale = static_cast<S>(rate);
  for (int64_t k = 0; k < N; ++k) gradient[k] = static_cast<T>(scale * (anchor[k] - x[k]) + pull[k]);
  static_cast<T*>(call.rate)[row] = static_cast<T>(rate);
  static_cast<T*>(call.trace)[row] = static_cast<T>(trace);
}

/// A row that cannot be answered (x not finite, r ≤ 0 or NaN): NaN everywhere.
template <class T>
void spoil_row(const FieldCall& call, int64_t row) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  if (call.lse) call.lse[row] = nan;
  for (void* rows : {call.rate, call.trace})
    if (rows) static_cast<T*>(rows)[row] = nan;
  for (void* vectors : {call.out, call.gradient})
    if (vectors)
      for (int64_t k = 0; k < call.dim; ++k) static_cast<T*>(vectors)[row * call.dim + k] = nan;
}

template <class T>
bool row_is_good(const FieldCall& call, int64_t row) {
  const T r = static_cast<const T*>(call.r)[row];
  if (!(r > 0) || !std::isfinite(r)) return false;
  const T* x = static_cast<const T*>(call.x) + row * call.dim;
  T probe = 0;
  for (int64_t k = 0; k < call.dim; ++k) probe += x[k] * T(0);  // NaN where anything is not finite
  return probe == 0;
}

}  // namespace pfgm
