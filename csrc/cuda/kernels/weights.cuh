// From gaps to weights: per query the anchor (nearest charge), log-weights relative to it, unnormalised weights, sums, lse.
//
// With a the anchor and g_j = ‖ρ_j‖² − ‖ρ_a‖² ≥ 0, a log-weight is log q_j − p log1p(g_j/d²_a): d² is never formed and
// then logged. The gaps may be squared distances, or any quantity that differs from them by a constant a row; in the second case
// the anchor's distance is computed here by direct differences.
// Weights below exp(−cut) of the largest, cut = 18 + log M (40 + log M in double), become exactly 0: together less than 2e-8.
//
// Tiling: one block of 512 threads a query, three sweeps over its row (nearest; log-weights; weights).
// Cost: reads `splits` × 8 bytes and writes T a pair, then reads and writes T twice more, from L2; one log1p and one exp a pair.
#pragma once

#include "../device.h"

namespace pfgm {

constexpr int kWeightThreads = 512;

/// What the last kernel needs to know of a query.
struct RowState {
  int64_t anchor;     // the nearest charge
  double total;       // Σ weights, unnormalised; NaN for a query that must give NaN
  double rate_total;  // Σ coefficient: weights · c (score), weights · c^k (ρ·u) (moment)
  int64_t used;       // charges with a weight above 0
};

enum class Coefficients { kWeights, kScore, kMoment };

template <class T, class C>
struct WeightCall {
  const double* gaps;         // (splits, batch, count)
  const double* projection;   // (splits, batch, count): ρ·u, moment
  const double* log_weights;  // (count) or null
  const T* x;                 // (batch, dim)
  const T* r;                 // (batch)
  const C* charges;           // (count, dim)
  int64_t batch, count, dim, splits;
  T divisor, offset;
  double aug_dim;
  int64_t power;
  bool relative;    // gaps are distances up to a constant a row
  double gap_unit;  // a gap's unit in squared distance
  T* weights;       // (batch, count): w, or the moment's coefficient
  T* rates;         // (batch, count): w c; score
  RowState* state;  // (batch)
  double* lse;      // (batch), or null
  T* rate;          // (batch), or null: Σ w c; moment: Σ w c^k (ρ·u)
  T* trace;         // (batch), or null: Σ w c ‖ρ‖²
};

struct WeightShared {
  double slots[kWeightThreads / kWarp];
  double nearest[kWeightThreads / kWarp];
  int64_t where[kWeightThreads / kWarp];
};

struct Nearest {
  double gap;
  int64_t charge;
};

/// The smaller gap; of equal ones the lower index, so that the choice does not depend on the order of threads.
__device__ __forceinline__ Nearest nearer(Nearest a, Nearest b) {
  return b.gap < a.gap || (b.gap == a.gap && b.charge < a.charge) ? b : a;
}

template <int kThreads>
__device__ __forceinline__ Nearest block_nearest(Nearest mine, double* gaps, int64_t* charges) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Nearest other{__shfl_xor_sync(kAllLanes, mine.gap, offset), __shfl_xor_sync(kAllLanes, mine.charge, offset)};
    mine = nearer(mine, other);
  }
  if (threadIdx.x % kWarp == 0) {
    gaps[threadIdx.x / kWarp] = mine.gap;
    charges[threadIdx.x / kWarp] = mine.charge;
  }
  __syncthreads();
  for (int warp = 0; warp < kThreads / kWarp; ++warp) mine = nearer(mine, {gaps[warp], charges[warp]});
  __syncthreads();
  return mine;
}

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

/// log (1 + ...)^(−p), D < ∞, or the Gaussian's exponent, of a gap at squared distance `base`; T so that no bit is lost near 0.
template <class T>
struct Kernel {
  double inverse_base, power;
  bool gaussian;
  __device__ Kernel(double base, double r, double total_dim) {
    gaussian = isinf(total_dim);
    power = gaussian ? 1.0 : 0.5 * total_dim;
    inverse_base = gaussian ? 0.5 / (r * r) : 1.0 / base;
  }
  __device__ __forceinline__ T log_weight(double gap) const {
    const T ratio = static_cast<T>(gap * inverse_base);
    return -static_cast<T>(power) * (gaussian ? ratio : log_one_plus(ratio));
  }
};

template <class T>
__device__ __forceinline__ T weight_cut(int64_t count) {
  return -static_cast<T>((sizeof(T) == 4 ? 18.0 : 40.0) + log(static_cast<double>(count)));
}

__device__ __forceinline__ double integer_power(double base, int64_t exponent) {
  double result = 1;
  for (int64_t i = 0; i < exponent; ++i) result *= base;
  return result;
}

