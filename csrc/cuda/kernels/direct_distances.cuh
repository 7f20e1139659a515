// Direct differences: gaps[split][i][j] = Σ_k (y_jk − x_ik)², or the projection Σ_k (y_jk − x_ik) u_ik, over
// a part of k.
//
// Tiling: 64 queries × 64 charges a block of 256 threads, 4 × 4 pairs a thread, 32 elements of N at a time
// through shared memory. Each 32 are summed in T, then added to a float pair (LongSum): the error does not
// grow with N. Cost: 2 operations (subtract, fused multiply-add) per pair and element; reads charges ⌈B/64⌉
// times, queries ⌈M/64⌉ times (mostly from L2); writes 8 bytes a pair. Bound by the arithmetic of plain
// cores: the way for everything that has no better.
#pragma once

#include "../device.h"
#include "gaps.cuh"

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
  double* least;     // (batch, groups): the least gap of each 32 charges, where there is one split
  int* arrived;      // (batch): set to 0 for the kernels behind
  int64_t batch, count, dim, splits;
  T divisor, offset;
};

template <class T>
struct DistanceShared {
  // Written along k, read along charges in vectors of four: the padding keeps vectors aligned and spreads the
  // writes over banks.
  static constexpr int kPitch = kDistanceTile + 16 / static_cast<int>(sizeof(T));
  alignas(16) T charge[kDistanceDepth][kPitch];
  alignas(16) T query[kDistanceDepth][kPitch];
  alignas(16) T along[kDistanceDepth][kPitch];
};

template <class T, class C, bool kProject>
__global__ void __launch_bounds__(kDistanceThreads, sizeof(T) == 4 ? 2 : 1)
    distance_kernel(DistanceCall<T, C> call) {
  DistanceShared<T>& shared = shared_memory<DistanceShared<T>>();
  const int64_t charge_tiles = ceil_div<int64_t>(call.count, kDistanceTile);
  const int64_t query_tiles = ceil_div<int64_t>(call.batch, kDistanceTile);
  const int64_t query_begin = blockIdx.x % query_tiles * kDistanceTile;  // neighbours share charges
  const int64_t charge_begin = blockIdx.x / query_tiles % charge_tiles * kDistanceTile;
  const int64_t split = blockIdx.x / (query_tiles * charge_tiles);
  const int64_t part = ceil_div(ceil_div<int64_t>(call.dim, kDistanceDepth), call.splits) * kDistanceDepth;
  const int64_t begin = split * part, end = begin + part < call.dim ? begin + part : call.dim;
  const int lane_charge = threadIdx.x % 16, lane_query = threadIdx.x / 16;
  const Values<T> values(call.divisor, call.offset);

  LongSum<T> total[4][4];
  for (int64_t k0 = begin; k0 < end; k0 += kDistanceDepth) {
#pragma unroll
    for (int i = 0; i < kDistanceTile * kDistanceDepth / kDistanceThreads; ++i) {
      const int row =
          static_cast<int>(threadIdx.x) / kDistanceDepth + i * (kDistanceThreads / kDistanceDepth);
      const int k = threadIdx.x % kDistanceDepth;
      const bool inside = k0 + k < end;
      const int64_t charge = charge_begin + row, query = query_begin + row;
      shared.charge[k][row] =
          inside && charge < call.count ? values(call.charges[charge * call.dim + k0 + k]) : T(0);
      shared.query[k][row] = inside && query < call.batch ? call.x[query * call.dim + k0 + k] : T(0);
      if constexpr (kProject)
        shared.along[k][row] = inside && query < call.batch ? call.u[query * call.dim + k0 + k] : T(0);
    }
    __syncthreads();
    T sum[4][4] = {};
#pragma unroll 8
    for (int k = 0; k < kDistanceDepth; ++k) {
      const auto y = load<T, 4>(&shared.charge[k][4 * lane_charge]),
                 x = load<T, 4>(&shared.query[k][4 * lane_query]);
      Vector<T, 4> u;
      if constexpr (kProject) u = load<T, 4>(&shared.along[k][4 * lane_query]);
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const T difference = y.at[c] - x.at[q];
          if constexpr (kProject) sum[q][c] += difference * u.at[q];
          else sum[q][c] += difference * difference;
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
      const int64_t query = query_begin + 4 * lane_query + q, charge = charge_begin + 4 * lane_charge + c;
      if (query < call.batch && charge < call.count)
        call.gaps[(split * call.batch + query) * call.count + charge] = total[q][c].value();
    }
  if constexpr (!kProject) {
    if (charge_begin == 0 && split == 0 && threadIdx.x < kDistanceTile &&
        query_begin + threadIdx.x < call.batch)
      call.arrived[query_begin + threadIdx.x] = 0;
    if (call.splits > 1) return;
    static_assert(kGroup == 8 * 4);  // eight lanes have a group
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const int64_t query = query_begin + 4 * lane_query + q, first = charge_begin + 4 * lane_charge;
      double least = std::numeric_limits<double>::infinity();
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (first + c < call.count) least = Minimum{}(least, total[q][c].value());
#pragma unroll
      for (int lane = 1; lane < 8; lane *= 2)
        least = Minimum{}(least, __shfl_xor_sync(kAllLanes, least, lane));
      if (lane_charge % 8 == 0 && query < call.batch && first < call.count)
        call.least[query * groups_of(call.count) + first / kGroup] = least;
    }
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
  const int64_t tiles =
      ceil_div<int64_t>(call.batch, kDistanceTile) * ceil_div<int64_t>(call.count, kDistanceTile);
  launch<distance_kernel<T, C, kProject>>(tiles * call.splits, kDistanceThreads, sizeof(DistanceShared<T>),
                                          stream, call);
}

}  // namespace pfgm
