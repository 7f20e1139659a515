// Small N in one launch: the nearest charge, then weights and Σ w (y − y_a), for 32 queries a block.
//
// Tiling: 16 warps (8 from 5 dimensions on); a warp's lanes are 32 queries, the warps share out segments of
// 32 charges, which lie decoded in shared memory (32 KB of them at a time: 4,096 in the plane, then loaded
// once) and are read 16 bytes at a time by broadcast. Two sweeps over the charges. The first finds each
// query's least distance, and remembers only the segment that has it; the block then looks there for the
// anchor. The second sums, a segment at a time, so that rounding errors do not grow with M. The warps' sums
// are merged in a fixed order.
//
// With δ = y − y_a and ρ_a = y_a − x a gap is Σ δ (δ + 2 ρ_a), which errs by ε of its terms. A weight is
// (1 + gap/d²_a)^(−(N+D)/2): for N + D whole and small so many factors 1/√(1 + gap/d²_a), else by log1p and
// exp. Cost a pair: 2 N + 1 operations for the first sweep; 4 N + 5 for the second in the plane with D = 1,
// and one reciprocal root. Charges are read twice a block (from L2) or once, queries once, nothing but the
// answer is written. Bound by arithmetic.
#pragma once

#include <type_traits>

#include "../device.h"
#include "weight_function.cuh"

namespace pfgm {

template <class T, int kDim>
constexpr int kSmallNThreads = kDim * sizeof(T) <= 16 ? 512 : 256;  // by registers
constexpr int kSegment = 32;                                        // charges
#if defined(__CUDACC__)
constexpr int kSmallNBytes = 32 * 1024;  // of the charges in shared memory
#else
constexpr int kSmallNBytes = 4 * 1024;  // tests are small, and shall take several tiles
#endif
template <class T>
constexpr int kSmallNLargest = sizeof(T) == 4 ? 16 : 4;  // what fits into registers

// p ‖ρ_a‖²/d²_a up to which gaps in T are good enough; above they are formed in double, and the least
// distance of the first sweep may not be the least: log-weights may exceed the anchor's.
constexpr double kMostFloatExponent = 16;
// Largest N + D for which a weight is a product of roots: each errs by at most 2^-22.9 (rsqrt.approx) and
// half of what 1 + gap/d²_a does, 2^-24, together 2.4e-6 of a weight at the very most.
constexpr int kMostHalves = 15;

template <class T, class C>
struct SmallNCall {
  FieldOp op;
  const T* x;                 // (batch, dim)
  const T* r;                 // (batch)
  const T* r_next;            // (batch), step
  const C* charges;           // (count, dim)
  const double* log_weights;  // (count) or null
  int64_t batch, count, dim;  // dim ≤ kDim
  T divisor, offset;
  double aug_dim;
  T* out;       // (batch, dim), or null
  double* lse;  // (batch), or null
};

template <class T, int kDim>
struct SmallNShared {
  static constexpr int kThreads = kSmallNThreads<T, kDim>, kWarps = kThreads / kWarp;
  static constexpr int kTile = kSmallNBytes / (kDim * static_cast<int>(sizeof(T)));  // charges
  static_assert(kTile % kSegment == 0);
  union {
    struct {
      alignas(16) T charge[kTile * kDim];
      T log_weight[kTile];
    };
    T merge[kWarps][kDim + 2][kWarp];  // sums, total, largest
  };
  T nearest[kWarps][kWarp];
  int where[kWarps][kWarp], found[kWarps][kWarp];
  double squares[kWarp], inverse_base[kWarp];  // a query's ‖y_a − x‖² and WeightFunction::inverse_base
  int64_t anchor[kWarp];
};

template <class T, class C, int kDim>
__device__ __forceinline__ void load_charges(SmallNShared<T, kDim>& shared, const SmallNCall<T, C>& call,
                                             int64_t begin) {
  const Values<T> values(call.divisor, call.offset);
  const int64_t left = call.count - begin;
  const int here = left < shared.kTile ? static_cast<int>(left) : shared.kTile;
  const C* charges = call.charges + begin * call.dim;
  const int dim = static_cast<int>(call.dim);
  __syncthreads();
#pragma unroll 8
  for (int i = threadIdx.x; i < here * kDim; i += shared.kThreads)
    shared.charge[i] = i % kDim < dim ? values(charges[i / kDim * dim + i % kDim]) : T(0);
  if (call.log_weights)
    for (int i = threadIdx.x; i < here; i += shared.kThreads)
      shared.log_weight[i] = static_cast<T>(call.log_weights[begin + i]);
  __syncthreads();
}

/// visit(j, values of charge j), for j in [begin, end), `begin` a segment's.
template <int kDim, class T, class Visit>
__device__ __forceinline__ void each_charge(const T* charges, int begin, int end, Visit visit) {
  constexpr int kBytes = kDim * static_cast<int>(sizeof(T)), kTogether = kBytes < 16 ? 16 / kBytes : 1;
  [[maybe_unused]] constexpr int kUnroll = sizeof(T) == 4 && kBytes <= 16 ? 4 : 1;  // registers
  int j = begin;
#pragma unroll kUnroll
  for (; j + kTogether <= end; j += kTogether) {
    const auto some = load<T, kTogether * kDim>(charges + j * kDim);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) visit(j + i, some.at + i * kDim);
  }
  if constexpr (kTogether > 1)
    for (; j < end; ++j) {
      const auto one = load<T, kDim>(charges + j * kDim);
      visit(j, one.at);
    }
}

