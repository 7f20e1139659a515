// From gaps to weights: per query the anchor (nearest charge), log-weights relative to it, unnormalised weights, sums, lse.
//
// With a the anchor and g_j = ‖ρ_j‖² − ‖ρ_a‖² ≥ 0, a log-weight is log q_j − p log1p(g_j/d²_a): d² is never formed and
// then logged. The gaps may be squared distances, or any quantity that differs from them by a constant a row; in the second case
// the anchor's distance is computed here by direct differences.
// Weights below exp(−cut) of the largest, cut = 18 + log M (40 + log M in double), become exactly 0: together less than 2e-8.
//
// Tiling: one block of 512 threads a query, two sweeps over its row (nearest; weights), three where charges have weights q.
// Cost: reads `splits` × 8 bytes a pair and sweep (from L2 after the first), writes a weight; one log1p and one exp a pair
// that is not beyond the cut.
#pragma once

#include "../device.h"

namespace pfgm {

constexpr int kWeightThreads = 512;
constexpr int kSweep = 8;  // loads of a thread in flight

/// What the last kernel needs to know of a query.
struct RowState {
  int64_t anchor;     // the nearest charge
  double total;       // Σ weights, unnormalised; NaN for a query that must give NaN
  double rate_total;  // Σ coefficient: weights · c (score), weights · c^k (ρ·u) (moment)
  int64_t used;       // charges with a weight above 0
  int64_t packed;     // kPacked, dense queries: Σ of the fixed-point weights
};

/// What a query's weights are written as: T; T, and T times c (score); T times c^k (ρ·u) (moment); or packed.
enum class Coefficients { kWeights, kScore, kSecondMoment, kPacked };

constexpr int kListed = 64;                    // a sparse query has at most so many charges with a weight
constexpr double kPackedOne = 16777214.0;      // the fixed-point weight of 1: three unsigned digits of 8 bits

/// Weights for integer tensor cores. A sparse query's are a list; a dense one's are three planes of bytes, in fixed point around
/// the anchor (whose own difference is 0), rounded up or down by a fixed hash so that the error of a sum has no bias.
struct WeightDigits {
  uint8_t* digits;  // (3, batch, stride), the most significant first, zeros behind `count`
  int64_t stride;   // of a query's bytes, a multiple of 64
  int* charge;      // (batch, kListed)
  float* weight;    // (batch, kListed)
  int* dense;       // the number of dense queries, 0 before the launch
  int* queries;     // (batch): the dense queries, in no order that matters
};

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
  WeightDigits weight_digits;  // kPacked
  const int* proven;  // (batch), or null: not 0 where the screening (screen.cuh) has already served a query
};

