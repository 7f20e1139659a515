// PFGM's field held to what charges in a ball allow: reference.bounded, from a row's sums, for every compiled
// backend.
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#if defined(__CUDACC__) || defined(__device__)  // nvcc, or the emulator of the device
#define PFGM_ANYWHERE __device__ __forceinline__
#else
#define PFGM_ANYWHERE inline
#endif

namespace pfgm {

/// The radius that a step's mean is held to, with the slack that keeps rounding away from fields inside
/// (reference.SLACK); 0: none is known.
inline double ball_radius(std::optional<double> radius) { return radius.value_or(0.0) * (1 + 0x1p-10); }

/// Sums over a row's elements; w is the network's v at z'.
template <class T>
struct StepSums {
  T vv, xx, xv, ww, xw, vw;
};

/// base x + along v.
template <class T>
struct Drift {
  T base, along;
};

/// The square that ‖m‖² is held to, for a row of Σ x² = xx (reference.ball).
template <class T>
PFGM_ANYWHERE T ball_square(T xx, T radius) {
  return radius * radius + T(0x1p-17) * xx;
}

/// dx/dz, which the network says is scale · v at z, with the mean of the charges that it implies held to the
/// ball ‖m‖² ≤ square.
template <class T>
PFGM_ANYWHERE Drift<T> bounded(T xx, T xv, T vv, T scale, T z, T square) {
  const T tiny = std::numeric_limits<T>::min();
  const T root = sqrt(vv), length = root < tiny ? tiny : root;
  const T along = xv / length, rest = xx - along * along, miss = rest < T(0) ? T(0) : rest;
  T offset = z * scale * length - along;
  if (!(miss + offset * offset > square)) return {T(0), scale};  // inside, or NaN
  const T reach = miss < square ? sqrt(square - miss) : T(0);
  offset = offset > reach ? reach : offset < -reach ? -reach : offset;
  const T away = miss + offset * offset, shrink = away > square ? sqrt(square / away) : T(1);
  return {(T(1) - shrink) / z, shrink * (along + offset) / (length * z)};
}

/// What a step adds to x: base x + first v + second w.
template <class T>
struct Factors {
  T first, second, base;
};

/// Euler's step of h from z.
template <class T>
PFGM_ANYWHERE Factors<T> euler_factors(const StepSums<T>& sums, T scale, T z, T h, T radius) {
  if (!(radius > 0)) return {h * scale, T(0), T(0)};
  const T square = ball_square(sums.xx, radius);
  const Drift<T> slope = bounded(sums.xx, sums.xv, sums.vv, scale, z, square);
  return {h * slope.along, T(0), h * slope.base};
}

/// Heun's step of h from z to z' = z + h: w and scale_next belong to Euler's prediction.
template <class T>
PFGM_ANYWHERE Factors<T> heun_factors(const StepSums<T>& sums, T scale, T scale_next, T z, T z_next, T h,
                                      T radius) {
  const T half = T(0.5) * h;
  if (!(radius > 0)) return {half * scale, half * scale_next, T(0)};
  const T square = ball_square(sums.xx, radius);
  const Drift<T> slope = bounded(sums.xx, sums.xv, sums.vv, scale, z, square);
  const T of_x = T(1) + h * slope.base, of_v = h * slope.along;  // the prediction
  const T xx = of_x * of_x * sums.xx + T(2) * of_x * of_v * sums.xv + of_v * of_v * sums.vv;
  const Drift<T> next =
      bounded(xx < T(0) ? T(0) : xx, of_x * sums.xw + of_v * sums.vw, sums.ww, scale_next, z_next, square);
  return {half * (slope.along + next.base * of_v), half * next.along, half * (slope.base + next.base * of_x)};
}

}  // namespace pfgm
