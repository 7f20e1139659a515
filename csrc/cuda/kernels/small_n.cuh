// Small N in one launch: nearest charge, then weights and Σ w (y − y_a) with a running maximum, for 32
// queries a block.
//
// Tiling: 16 warps; a warp's lanes are 32 queries, each warp takes a sixteenth of every tile of charges,
// which lie decoded in shared memory and are read by broadcast. Two sweeps over the charges: the first finds
// the anchor (so that log-weights are −p log1p of a ratio, as everywhere), the second sums. The warps' sums
// are merged in a fixed order. Cost: 2 N operations a pair for the first sweep, 3 N + one log1p + one exp for
// the second; charges are read twice a block (from L2), queries once, nothing but the answer is written.
// Bound by arithmetic.
#pragma once

#include "../device.h"
#include "weight_function.cuh"

namespace pfgm {

constexpr int kSmallNThreads = 512;
constexpr int kSmallNWarps = kSmallNThreads / kWarp;
constexpr int kSmallNTile = 512;  // charges
template <class T>
constexpr int kSmallNLargest = sizeof(T) == 4 ? 16 : 4;  // what fits into registers

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
  union {
    struct {
      T charge[kSmallNTile][kDim];
      T log_weight[kSmallNTile];
    };
    T merge[kSmallNWarps][kDim + 2][kWarp];  // sums, total, largest
  };
  T nearest[kSmallNWarps][kWarp];
  int64_t where[kSmallNWarps][kWarp];
};

template <class T, class C, int kDim>
__device__ __forceinline__ void load_charges(SmallNShared<T, kDim>& shared, const SmallNCall<T, C>& call,
                                             int64_t begin) {
  const Values<T> values(call.divisor, call.offset);
  __syncthreads();
  for (int i = threadIdx.x; i < kSmallNTile * kDim; i += kSmallNThreads) {
    const int64_t charge = begin + i / kDim;
    const int k = i % kDim;
    shared.charge[i / kDim][k] =
        charge < call.count && k < call.dim ? values(call.charges[charge * call.dim + k]) : T(0);
  }
  for (int i = threadIdx.x; i < kSmallNTile; i += kSmallNThreads)
    shared.log_weight[i] =
        call.log_weights && begin + i < call.count ? static_cast<T>(call.log_weights[begin + i]) : T(0);
  __syncthreads();
}

template <class T, int kDim>
__device__ __forceinline__ T squared_distance(const T (&y)[kDim], const T (&x)[kDim]) {
  T sum = 0;
#pragma unroll
  for (int k = 0; k < kDim; ++k) {
    const T difference = y[k] - x[k];
    sum += difference * difference;
  }
  return sum;
}