struct WeightShared {
  int listed[kListed], sorted[kListed];
  double squares[kListed], exponent[kListed];
  float weight[kListed];
  int used;
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
struct WeightFunction {
  double inverse_base, power;
  bool gaussian;
  __device__ WeightFunction(double base, double r, double total_dim) {
    gaussian = isinf(total_dim);
    power = gaussian ? 1.0 : 0.5 * total_dim;
    inverse_base = gaussian ? 0.5 / (r * r) : 1.0 / base;
  }
  __device__ __forceinline__ T log_weight(double gap) const {
    const T ratio = static_cast<T>(gap * inverse_base);
    return -static_cast<T>(power) * (gaussian ? ratio : log_one_plus(ratio));
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

/// ‖y − x‖² by direct differences in double, by all threads of a block.
template <int kThreads, class T, class C>
__device__ __forceinline__ double block_distance(const C* charge, const T* x, int64_t dim, T divisor, T offset, double* slots) {
  double squares = 0;
  for (int64_t k = threadIdx.x; k < dim; k += kThreads) {
    const double difference = static_cast<double>(decode(charge[k], divisor, offset)) - static_cast<double>(x[k]);
    squares += difference * difference;
  }
  return block_reduce<kThreads>(squares, Sum{}, slots);
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
__device__ __forceinline__ float dither(int64_t row, int64_t j) {
  uint32_t hash = static_cast<uint32_t>(j) * 0x9e3779b9u ^ (static_cast<uint32_t>(row) + 0x7f4a7c15u) * 0x85ebca6bu;
  hash = (hash ^ hash >> 16) * 0x7feb352du;
  hash = (hash ^ hash >> 15) * 0x846ca68bu;
  return static_cast<float>((hash ^ hash >> 16) >> 8) * 0x1p-24f;
}

/// What a refined list says of a query.
struct Refined {
  double squares, total;  // the nearest charge's ‖ρ‖²; Σ weights
  double largest;         // log-weight, from which weights are measured
};

/// A sparse query's list, in the charges' order (threads appended as they came), its distances and weights by direct differences:
/// what the products' rounding could do to near-duplicates is gone. For 1 to kListed charges.
template <class T, class C>
__device__ Refined refine_list(const WeightCall<T, C>& call, WeightShared& shared, int64_t row, double r, double total_dim) {
  const int used = shared.used, mine = static_cast<int>(threadIdx.x), lane = mine % kWarp;
  if (mine < used) {
    int place = 0;
    for (int other = 0; other < used; ++other) place += shared.listed[other] < shared.listed[mine] ? 1 : 0;
    shared.sorted[place] = shared.listed[mine];
  }
  __syncthreads();
  for (int at = mine / kWarp; at < used; at += kWeightThreads / kWarp) {
    const C* charge = call.charges + shared.sorted[at] * call.dim;
    const T* x = call.x + row * call.dim;
    double squares = 0;
    for (int64_t k = lane; k < call.dim; k += kWarp) {
      const double difference = static_cast<double>(decode(charge[k], call.divisor, call.offset)) - static_cast<double>(x[k]);
      squares += difference * difference;
    }
    squares = warp_reduce(squares, Sum{});
    if (lane == 0) shared.squares[at] = squares;
  }
  __syncthreads();
  double nearest = shared.squares[0];
  for (int at = 1; at < used; ++at) nearest = shared.squares[at] < nearest ? shared.squares[at] : nearest;
  const WeightFunction<T> function(nearest + r * r, r, total_dim);
  if (mine < used) {
    shared.exponent[mine] = static_cast<double>(function.log_weight(shared.squares[mine] - nearest)) +
                            (call.log_weights ? call.log_weights[shared.sorted[mine]] : 0.0);
  }
  __syncthreads();
  double largest = shared.exponent[0], total = 0;
  for (int at = 1; at < used; ++at) largest = shared.exponent[at] > largest ? shared.exponent[at] : largest;
  if (mine < used) {
    shared.weight[mine] = static_cast<float>(exponential(static_cast<T>(shared.exponent[mine] - largest)));
    call.weight_digits.charge[row * kListed + mine] = shared.sorted[mine];
    call.weight_digits.weight[row * kListed + mine] = shared.weight[mine];
  }
  __syncthreads();
  for (int at = 0; at < used; ++at) total += static_cast<double>(shared.weight[at]);
  return {nearest, total, largest};
}

/// A dense query's place among the dense ones, and the zeros behind its packed weights.
__device__ __forceinline__ void list_dense(const WeightDigits& weight_digits, int64_t row, int64_t count, int64_t batch) {
  for (int64_t j = count + threadIdx.x; j < weight_digits.stride; j += kWeightThreads)
    for (int digit = 0; digit < 3; ++digit) weight_digits.digits[(digit * batch + row) * weight_digits.stride + j] = 0;
  if (threadIdx.x == 0) weight_digits.queries[atomicAdd(weight_digits.dense, 1)] = static_cast<int>(row);
}

template <class T, class C, Coefficients kWanted>
__global__ void __launch_bounds__(kWeightThreads, 1) weight_kernel(WeightCall<T, C> call) {
  WeightShared& shared = shared_memory<WeightShared>();
  const int64_t row = blockIdx.x;
  if (call.proven && call.proven[row]) return;
  const int64_t stride = call.batch * call.count;
  const double* gaps = call.gaps + row * call.count;
  T* weights = call.weights ? call.weights + row * call.count : nullptr;
  // Visits a row's charges with their sums over the splits; kSweep loads are on their way before the first is used.
  const auto sweep = [&](const double* from, const auto& visit) {
    for (int64_t first = threadIdx.x; first < call.count; first += kSweep * kWeightThreads) {
      double sum[kSweep];
#pragma unroll
      for (int i = 0; i < kSweep; ++i) {
        const int64_t j = first + i * kWeightThreads;
        sum[i] = from[j < call.count ? j : first];
      }
      for (int64_t s = 1; s < call.splits; ++s)
#pragma unroll
        for (int i = 0; i < kSweep; ++i) {
          const int64_t j = first + i * kWeightThreads;
          sum[i] += from[s * stride + (j < call.count ? j : first)];
        }
#pragma unroll
      for (int i = 0; i < kSweep; ++i)
        if (first + i * kWeightThreads < call.count) visit(first + i * kWeightThreads, sum[i]);
    }
  };

  Nearest nearest{std::numeric_limits<double>::infinity(), 0};
  sweep(gaps, [&](int64_t j, double gap) { nearest = nearer(nearest, {gap, j}); });
  nearest = block_nearest<kWeightThreads>(nearest, shared.nearest, shared.where);

  double squares = !call.relative ? nearest.gap
                                        : block_distance<kWeightThreads>(call.charges + nearest.charge * call.dim, call.x + row * call.dim,
                                                                         call.dim, call.divisor, call.offset, shared.slots);
  const double r = static_cast<double>(call.r[row]);
  const double base = squares + r * r;
  const double total_dim = static_cast<double>(call.dim) + call.aug_dim;
  const bool good = r > 0 && isfinite(base) && isfinite(nearest.gap);
  const WeightFunction<T> function(base, r, total_dim);

  // The largest log-weight: the anchor's, unless the charges have weights q.
  const auto log_weight = [&](int64_t j, double gap) {  // gap ≥ 0, to the anchor
    const double result = function.log_weight(call.gap_unit * gap);
    return call.log_weights ? result + call.log_weights[j] : result;
  };
  double largest = 0;
  if (call.log_weights) {
    largest = -std::numeric_limits<double>::infinity();
    sweep(gaps, [&](int64_t j, double gap) {
      const double value = log_weight(j, gap - nearest.gap);
      largest = value > largest ? value : largest;
    });
    largest = block_reduce<kWeightThreads>(largest, Maximum{}, shared.slots);
  }

  const T cut = weight_cut<T>(call.count);
  const double gap_cut = function.gap_of(cut) / call.gap_unit;
  double total = 0, rate_total = 0, trace = 0, used = 0, packed = 0;
  bool listing = true;
  if constexpr (kWanted == Coefficients::kPacked) {
    if (threadIdx.x == 0) shared.used = 0;
    __syncthreads();
  }
  sweep(gaps, [&](int64_t j, double from_zero) {
    const double gap = from_zero - nearest.gap;
    // Without weights q the exponent falls with the gap: most charges are beyond the cut, and need no logarithm.
    const bool beyond = !call.log_weights && gap > gap_cut;
    const T exponent = beyond ? cut - 1 : static_cast<T>(log_weight(j, gap) - largest);
    T weight = exponent < cut ? T(0) : exponential(exponent);
    if (!good) weight = std::numeric_limits<T>::quiet_NaN();
    total += weight;
    used += weight != T(0) ? 1 : 0;
    if constexpr (kWanted == Coefficients::kPacked) {
      const float product = static_cast<float>(weight) * static_cast<float>(kPackedOne), whole = floorf(product);
      uint32_t number = j == nearest.charge || !good ? 0 : static_cast<uint32_t>(whole);
      if (number != 0 || weight != T(0)) number += j != nearest.charge && good && product - whole > dither(row, j) ? 1 : 0;
      packed += number;
      uint8_t* digits = call.weight_digits.digits + row * call.weight_digits.stride + j;
      digits[0] = static_cast<uint8_t>(number >> 16);
      digits[call.batch * call.weight_digits.stride] = static_cast<uint8_t>(number >> 8);
      digits[2 * call.batch * call.weight_digits.stride] = static_cast<uint8_t>(number);
      if (weight != T(0) && listing) {
        const int at = atomicAdd(&shared.used, 1);
        listing = at < kListed;  // else the query is dense: this thread need not ask again
        if (listing) {
          shared.listed[at] = static_cast<int>(j);
        }
      }
    } else if constexpr (kWanted != Coefficients::kWeights) {
      const double farther = call.gap_unit * gap;
      const double rate = function.gaussian ? 1.0 / (r * r) : total_dim / (base + farther);
      if constexpr (kWanted == Coefficients::kScore) {
        const double coefficient = weight * rate;
        call.rates[row * call.count + j] = static_cast<T>(coefficient);
        rate_total += coefficient;
        trace += coefficient * (squares + farther);
      } else {
        double along = 0;
        for (int64_t s = 0; s < call.splits; ++s) along += call.projection[s * stride + row * call.count + j];
        const double coefficient = weight == T(0) ? 0 : weight * integer_power(rate, call.power) * along;
        weight = static_cast<T>(coefficient);
        rate_total += coefficient;
      }
    }
    if (weights) weights[j] = weight;
  });
  total = block_reduce<kWeightThreads>(total, Sum{}, shared.slots);
  used = block_reduce<kWeightThreads>(used, Sum{}, shared.slots);
  if constexpr (kWanted == Coefficients::kPacked) {
    packed = block_reduce<kWeightThreads>(packed, Sum{}, shared.slots);  // whole numbers below 2^53: exact
    if (shared.used > kListed) {  // exact up to kListed; where it is more, it says only that
      list_dense(call.weight_digits, row, call.count, call.batch);
    } else {
      const Refined refined = refine_list(call, shared, row, r, total_dim);
      squares = refined.squares;
      largest = refined.largest;
      total = good ? refined.total : total;
    }
  } else if constexpr (kWanted != Coefficients::kWeights) {
    rate_total = block_reduce<kWeightThreads>(rate_total, Sum{}, shared.slots);
    trace = block_reduce<kWeightThreads>(trace, Sum{}, shared.slots);
  }
  if (threadIdx.x != 0) return;
  call.state[row] = {nearest.charge, total, rate_total, static_cast<int64_t>(used), static_cast<int64_t>(packed)};
  if (call.rate) call.rate[row] = static_cast<T>(rate_total / total);
  if (call.trace) call.trace[row] = static_cast<T>(trace / total);
  if (call.lse) {
    call.lse[row] = good ? largest + log(total) + anchor_log_weight(squares, r, total_dim) : std::numeric_limits<double>::quiet_NaN();
  }
}

template <Coefficients kWanted, class T, class C>
void launch_weights(const WeightCall<T, C>& call, Stream stream) {
  launch<weight_kernel<T, C, kWanted>>(call.batch, kWeightThreads, sizeof(WeightShared), stream, call);
}

}  // namespace pfgm
