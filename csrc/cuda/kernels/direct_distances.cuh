// Direct differences: gaps[split][i][j] = Σ_k (y_jk − x_ik)², or the projection Σ_k (y_jk − x_ik) u_ik, over
// a part of k.
//
// Tiling: 64 queries × 64 charges a block of 256 threads, 4 × 4 pairs a thread, 32 elements of N at a time
// through shared memory; the next 32 are on their way meanwhile, four elements a load. Each 32 are summed in
// T, then added to a float pair (LongSum): the error does not grow with N. Cost: 2 operations (subtract,
// fused multiply-add) per pair and element, and a fifth more around them; reads charges ⌈B/64⌉ times, queries
// ⌈M/64⌉ times (mostly from L2); writes 8 bytes a pair. Bound by the arithmetic of plain cores: the way for
// everything that has no better.
#pragma once

#include <type_traits>

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
  bool aligned;  // four elements of a row are one load
};

template <class T>
struct DistanceShared {
  alignas(16) T charge[kDistanceDepth][kDistanceTile];
  alignas(16) T query[kDistanceDepth][kDistanceTile];
  alignas(16) T along[kDistanceDepth][kDistanceTile];
};

/// Where in a line of DistanceShared the four rows from 4 `four` on lie, for elements 4 `element_four` to +
/// 3: written along k, read along rows, and a warp meets every bank once in both.
__device__ __forceinline__ int place_of(int four, int element_four) { return 4 * (four ^ element_four); }
static_assert(kDistanceDepth == 4 * 8 && kDistanceTile >= 4 * 8);

/// Elements [k, k + 4) of a row, of which those from `end` on count as 0; where rows are aligned with one
/// load.
template <class T>
__device__ __forceinline__ Vector<T, 4> load_four(const T* row, int64_t k, int64_t end, bool inside,
                                                  bool aligned) {
  Vector<T, 4> four{};
  if (!inside) return four;
  if (aligned) {
    if (k < end) four = load<T, 4>(row + k);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (k + i < end) four.at[i] = row[k + i];
  }
  return four;
}

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

  // A thread brings four elements of every 32nd row.
  constexpr int kStep = kDistanceThreads / 8, kBrought = kDistanceTile / kStep;
  const int my_row = static_cast<int>(threadIdx.x) / 8, my_four = threadIdx.x % 8;
  Vector<C, 4> next_charge[kBrought];
  Vector<T, 4> next_query[kBrought], next_along[kBrought];
  const auto fetch = [&](int64_t k) {
    k += 4 * my_four;
#pragma unroll
    for (int i = 0; i < kBrought; ++i) {
      const int64_t charge = charge_begin + my_row + i * kStep, query = query_begin + my_row + i * kStep;
      next_charge[i] = load_four(call.charges + charge * call.dim, k, end, charge < call.count, call.aligned);
      next_query[i] = load_four(call.x + query * call.dim, k, end, query < call.batch, call.aligned);
      if constexpr (kProject)
        next_along[i] = load_four(call.u + query * call.dim, k, end, query < call.batch, call.aligned);
    }
  };
  const auto put = [&](int64_t k) {
#pragma unroll
    for (int i = 0; i < kBrought; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = my_row + i * kStep, place = place_of(row / 4, my_four) + row % 4;
        T charge = values(next_charge[i].at[e]);
        if constexpr (sizeof(C) == 1)  // the byte 0 is another value
          if (k + 4 * my_four + e >= end || charge_begin + row >= call.count) charge = 0;
        shared.charge[4 * my_four + e][place] = charge;
        shared.query[4 * my_four + e][place] = next_query[i].at[e];
        if constexpr (kProject) shared.along[4 * my_four + e][place] = next_along[i].at[e];
      }
  };

  LongSum<T> total[4][4];
  if (begin < end) fetch(begin);
  for (int64_t k0 = begin; k0 < end; k0 += kDistanceDepth) {
    put(k0);
    __syncthreads();
    if (k0 + kDistanceDepth < end) fetch(k0 + kDistanceDepth);
    T sum[4][4] = {};
#pragma unroll 2
    for (int four = 0; four < kDistanceDepth / 4; ++four) {
      const int charges = place_of(lane_charge, four), queries = place_of(lane_query, four);
#pragma unroll
      for (int k = 4 * four; k < 4 * four + 4; ++k) {
        const auto y = load<T, 4>(&shared.charge[k][charges]), x = load<T, 4>(&shared.query[k][queries]);
        Vector<T, 4> u;
        if constexpr (kProject) u = load<T, 4>(&shared.along[k][queries]);
#pragma unroll
        for (int q = 0; q < 4; ++q)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const T difference = y.at[c] - x.at[q];
            if constexpr (kProject) sum[q][c] += difference * u.at[q];
            else sum[q][c] += difference * difference;
          }
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
  while (tiles * splits < 3 * multiprocessors() && dim / (2 * splits) >= 256 && splits < 8) splits *= 2;
  return splits;
}

template <bool kProject, class T, class C>
void launch_distances(DistanceCall<T, C> call, Stream stream) {
  const auto on = [](const auto* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % alignof(Vector<std::decay_t<decltype(*pointer)>, 4>) == 0;
  };
  call.aligned = call.dim % 4 == 0 && on(call.x) && on(call.charges) && on(call.u);
  const int64_t tiles =
      ceil_div<int64_t>(call.batch, kDistanceTile) * ceil_div<int64_t>(call.count, kDistanceTile);
  launch<distance_kernel<T, C, kProject>>(tiles * call.splits, kDistanceThreads, sizeof(DistanceShared<T>),
                                          stream, call);
}

}  // namespace pfgm
