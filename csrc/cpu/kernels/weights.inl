// What is done with one row of u, and with single charges. Rows of u are padded to whole tiles; the padding
// is never looked at.

/// The first j with u[j] ≤ value, or 0.
inline int64_t first_at_most(const float* u, float value, int64_t count) {
  int64_t j = 0;
  for (; j + kWidth <= count; j += kWidth) {
    if (any_of(load(u + j) <= all(value))) break;
  }
  for (; j < count; ++j)
    if (u[j] <= value) return j;
  return 0;
}

int64_t least(const float* u, int64_t count) {
  Vector best = all(std::numeric_limits<float>::infinity());
  int64_t j = 0;
  for (; j + kWidth <= count; j += kWidth) best = lesser(load(u + j), best);
  float value = std::numeric_limits<float>::infinity();
  for (int lane = 0; lane < kWidth; ++lane) value = best[lane] < value ? best[lane] : value;
  for (; j < count; ++j) value = u[j] < value ? u[j] : value;
  return first_at_most(u, value, count);
}

/// Indices j of which `holds` is true (a mask for kWidth of them at a time, n of them wanted), as long as
/// there is room.
template <class Holds>
inline int64_t select_where(int64_t count, int32_t* index, int64_t room, Holds holds) {
  int64_t found = 0;
  for (int64_t j = 0; j < count; j += kWidth) {
    const int64_t n = count - j < kWidth ? count - j : kWidth;
    const Whole mask = holds(j, n);
    if (!any_of(mask)) continue;
    for (int lane = 0; lane < n; ++lane)
      if (mask[lane]) {
        if (found < room) index[found] = static_cast<int32_t>(j + lane);
        ++found;
      }
    if (found > room) return found;
  }
  return found;
}

int64_t select_below(const float* u, const float* roots, float slack, const float* residuals,
                     float residual_slack, float bound, int64_t count, int32_t* index, int64_t room) {
  if (residuals == nullptr)
    return select_where(count, index, room, [&](int64_t j, int64_t n) -> Whole {
      return fma(all(-slack), load_some(roots + j, n), load_some(u + j, n)) <= all(bound);
    });
  return select_where(count, index, room, [&](int64_t j, int64_t n) -> Whole {
    const Vector least = fma(all(-slack), load_some(roots + j, n), load_some(u + j, n));
    return fma(all(-residual_slack), load_some(residuals + j, n), least) <= all(bound);
  });
}

int64_t select_above(const float* weights, float bound, int64_t count, int32_t* index) {
  return select_where(count, index, count,
                      [&](int64_t j, int64_t n) -> Whole { return load_some(weights + j, n) >= all(bound); });
}

constexpr float kShortLog = 1.0f / 32, kMiddleLog = 1.25f, kLog2e = 1.44269504f;

/// log(1 + t) for |t| ≤ kShortLog, by Taylor's series: what is left out is t⁶/7 < 2⁻³² of it.
inline Vector short_log1p(Vector t) {
  Vector p = all(-1.0f / 6);
  p = fma(p, t, all(1.0f / 5));
  p = fma(p, t, all(-1.0f / 4));
  p = fma(p, t, all(1.0f / 3));
  p = fma(p, t, all(-1.0f / 2));
  return fma(p * t, t, t);
}

/// log(1 + t) for t from −kShortLog to kMiddleLog: the polynomial of least relative error, 3.3·10⁻⁸.
inline Vector middle_log1p(Vector t) {
  Vector p = all(-1.924286131e-3f);
  p = fma(p, t, all(1.385820191e-2f));
  p = fma(p, t, all(-4.576577991e-2f));
  p = fma(p, t, all(9.499702603e-2f));
  p = fma(p, t, all(-1.469366401e-1f));
  p = fma(p, t, all(1.949019879e-1f));
  p = fma(p, t, all(-2.492742836e-1f));
  p = fma(p, t, all(3.332910538e-1f));
  p = fma(p, t, all(-5.000001192e-1f));
  return fma(p * t, t, t);
}

/// exp(ℓ_j − ℓ_a), gaps below zero by rounding at most; log_q, at most 0, counts only where gaussian or the
/// range is kAny.
inline Vector weights_of(Vector gap, Vector log_q, const FloatWeightFunction& function) {
  if (function.gaussian) return power_of_two(fma(gap, all(-kLog2e * function.per_gap), log_q * kLog2e));
  const Vector t = gap * function.per_gap, power = all(-kLog2e * function.power);
  if (function.range == LogRange::kShort) return power_of_two(short_log1p(lesser(t, all(kShortLog))) * power);
  if (function.range == LogRange::kMiddle)
    return power_of_two(middle_log1p(lesser(t, all(kMiddleLog))) * power);
  const Vector log = log1p(lesser(greater(t, all(-0.999f)), all(1e30f)));
  return power_of_two(fma(log, power, log_q * kLog2e));
}

inline Vector rates_of(Vector gap, const FloatWeightFunction& function) {
  return function.gaussian ? all(1.0f / function.radius2) : all(function.total) / (gap + function.distance2);
}

WeightSums weigh(float* u, float* pulls, const float* log_q, float anchor,
                 const FloatWeightFunction& function, int64_t count) {
  constexpr int64_t kChunk = 64 * kWidth;  // lanes are added up in float for a chunk, then in double
  WeightSums sums{0, 0, 0};
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t stop = start + kChunk < count ? start + kChunk : count;
    Vector mass{}, rate{}, trace{};
    for (int64_t j = start; j < stop; j += kWidth) {
      const int64_t n = stop - j;
      const bool whole = n >= kWidth;
      const Vector gap =
          (whole ? load(u + j) : load_part(u + j, n, std::numeric_limits<float>::infinity())) - anchor;
      const Vector shift = log_q ? (whole ? load(log_q + j) : load_part(log_q + j, n, 0.0f)) : Vector{};
      Vector weight = weights_of(gap, shift, function);
      if (!whole) {  // lanes beyond the end weigh nothing
        float lanes[kWidth];
        store(lanes, weight);
        weight = load_part(lanes, n, 0.0f);
      }
      weight = weight < function.cut ? Vector{} : weight;
      mass += weight;
      if (pulls) {
        Vector c = rates_of(gap, function);
        if (!whole) {
          float lanes[kWidth];
          store(lanes, c);
          c = load_part(lanes, n, 0.0f);
        }
        const Vector pull = weight * c;
        rate += pull;
        // c ‖ρ‖² = total − r² c, or ‖ρ‖²/σ² where D = ∞
        const Vector whole_squares = whole ? gap + (function.distance2 - function.radius2)
                                           : load_part(reinterpret_cast<const float*>(&gap), n, 0.0f) +
                                                 (function.distance2 - function.radius2);
        trace += function.gaussian ? pull * whole_squares
                                   : fma(all(-function.radius2), pull, weight * function.total);
        whole ? store(pulls + j, pull) : store_part(pulls + j, n, pull);
      }
      whole ? store(u + j, weight) : store_part(u + j, n, weight);
    }
    sums.mass += sum_double(mass);
    sums.rate += sum_double(rate);
    sums.trace += sum_double(trace);
  }
  return sums;
}
