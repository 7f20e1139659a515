// Direct differences: gaps[split][i][j] = Σ_k (y_jk − x_ik)², or the projection Σ_k (y_jk − x_ik) u_ik, over a part of k.
//
// Tiling: 64 queries × 64 charges a block of 256 threads, 4 × 4 pairs a thread, 32 elements of N at a time through shared
// memory. Each 32 are summed in T, then added to a float pair (LongSum): the error does not grow with N.
// Cost: 2 operations (subtract, fused multiply-add) per pair and element; reads charges ⌈B/64⌉ times, queries ⌈M/64⌉ times
// (mostly from L2); writes 8 bytes a pair. Bound by the arithmetic of plain cores: the way for everything that has no better.
#pragma once

#include "../device.h"

namespace pfgm {

constexpr int kDistanceTile = 64;
constexpr int kDistanceDepth = 32;
constexpr int kDistanceThreads = 256;

template <class T, class C>
struct DistanceCall {
  const T* x;        // (batch, dim)
  const C* charges;  // (count, dim)
  const T* u;        // (batch, dim), or null
  double* gaps;      // (splits, batch, count)
  int64_t batch, count, dim, splits;
  T divisor, offset;
};

template <class T>
struct DistanceShared {
  T charge[kDistanceDepth][kDistanceTile + 1];  // padded: written along k, read along charges
  T query[kDistanceDepth][kDistanceTile + 1];
  T along[kDistanceDepth][kDistanceTile + 1];
};

template <class T, class C, bool kProject>
__global__ void __launch_bounds__(kDistanceThreads) distance_kernel(DistanceCall<T, C> call) {
  DistanceShared<T>& shared = shared_memory<DistanceShared<T>>();
  const int64_t charge_tiles = ceil_div<int64_t>(call.count, kDistanceTile);
  const int64_t query_tiles = ceil_div<int64_t>(call.batch, kDistanceTile);
  const int64_t query_begin = blockIdx.x % query_tiles * kDistanceTile;  // neighbours share charges
  const int64_t charge_begin = blockIdx.x / query_tiles % charge_tiles * kDistanceTile;
  const int64_t split = blockIdx.x / (query_tiles * charge_tiles);
  const int64_t part = ceil_div(ceil_div<int64_t>(call.dim, kDistanceDepth), call.splits) * kDistanceDepth;
  const int64_t begin = split * part, end = begin + part < call.dim ? begin + part : call.dim;
  const int lane_charge = threadIdx.x % 16, lane_query = threadIdx.x / 16;

  LongSum<T> total[4][4];
  for (int64_t k0 = begin; k0 < end; k0 += kDistanceDepth) {
#pragma unroll
    for (int i = 0; i < kDistanceTile * kDistanceDepth / kDistanceThreads; ++i) {
      const int row = static_cast<int>(threadIdx.x) / kDistanceDepth + i * (kDistanceThreads / kDistanceDepth);
      const int k = threadIdx.x % kDistanceDepth;
      const bool inside = k0 + k < end;
      const int64_t charge = charge_begin + row, query = query_begin + row;
      shared.charge[k][row] =
          inside && charge < call.count ? decode(call.charges[charge * call.dim + k0 + k], call.divisor, call.offset) : T(0);
      shared.query[k][row] = inside && query < call.batch ? call.x[query * call.dim + k0 + k] : T(0);
      if constexpr (kProject) shared.along[k][row] = inside && query < call.batch ? call.u[query * call.dim + k0 + k] : T(0);
    }
    __syncthreads();
    T sum[4][4] = {};
#pragma unroll 8
    for (int k = 0; k < kDistanceDepth; ++k) {
      T y[4], x[4], u[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        y[i] = shared.charge[k][lane_charge + 16 * i];
        x[i] = shared.query[k][lane_query + 16 * i];
        if constexpr (kProject) u[i] = shared.along[k][lane_query + 16 * i];
      }
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const T difference = y[c] - x[q];
          sum[q][c] += difference * (kProject ? u[q] : difference);
        }
    }
    __syncthreads();
#pragma unroll
    for (int q = 0; q < 4; ++q)
#pragma unroll
      for (int c = 0; c < 4; ++c) total[q][c].add(sum[q][c]);
  }
#pragma unroll
  for (int q = 0; q < 4; ++q)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int64_t query = query_begin + lane_query + 16 * q, charge = charge_begin + lane_charge + 16 * c;
      if (query < call.batch && charge < call.count)
        call.gaps[(split * call.batch + query) * call.count + charge] = total[q][c].value();
    }
}

/// Parts of N, so that the blocks fill the device a few times; each part at least 256 elements.
inline int64_t distance_splits(int64_t batch, int64_t count, int64_t dim) {
  const int64_t tiles = ceil_div<int64_t>(batch, kDistanceTile) * ceil_div<int64_t>(count, kDistanceTile);
  int64_t splits = 1;
  while (tiles * splits < 4 * multiprocessors() && dim / (2 * splits) >= 256 && splits < 8) splits *= 2;
  return splits;
}

template <bool kProject, class T, class C>
void launch_distances(const DistanceCall<T, C>& call, Stream stream) {
  const int64_t tiles = ceil_div<int64_t>(call.batch, kDistanceTile) * ceil_div<int64_t>(call.count, kDistanceTile);
  launch(distance_kernel<T, C, kProject>, tiles * call.splits, kDistanceThreads, sizeof(DistanceShared<T>), stream, call);
}

}  // namespace pfgm