template <class T, class C, int kDim>
__global__ void __launch_bounds__(kSmallNThreads, 1) small_n_kernel(SmallNCall<T, C> call) {
  SmallNShared<T, kDim>& shared = shared_memory<SmallNShared<T, kDim>>();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const bool inside = row < call.batch;
  T x[kDim];
#pragma unroll
  for (int k = 0; k < kDim; ++k) x[k] = inside && k < call.dim ? call.x[row * call.dim + k] : T(0);

  T nearest = std::numeric_limits<T>::infinity();
  int64_t where = 0;
  for (int64_t begin = 0; begin < call.count; begin += kSmallNTile) {
    load_charges(shared, call, begin);
    const int stop = call.count - begin < kSmallNTile ? static_cast<int>(call.count - begin) : kSmallNTile;
#pragma unroll 4
    for (int j = warp; j < stop; j += kSmallNWarps) {
      const T squares = squared_distance(shared.charge[j], x);
      if (squares < nearest) {
        nearest = squares;
        where = begin + j;
      }
    }
  }
  shared.nearest[warp][lane] = nearest;
  shared.where[warp][lane] = where;
  __syncthreads();
  for (int w = 0; w < kSmallNWarps; ++w) {
    const T other = shared.nearest[w][lane];
    const int64_t there = shared.where[w][lane];
    if (other < nearest || (other == nearest && there < where)) {
      nearest = other;
      where = there;
    }
  }

  const double r = inside ? static_cast<double>(call.r[row]) : 1.0;
  const double total_dim = static_cast<double>(call.dim) + call.aug_dim;
  const double base = static_cast<double>(nearest) + r * r;
  const bool good = r > 0 && isfinite(base);
  const WeightFunction<T> function(base, r, total_dim);
  const Values<T> values(call.divisor, call.offset);
  const T power = static_cast<T>(function.power), inverse_base = static_cast<T>(function.inverse_base);
  T anchor[kDim], sum[kDim];
#pragma unroll
  for (int k = 0; k < kDim; ++k) {
    anchor[k] = k < call.dim ? values(call.charges[where * call.dim + k]) : T(0);
    sum[k] = 0;
  }
  T total = 0, largest = -std::numeric_limits<T>::infinity();
  for (int64_t begin = 0; begin < call.count; begin += kSmallNTile) {
    load_charges(shared, call, begin);
    const int stop = call.count - begin < kSmallNTile ? static_cast<int>(call.count - begin) : kSmallNTile;
    T tile_sum[kDim] = {},
      tile_total = 0;  // a tile at a time: the rounding error does not grow with the number of charges
#pragma unroll 2
    for (int j = warp; j < stop; j += kSmallNWarps) {
      const T ratio = (squared_distance(shared.charge[j], x) - nearest) * inverse_base;
      const T exponent = shared.log_weight[j] - power * (function.gaussian ? ratio : log_one_plus(ratio));
      if (exponent > largest) {
        const T shrink = exponential(largest - exponent);
        largest = exponent;
        total *= shrink;
        tile_total *= shrink;
#pragma unroll
        for (int k = 0; k < kDim; ++k) {
          sum[k] *= shrink;
          tile_sum[k] *= shrink;
        }
      }
      const T weight = exponential(exponent - largest);
      tile_total += weight;
#pragma unroll
      for (int k = 0; k < kDim; ++k) tile_sum[k] += weight * (shared.charge[j][k] - anchor[k]);
    }
    total += tile_total;
#pragma unroll
    for (int k = 0; k < kDim; ++k) sum[k] += tile_sum[k];
  }
  __syncthreads();  // the tile's memory becomes the merge's
#pragma unroll
  for (int k = 0; k < kDim; ++k) shared.merge[warp][k][lane] = sum[k];
  shared.merge[warp][kDim][lane] = total;
  shared.merge[warp][kDim + 1][lane] = largest;
  __syncthreads();

  // Warp w writes columns w, w + 16, ... of all 32 queries; warp 0 the log-sum-exp.
  T top = shared.merge[0][kDim + 1][lane];
  for (int w = 1; w < kSmallNWarps; ++w)
    top = shared.merge[w][kDim + 1][lane] > top ? shared.merge[w][kDim + 1][lane] : top;
  double all = 0;
  for (int w = 0; w < kSmallNWarps; ++w)
    all += static_cast<double>(shared.merge[w][kDim][lane]) *
           static_cast<double>(exponential(shared.merge[w][kDim + 1][lane] - top));
  const T nan = std::numeric_limits<T>::quiet_NaN();
  if (call.out && inside) {
    for (int k = warp; k < call.dim; k += kSmallNWarps) {
      double merged = 0;
      for (int w = 0; w < kSmallNWarps; ++w)
        merged += static_cast<double>(shared.merge[w][k][lane]) *
                  static_cast<double>(exponential(shared.merge[w][kDim + 1][lane] - top));
      const T here = call.x[row * call.dim + k], y = values(call.charges[where * call.dim + k]);
      const T r_next = call.r_next ? call.r_next[row] : T(0);
      const T out = field_output(call.op, here, y, static_cast<T>(merged / all), static_cast<T>(r), r_next);
      call.out[row * call.dim + k] = good ? out : nan;
    }
  }
  if (call.lse && inside && warp == 0) {
    const double sum_of_all = static_cast<double>(top) + log(all);
    call.lse[row] = good ? sum_of_all + anchor_log_weight(static_cast<double>(nearest), r, total_dim)
                         : std::numeric_limits<double>::quiet_NaN();
  }
}

template <int kDim, class T, class C>
void launch_small_n(const SmallNCall<T, C>& call, Stream stream) {
  launch<small_n_kernel<T, C, kDim>>(ceil_div<int64_t>(call.batch, kWarp), kSmallNThreads,
                                     sizeof(SmallNShared<T, kDim>), stream, call);
}

}  // namespace pfgm
