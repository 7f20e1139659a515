// The weights of a row as a function of the gap to its anchor: what all paths share.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/table.h"

namespace pfgm {

/// ln 2²⁴: a charge whose weight is below 2⁻²⁴/M of the largest is left out, so all that is left out is below
/// 2⁻²⁴.
constexpr double kNegligible = 16.635532333438686;

/// The weight function of one row: ℓ_j − ℓ_a as a function of the gap ‖ρ_j‖² − ‖ρ_a‖² (and the log q).
struct WeightFunction {
  double power;    // p = (N + D)/2
  double per_gap;  // 1/d²_a, or 1/(2σ²) where D = ∞
  double total;    // N + D, or 0 where D = ∞
  double radius2;  // r²
  double anchor2;  // ‖ρ_a‖²
  bool gaussian;   // D = ∞

  WeightFunction(double dim, double aug_dim, double r, double anchor_squares)
      : power(0.5 * (dim + aug_dim)),
        total(dim + aug_dim),
        radius2(r * r),
        anchor2(anchor_squares),
        gaussian(std::isinf(aug_dim)) {
    per_gap = gaussian ? 0.5 / radius2 : 1.0 / (anchor2 + radius2);
    if (gaussian) total = 0;
  }
  double log_weight(double gap) const {
    return gaussian ? -gap * per_gap : -power * std::log1p(gap * per_gap);
  }
  /// c_j = (N + D)/d²_j, or 1/σ².
  double rate(double gap) const { return gaussian ? 1.0 / radius2 : total / (anchor2 + radius2 + gap); }
  /// The gap at which the log-weight has fallen by `fall`.
  double gap_of(double fall) const { return gaussian ? fall / per_gap : std::expm1(fall / power) / per_gap; }
  /// ℓ_a of the relative log-sum-exp: log (1 + ‖ρ_a‖²/r²)^(−p), or −‖ρ_a‖²/(2σ²).
  double anchor_log_weight() const {
    return gaussian ? -anchor2 * per_gap : -power * std::log1p(anchor2 / radius2);
  }
};

/// How far gap·per_gap goes where a charge may carry weight (kernels/weights.inl).
inline LogRange log_range(const WeightFunction& f, double count, bool weighted) {
  const double fall = kNegligible + std::log(count);
  if (f.gaussian || weighted || f.power * std::log1p(5.0 / 4) <= fall) return LogRange::kAny;
  return f.power * std::log1p(1.0 / 32) > fall ? LogRange::kShort : LogRange::kMiddle;
}

/// As the kernels take it; weights below `cut` become zero. `weighted`: by charge weights q.
inline FloatWeightFunction in_float(const WeightFunction& f, double cut, double count, bool weighted) {
  return {static_cast<float>(f.power),
          static_cast<float>(f.per_gap),
          f.gaussian,
          static_cast<float>(f.total),
          static_cast<float>(f.anchor2 + f.radius2),
          static_cast<float>(f.radius2),
          static_cast<float>(cut),
          log_range(f, count, weighted)};
}

}  // namespace pfgm