/// The same bits wherever it is computed: no choice of contractions is left.
template <int kDim, class T>
__device__ __forceinline__ T squared_distance(const T* y, const T* x) {
  T sum = multiply_rounded(y[0] - x[0], y[0] - x[0]);
#pragma unroll
  for (int k = 1; k < kDim; ++k) sum = fma(y[k] - x[k], y[k] - x[k], sum);
  return sum;
}

/// How a query's weights are formed.
enum class WeightsBy { kThreeHalves, kHalves, kLogarithm, kGaussian, kRunning, kPrecise };

/// t^(−halves/2), halves ≤ kMostHalves.
template <class T>
__device__ __forceinline__ T half_power(T t, int halves) {
  T square = reciprocal_root(t), result = halves & 1 ? square : T(1);
#pragma unroll
  for (int bit = 2; bit <= kMostHalves; bit *= 2) {
    square *= square;
    if (halves & bit) result *= square;
  }
  return result;
}

/// A thread's query, and its sums over the warp's charges.
template <class T, int kDim>
struct SmallNRow {
  T anchor[kDim], twice[kDim];  // y_a; 2 (y_a − x)
  T power, inverse_base;
  int halves;  // N + D, where it is whole and small, else 0
  bool gaussian;
  T sum[kDim] = {}, total = 0, largest = 0;  // Σ w (y − y_a), Σ w; the log-weight that both are relative to
};

/// Charges [begin, end) of the tile, added to a query's sums. kRunning, kPrecise: with weights q, or none,
/// and relative to the largest log-weight so far.
template <WeightsBy kBy, class T, class C, int kDim>
__device__ __forceinline__ void add_segment(SmallNRow<T, kDim>& row, const SmallNShared<T, kDim>& shared,
                                            const SmallNCall<T, C>& call, int64_t query, int begin, int end) {
  T sum[kDim] = {}, total = 0;
  double x[kDim], squares = 0, inverse_base = 0;
  if constexpr (kBy == WeightsBy::kPrecise) {
    for (int k = 0; k < kDim; ++k)
      x[k] = query < call.batch && k < call.dim ? static_cast<double>(call.x[query * call.dim + k]) : 0.0;
    squares = shared.squares[threadIdx.x % kWarp];
    inverse_base = shared.inverse_base[threadIdx.x % kWarp];
  }
  each_charge<kDim>(shared.charge, begin, end, [&](int j, const T* y) {
    T difference[kDim], gap = 0;
#pragma unroll
    for (int k = 0; k < kDim; ++k) {
      difference[k] = y[k] - row.anchor[k];
      gap = fma(difference[k], difference[k] + row.twice[k], gap);
    }
    T weight;
    if constexpr (kBy == WeightsBy::kThreeHalves) {
      const T root = reciprocal_root(fma(gap, row.inverse_base, T(1)));
      weight = root * root * root;
    } else if constexpr (kBy == WeightsBy::kHalves) {
      weight = half_power(fma(gap, row.inverse_base, T(1)), row.halves);
    } else if constexpr (kBy == WeightsBy::kLogarithm) {
      weight = exponential(-row.power * log_one_plus(gap * row.inverse_base));
    } else if constexpr (kBy == WeightsBy::kGaussian) {
      weight = exponential(-gap * row.inverse_base);
    } else {
      T ratio = gap * row.inverse_base;
      if constexpr (kBy == WeightsBy::kPrecise) {
        double farther = -squares;
#pragma unroll
        for (int k = 0; k < kDim; ++k) {
          const double exact = static_cast<double>(y[k]) - x[k];
          farther += exact * exact;
        }
        ratio = static_cast<T>(farther * inverse_base);
      }
      const T log_weight = call.log_weights ? shared.log_weight[j] : T(0),
              exponent = log_weight - row.power * (row.gaussian ? ratio : log_one_plus(ratio));
      if (exponent > row.largest) {
        const T shrink = exponential(row.largest - exponent);
        row.largest = exponent;
        row.total *= shrink;
        total *= shrink;
#pragma unroll
        for (int k = 0; k < kDim; ++k) {
          row.sum[k] *= shrink;
          sum[k] *= shrink;
        }
      }
      weight = exponential(exponent - row.largest);
    }
    total += weight;
#pragma unroll
    for (int k = 0; k < kDim; ++k) sum[k] = fma(weight, difference[k], sum[k]);
  });
  row.total += total;
#pragma unroll
  for (int k = 0; k < kDim; ++k) row.sum[k] += sum[k];
}

