// The map from gaps to log-weights, and what kernels need beside it: a charge's distance by direct
// differences, the cut below which a weight is 0, an operator's result at one element.
#pragma once

#include "../device.h"
#include "../field.h"

namespace pfgm {

template <class T>
__device__ __forceinline__ T log_one_plus(T value) {
  if constexpr (sizeof(T) == 4) return log1pf(value);
  else return log1p(value);
}
template <class T>
__device__ __forceinline__ T exponential(T value) {
  if constexpr (sizeof(T) == 4) return expf(value);
  else return exp(value);
}

/// log (1 + ...)^(−p), D < ∞, or the Gaussian's exponent, of a gap at squared distance `base`; T so that no
/// bit is lost near 0.
template <class T>
struct WeightFunction {
  double inverse_base, power;
  bool gaussian;
  __device__ WeightFunction(double base, double r, double total_dim) {
    gaussian = isinf(total_dim);
    power = gaussian ? 1.0 : 0.5 * total_dim;
    inverse_base = gaussian ? 0.5 / (r * r) : 1.0 / base;
  }
  /// Of `ratio` = gap · inverse_base.
  template <bool kGaussian>
  __device__ __forceinline__ T log_weight_of(T ratio) const {
    return -static_cast<T>(power) * (kGaussian ? ratio : log_one_plus(ratio));
  }
  __device__ __forceinline__ T log_weight(double gap) const {
    const T ratio = static_cast<T>(gap * inverse_base);
    return gaussian ? log_weight_of<true>(ratio) : log_weight_of<false>(ratio);
  }
  /// A gap whose log-weight is surely below `log_weight` < 0.
  __device__ __forceinline__ double gap_of(double log_weight) const {
    return (gaussian ? -log_weight : expm1(-log_weight / power)) / inverse_base * (1 + 1e-6);
  }
};

/// log of (1 + ‖ρ‖²/r²)^(−p), or of exp(−‖ρ‖²/(2r²)) where D is infinite.
__device__ __forceinline__ double anchor_log_weight(double squares, double r, double total_dim) {
  return isinf(total_dim) ? -squares / (2 * r * r) : -0.5 * total_dim * log1p(squares / (r * r));
}

/// An operator's result at one element. `sum` is Σ w (y − y_a)/Σ w.
template <class T>
__device__ __forceinline__ T field_output(FieldOp op, T x, T y, T sum, T r, T r_next) {
  switch (op) {
    case FieldOp::kPosteriorMean: return y + sum;
    case FieldOp::kFieldStep: return x + (r_next - r) / r * ((x - y) - sum);
    default: return (x - y) - sum;
  }
}

/// One thread's share of ‖y − x‖², of `threads` that each have a `rank`. Bytes are read 16 at a time.
template <class T, class C>
__device__ __forceinline__ double distance_share(const C* charge, const T* x, int dim,
                                                 const Values<T>& values, int rank, int threads) {
  SquaredDistance<T> sum;
  if constexpr (sizeof(C) == 1) {
#pragma unroll 2
    for (int k = 16 * rank; k < dim; k += 16 * threads) {
      const auto bytes = load<uint8_t, 16>(charge + k);
#pragma unroll
      for (int quarter = 0; quarter < 4; ++quarter) {
        constexpr int kLoad = 16 / sizeof(T) < 4 ? 16 / sizeof(T) : 4;
#pragma unroll
        for (int i = 0; i < 4; i += kLoad) {
          const auto here = load<T, kLoad>(x + k + 4 * quarter + i);
#pragma unroll
          for (int c = 0; c < kLoad; ++c) sum.add(values(bytes.at[4 * quarter + i + c]), here.at[c]);
        }
      }
    }
  } else {
#pragma unroll 4
    for (int k = rank; k < dim; k += threads) sum.add(charge[k], x[k]);
  }
  return sum.value();
}

/// ‖y − x‖² by direct differences, by all threads of a block.
template <int kThreads, class T, class C>
__device__ __forceinline__ double block_distance(const C* charge, const T* x, int64_t dim,
                                                 const Values<T>& values, double* slots) {
  const double mine =
      distance_share(charge, x, static_cast<int>(dim), values, static_cast<int>(threadIdx.x), kThreads);
  return block_reduce<kThreads>(mine, Sum{}, slots);
}

template <class T>
__device__ __forceinline__ T weight_cut(int64_t count) {
  return -static_cast<T>((sizeof(T) == 4 ? 18.0 : 40.0) + log(static_cast<double>(count)));
}

__device__ __forceinline__ double integer_power(double base, int64_t exponent) {
  double result = 1;
  for (int64_t i = 0; i < exponent; ++i) result *= base;
  return result;
}

/// A number in [0, 1) that depends on nothing but a query and a charge.
__device__ __forceinline__ float dither(int64_t row, int j) {
  uint32_t hash =
      static_cast<uint32_t>(j) * 0x9e3779b9u ^ (static_cast<uint32_t>(row) + 0x7f4a7c15u) * 0x85ebca6bu;
  hash = (hash ^ hash >> 16) * 0x7feb352du;
  hash = (hash ^ hash >> 15) * 0x846ca68bu;
  return static_cast<float>((hash ^ hash >> 16) >> 8) * 0x1p-24f;
}

}  // namespace pfgm