template <class T, class C, Coefficients kWanted>
__global__ void __launch_bounds__(kWeightThreads, 1) weight_kernel(WeightCall<T, C> call) {
  WeightShared& shared = shared_memory<WeightShared>();
  const int64_t row = blockIdx.x;
  const int64_t stride = call.batch * call.count;
  const double* gaps = call.gaps + row * call.count;
  T* weights = call.weights ? call.weights + row * call.count : nullptr;
  const auto sum_of_splits = [&](const double* from, int64_t j) {
    double sum = from[j];
    for (int64_t s = 1; s < call.splits; ++s) sum += from[s * stride + j];
    return sum;
  };

  Nearest nearest{std::numeric_limits<double>::infinity(), 0};
  for (int64_t j = threadIdx.x; j < call.count; j += kWeightThreads) nearest = nearer(nearest, {sum_of_splits(gaps, j), j});
  nearest = block_nearest<kWeightThreads>(nearest, shared.nearest, shared.where);

  double squares = nearest.gap;
  if (call.relative) {
    squares = 0;
    for (int64_t k = threadIdx.x; k < call.dim; k += kWeightThreads) {
      const double difference = static_cast<double>(decode(call.charges[nearest.charge * call.dim + k], call.divisor, call.offset)) -
                                static_cast<double>(call.x[row * call.dim + k]);
      squares += difference * difference;
    }
    squares = block_reduce<kWeightThreads>(squares, Sum{}, shared.slots);
  }
  const double r = static_cast<double>(call.r[row]);
  const double base = squares + r * r;
  const double total_dim = static_cast<double>(call.dim) + call.aug_dim;
  const bool good = r > 0 && isfinite(base) && isfinite(nearest.gap);
  const Kernel<T> kernel(base, r, total_dim);

  // Log-weights, and the largest: with weights q the nearest charge need not be the heaviest.
  double largest = -std::numeric_limits<double>::infinity();
  const auto log_weight = [&](int64_t j) {
    const double gap = call.gap_unit * (sum_of_splits(gaps, j) - nearest.gap);
    double result = kernel.log_weight(gap);
    if (call.log_weights) result += call.log_weights[j];
    return result;
  };
  for (int64_t j = threadIdx.x; j < call.count; j += kWeightThreads) {
    const double value = log_weight(j);
    largest = value > largest ? value : largest;
  }
  largest = block_reduce<kWeightThreads>(largest, Maximum{}, shared.slots);

  const T cut = weight_cut<T>(call.count);
  double total = 0, rate_total = 0, trace = 0, used = 0;
  for (int64_t j = threadIdx.x; j < call.count; j += kWeightThreads) {
    const T exponent = static_cast<T>(log_weight(j) - largest);
    T weight = exponent < cut ? T(0) : exponential(exponent);
    if (!good) weight = std::numeric_limits<T>::quiet_NaN();
    total += weight;
    used += weight != T(0) ? 1 : 0;
    if constexpr (kWanted != Coefficients::kWeights) {
      const double gap = call.gap_unit * (sum_of_splits(gaps, j) - nearest.gap);
      const double rate = kernel.gaussian ? 1.0 / (r * r) : total_dim / (base + gap);
      if constexpr (kWanted == Coefficients::kScore) {
        const double coefficient = weight * rate;
        call.rates[row * call.count + j] = static_cast<T>(coefficient);
        rate_total += coefficient;
        trace += coefficient * (squares + gap);
      } else {
        const double along = sum_of_splits(call.projection + row * call.count, j);
        const double coefficient = weight == T(0) ? 0 : weight * integer_power(rate, call.power) * along;
        weight = static_cast<T>(coefficient);
        rate_total += coefficient;
      }
    }
    if (weights) weights[j] = weight;
  }
  total = block_reduce<kWeightThreads>(total, Sum{}, shared.slots);
  used = block_reduce<kWeightThreads>(used, Sum{}, shared.slots);
  if constexpr (kWanted != Coefficients::kWeights) {
    rate_total = block_reduce<kWeightThreads>(rate_total, Sum{}, shared.slots);
    trace = block_reduce<kWeightThreads>(trace, Sum{}, shared.slots);
  }
  if (threadIdx.x != 0) return;
  call.state[row] = {nearest.charge, total, rate_total, static_cast<int64_t>(used)};
  if (call.rate) call.rate[row] = static_cast<T>(rate_total / total);
  if (call.trace) call.trace[row] = static_cast<T>(trace / total);
  if (call.lse) {
    const double at_anchor = kernel.gaussian ? -squares / (2 * r * r) : -0.5 * total_dim * log1p(squares / (r * r));
    call.lse[row] = good ? largest + log(total) + at_anchor : std::numeric_limits<double>::quiet_NaN();
  }
}

template <Coefficients kWanted, class T, class C>
void launch_weights(const WeightCall<T, C>& call, Stream stream) {
  launch(weight_kernel<T, C, kWanted>, call.batch, kWeightThreads, sizeof(WeightShared), stream, call);
}

}  // namespace pfgm