template <WeightsBy kBy>
using By = std::integral_constant<WeightsBy, kBy>;

/// How a query's weights are formed, from what is known of its anchor.
template <class T>
__device__ __forceinline__ WeightsBy weights_by(double squares, const WeightFunction<T>& function, int halves,
                                                bool weighted) {
  if (function.power * squares * function.inverse_base > kMostFloatExponent)
    return sizeof(T) == 4 ? WeightsBy::kPrecise : WeightsBy::kRunning;
  return weighted            ? WeightsBy::kRunning
         : function.gaussian ? WeightsBy::kGaussian
         : halves == 3       ? WeightsBy::kThreeHalves
         : halves > 0        ? WeightsBy::kHalves
                             : WeightsBy::kLogarithm;
}

template <class T, class C, int kDim>
__global__ void __launch_bounds__(kSmallNThreads<T, kDim>, 1) small_n_kernel(SmallNCall<T, C> call) {
  using Shared = SmallNShared<T, kDim>;
  Shared& shared = shared_memory<Shared>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t query = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const bool inside = query < call.batch, one_tile = call.count <= Shared::kTile;
  const int dim = static_cast<int>(call.dim);
  const Values<T> values(call.divisor, call.offset);
  T x[kDim];
#pragma unroll
  for (int k = 0; k < kDim; ++k) x[k] = inside && k < dim ? call.x[query * dim + k] : T(0);
  const auto each_segment = [&](int64_t begin, auto visit) {
    const int64_t left = call.count - begin;
    const int stop = left < Shared::kTile ? static_cast<int>(left) : Shared::kTile;
    for (int first = warp * kSegment; first < stop; first += Shared::kWarps * kSegment)
      visit(first, first + kSegment < stop ? first + kSegment : stop);
  };

  // The least distance and its segment; of equal ones the first.
  T nearest = std::numeric_limits<T>::infinity();
  int where = 0;
  for (int64_t begin = 0; begin < call.count; begin += Shared::kTile) {
    load_charges(shared, call, begin);
    each_segment(begin, [&](int first, int end) {
      T least = std::numeric_limits<T>::infinity();
      each_charge<kDim>(shared.charge, first, end,
                        [&](int, const T* y) { least = fmin(least, squared_distance<kDim>(y, x)); });
      if (least < nearest) {  // NaN is never less
        nearest = least;
        where = static_cast<int>(begin / kSegment) + first / kSegment;
      }
    });
  }
  shared.nearest[warp][lane] = nearest;
  shared.where[warp][lane] = where;
  __syncthreads();
  for (int w = 0; w < Shared::kWarps; ++w) {
    const T other = shared.nearest[w][lane];
    const int there = shared.where[w][lane];
    if (other < nearest || (other == nearest && there < where)) {
      nearest = other;
      where = there;
    }
  }

  // The anchor: the first of the segment's charges that has this distance; the warps share its charges.
  const auto read_charge = [&](int64_t charge, T(&y)[kDim]) {
#pragma unroll
    for (int k = 0; k < kDim; ++k)
      y[k] = one_tile  ? shared.charge[charge * kDim + k]
             : k < dim ? values(call.charges[charge * dim + k])
                       : T(0);
  };
  const int64_t segment = static_cast<int64_t>(where) * kSegment;
  int found = kSegment;
#pragma unroll
  for (int i = 0; i < kSegment / Shared::kWarps; ++i) {
    const int at = i * Shared::kWarps + warp;
    if (segment + at >= call.count) continue;
    T y[kDim];
    read_charge(segment + at, y);
    if (found == kSegment && squared_distance<kDim>(y, x) == nearest) found = at;
  }
  shared.found[warp][lane] = found;
  __syncthreads();
  for (int w = 0; w < Shared::kWarps; ++w)
    found = shared.found[w][lane] < found ? shared.found[w][lane] : found;
  const int64_t anchor = found < kSegment ? segment + found : 0;  // none where no distance is finite

  SmallNRow<T, kDim> row;
  read_charge(anchor, row.anchor);
  double squares = 0;
#pragma unroll
  for (int k = 0; k < kDim; ++k) {
    const double exact = static_cast<double>(row.anchor[k]) - static_cast<double>(x[k]);
    squares += exact * exact;
    row.twice[k] = static_cast<T>(2 * exact);
  }
  const double r = inside ? static_cast<double>(call.r[query]) : 1.0;
  const double total_dim = static_cast<double>(dim) + call.aug_dim, base = squares + r * r;
  const WeightFunction<T> function(base, r, total_dim);
  if (warp == 0) {
    shared.squares[lane] = squares;
    shared.inverse_base[lane] = function.inverse_base;
    shared.anchor[lane] = r > 0 && isfinite(base) && isfinite(nearest) ? anchor : -1;  // -1: a row of NaN
  }
  __syncthreads();
  row.power = static_cast<T>(function.power);
  row.inverse_base = fmin(static_cast<T>(function.inverse_base), std::numeric_limits<T>::max());  // 0 · ∞
  row.gaussian = function.gaussian;
  row.halves = total_dim <= kMostHalves && total_dim == floor(total_dim) ? static_cast<int>(total_dim) : 0;
  const WeightsBy by = weights_by(squares, function, row.halves, call.log_weights != nullptr);
  if (by >= WeightsBy::kRunning) row.largest = -std::numeric_limits<T>::infinity();

  for (int64_t begin = 0; begin < call.count; begin += Shared::kTile) {
    if (!one_tile) load_charges(shared, call, begin);
    each_segment(begin, [&](int first, int end) {
      const auto add = [&](auto way) {
        add_segment<decltype(way)::value>(row, shared, call, query, first, end);
      };
      switch (by) {
        case WeightsBy::kThreeHalves: add(By<WeightsBy::kThreeHalves>{}); break;
        case WeightsBy::kHalves: add(By<WeightsBy::kHalves>{}); break;
        case WeightsBy::kLogarithm: add(By<WeightsBy::kLogarithm>{}); break;
        case WeightsBy::kGaussian: add(By<WeightsBy::kGaussian>{}); break;
        case WeightsBy::kRunning: add(By<WeightsBy::kRunning>{}); break;
        case WeightsBy::kPrecise: add(By<WeightsBy::kPrecise>{}); break;
      }
    });
  }
  __syncthreads();  // the tile's memory becomes the merge's
#pragma unroll
  for (int k = 0; k < kDim; ++k) shared.merge[warp][k][lane] = row.sum[k];
  shared.merge[warp][kDim][lane] = row.total;
  shared.merge[warp][kDim + 1][lane] = row.largest;
  __syncthreads();

  // Warp w writes columns w, w + 16, ... of all 32 queries; warp 0 the log-sum-exp.
  if (!inside || warp >= dim) return;
  T top = shared.merge[0][kDim + 1][lane];
  for (int w = 1; w < Shared::kWarps; ++w) top = Maximum{}(top, shared.merge[w][kDim + 1][lane]);
  const auto merged = [&](int k) {
    double sum = 0;
    for (int w = 0; w < Shared::kWarps; ++w)
      sum += static_cast<double>(shared.merge[w][k][lane]) *
             static_cast<double>(exponential(shared.merge[w][kDim + 1][lane] - top));
    return sum;
  };
  const double all = merged(kDim), radius = static_cast<double>(call.r[query]);
  const int64_t nearest_charge = shared.anchor[lane];
  const bool good = nearest_charge >= 0;
  if (call.out)
    for (int k = warp; k < dim; k += Shared::kWarps) {
      const T here = call.x[query * dim + k], y = values(call.charges[(good ? nearest_charge : 0) * dim + k]);
      const T r_next = call.r_next ? call.r_next[query] : T(0);
      const T out =
          field_output(call.op, here, y, static_cast<T>(merged(k) / all), static_cast<T>(radius), r_next);
      call.out[query * dim + k] = good ? out : std::numeric_limits<T>::quiet_NaN();
    }
  if (call.lse && warp == 0)
    call.lse[query] =
        good ? static_cast<double>(top) + log(all) +
                   anchor_log_weight(shared.squares[lane], radius, static_cast<double>(dim) + call.aug_dim)
             : std::numeric_limits<double>::quiet_NaN();
}

template <int kDim, class T, class C>
void launch_small_n(const SmallNCall<T, C>& call, Stream stream) {
  launch<small_n_kernel<T, C, kDim>>(ceil_div<int64_t>(call.batch, kWarp), kSmallNThreads<T, kDim>,
                                     sizeof(SmallNShared<T, kDim>), stream, call);
}

}  // namespace pfgm
