// What all ways of the field share: weights as functions of gaps, and how a row's sums become what the call wants.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "field.h"

namespace pfgm {

/// ln 2²⁴: a charge whose weight is below 2⁻²⁴/M of the largest is left out, so all that is left out is below 2⁻²⁴.
constexpr double kNegligible = 16.635532333438686;

/// The law of the weights of one row: ℓ_j − ℓ_a as a function of the gap ‖ρ_j‖² − ‖ρ_a‖² (and the log q).
struct Law {
  double power;     // p = (N + D)/2
  double per_gap;   // 1/d²_a, or 1/(2σ²) where D = ∞
  double total;     // N + D, or 0 where D = ∞
  double radius2;   // r²
  double anchor2;   // ‖ρ_a‖²
  bool gaussian;    // D = ∞

  Law(double dim, double aug_dim, double r, double anchor_squares)
      : power(0.5 * (dim + aug_dim)), total(dim + aug_dim), radius2(r * r), anchor2(anchor_squares), gaussian(std::isinf(aug_dim)) {
    per_gap = gaussian ? 0.5 / radius2 : 1.0 / (anchor2 + radius2);
    if (gaussian) total = 0;
  }
  double log_weight(double gap) const { return gaussian ? -gap * per_gap : -power * std::log1p(gap * per_gap); }
  /// c_j = (N + D)/d²_j, or 1/σ².
  double rate(double gap) const { return gaussian ? 1.0 / radius2 : total / (anchor2 + radius2 + gap); }
  /// The gap at which the log-weight has fallen by `fall`.
  double gap_of(double fall) const { return gaussian ? fall / per_gap : std::expm1(fall / power) / per_gap; }
  /// ℓ_a of the relative log-sum-exp: log (1 + ‖ρ_a‖²/r²)^(−p), or −‖ρ_a‖²/(2σ²).
  double relative() const { return gaussian ? -anchor2 * per_gap : -power * std::log1p(anchor2 / radius2); }
};

/// The answer of one row: `shift` = Σ w (y_j − y_a), `pull` = Σ w c (y_j − y_a), and x, y_a: everything is made of them.
template <class T, class S>
void finish_row(const FieldCall& call, int64_t row, const Law& law, const T* anchor, const S* shift, const S* pull, double rate,
                double trace, double lse) {
  const int64_t N = call.dim;
  const T* x = static_cast<const T*>(call.x) + row * N;
  if (call.lse) call.lse[row] = lse;
  if (call.wanted == Wanted::kLogDensity) return;
  T* out = static_cast<T*>(call.vector) + row * N;
  if (call.wanted == Wanted::kMean) {
    for (int64_t k = 0; k < N; ++k) out[k] = static_cast<T>(anchor[k] + shift[k]);
    return;
  }
  if (call.wanted == Wanted::kStep) {
    const double r = static_cast<const T*>(call.r)[row], next = static_cast<const T*>(call.r_next)[row];
    const T factor = static_cast<T>((next - r) / r);
    for (int64_t k = 0; k < N; ++k) out[k] = static_cast<T>(x[k] + factor * ((x[k] - anchor[k]) - shift[k]));
    return;
  }
  for (int64_t k = 0; k < N; ++k) out[k] = static_cast<T>((x[k] - anchor[k]) - shift[k]);
  if (call.wanted != Wanted::kScore) return;
  T* gradient = static_cast<T*>(call.gradient) + row * N;
  const S scale = static_cast<S>(rate);
  for (int64_t k = 0; k < N; ++k) gradient[k] = static_cast<T>(scale * (anchor[k] - x[k]) + pull[k]);
  static_cast<T*>(call.rate)[row] = static_cast<T>(rate);
  static_cast<T*>(call.trace)[row] = static_cast<T>(trace);
  (void)law;
}

/// A row that cannot be answered (x not finite, r ≤ 0 or NaN): NaN everywhere.
template <class T>
void spoil_row(const FieldCall& call, int64_t row) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  if (call.lse) call.lse[row] = nan;
  for (void* rows : {call.rate, call.trace})
    if (rows) static_cast<T*>(rows)[row] = nan;
  for (void* vectors : {call.vector, call.gradient})
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
