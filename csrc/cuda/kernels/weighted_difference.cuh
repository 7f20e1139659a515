// The second product as a sum of differences around the anchor: partial[split][s][i] = Σ_j coefficient^s_ij
// (y_j − y_a(i)).
//
// Tiling: kRows queries × 512 columns a block of 128 threads (4 columns each, a stride of 128 apart), over a
// part of the charges in chunks of 128: charges that no query of the tile weighs are left out by a compacted
// list. Within a chunk sums are in T, chunks are added to a second set of sums, splits in double. Cost: 2
// operations a (used pair, column); a used charge is read once a tile, coalesced.
#pragma once

#include "../device.h"
#include "../field.h"
#include "weights.cuh"

namespace pfgm {

constexpr int kDifferenceThreads = 128;
constexpr int kDifferenceColumns = 4 * kDifferenceThreads;
constexpr int kDifferenceChunk = 128;

template <class T, class C>
struct WeightedDifferenceCall {
  const T* coefficients[2];  // (batch, count)
  const C* charges;          // (count, dim)
  const RowState* state;     // (batch)
  T* partial;                // (splits, sets, batch, dim)
  int64_t batch, count, dim, splits;
  T divisor, offset;
};

template <class T, int kSets>
struct WeightedDifferenceShared {
  static constexpr int kRows =
      32 / (static_cast<int>(sizeof(T)) * kSets);  // registers: 96 a thread for the sums
  T coefficient[kDifferenceChunk][kSets * kRows];
  int charge[kDifferenceChunk];
  int before[kDifferenceChunk / kWarp];
};

template <class T, class C, int kSets>
__global__ void __launch_bounds__(kDifferenceThreads, 3)
    weighted_difference_kernel(WeightedDifferenceCall<T, C> call) {
  using Shared = WeightedDifferenceShared<T, kSets>;
  constexpr int kRows = Shared::kRows;
  Shared& shared = shared_memory<Shared>();
  const int64_t column_tiles = ceil_div<int64_t>(call.dim, kDifferenceColumns);
  const int64_t row_tiles = ceil_div<int64_t>(call.batch, kRows);
  const int64_t row_begin = blockIdx.x % row_tiles * kRows;
  const int64_t column_begin = blockIdx.x / row_tiles % column_tiles * kDifferenceColumns + threadIdx.x;
  const int64_t split = blockIdx.x / (row_tiles * column_tiles);
  const int64_t part =
      ceil_div(ceil_div<int64_t>(call.count, kDifferenceChunk), call.splits) * kDifferenceChunk;
  const int64_t begin = split * part, end = begin + part < call.count ? begin + part : call.count;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  const Values<T> values(call.divisor, call.offset);
  T anchor[kRows][4], total[kSets][kRows][4];
#pragma unroll
  for (int row = 0; row < kRows; ++row)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int64_t column = column_begin + c * kDifferenceThreads;
      const bool inside = row_begin + row < call.batch && column < call.dim;
      anchor[row][c] =
          inside ? values(call.charges[call.state[row_begin + row].anchor * call.dim + column]) : T(0);
#pragma unroll
      for (int s = 0; s < kSets; ++s) total[s][row][c] = 0;
    }
  for (int64_t chunk = begin; chunk < end; chunk += kDifferenceChunk) {
    const int64_t mine = chunk + threadIdx.x;
    T coefficient[kSets * kRows];
    bool used = false;
#pragma unroll
    for (int i = 0; i < kSets * kRows; ++i) {
      const int64_t row = row_begin + i % kRows;
      coefficient[i] =
          mine < end && row < call.batch ? call.coefficients[i / kRows][row * call.count + mine] : T(0);
      used = used || coefficient[i] != T(0);  // NaN is not 0
    }
    const unsigned ballot = __ballot_sync(kAllLanes, used);
    if (lane == 0) shared.before[warp] = __popc(ballot);
    __syncthreads();
    int slot = __popc(ballot & ((1u << lane) - 1)), listed = 0;
    for (int w = 0; w < kDifferenceThreads / kWarp; ++w) {
      if (w < warp) slot += shared.before[w];
      listed += shared.before[w];
    }
    if (used) {
      shared.charge[slot] = static_cast<int>(threadIdx.x);
#pragma unroll
      for (int i = 0; i < kSets * kRows; ++i) shared.coefficient[slot][i] = coefficient[i];
    }
    __syncthreads();
    T sum[kSets][kRows][4] = {};
#pragma unroll 2
    for (int at = 0; at < listed; ++at) {
      const C* charge = call.charges + (chunk + shared.charge[at]) * call.dim;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int64_t column = column_begin + c * kDifferenceThreads;
        if (column >= call.dim) continue;
        const T y = values(charge[column]);
#pragma unroll
        for (int row = 0; row < kRows; ++row)
#pragma unroll
          for (int s = 0; s < kSets; ++s)
            sum[s][row][c] += shared.coefficient[at][s * kRows + row] * (y - anchor[row][c]);
      }
    }
#pragma unroll
    for (int s = 0; s < kSets; ++s)
#pragma unroll
      for (int row = 0; row < kRows; ++row)
#pragma unroll
        for (int c = 0; c < 4; ++c) total[s][row][c] += sum[s][row][c];
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < kSets; ++s)
#pragma unroll
    for (int row = 0; row < kRows; ++row)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int64_t column = column_begin + c * kDifferenceThreads;
        if (row_begin + row < call.batch && column < call.dim)
          call.partial[((split * kSets + s) * call.batch + row_begin + row) * call.dim + column] =
              total[s][row][c];
      }
}

inline int64_t weighted_difference_splits(int64_t batch, int64_t count, int64_t dim, int rows) {
  const int64_t tiles = ceil_div<int64_t>(batch, rows) * ceil_div<int64_t>(dim, kDifferenceColumns);
  int64_t splits = 1;
  while (tiles * splits < 4 * multiprocessors() && count / (2 * splits) >= kDifferenceChunk && splits < 32)
    splits *= 2;
  return splits;
}

template <int kSets, class T, class C>
void launch_weighted_difference(const WeightedDifferenceCall<T, C>& call, Stream stream) {
  using Shared = WeightedDifferenceShared<T, kSets>;
  const int64_t tiles =
      ceil_div<int64_t>(call.batch, Shared::kRows) * ceil_div<int64_t>(call.dim, kDifferenceColumns);
  launch<weighted_difference_kernel<T, C, kSets>>(tiles * call.splits, kDifferenceThreads, sizeof(Shared),
                                                  stream, call);
}

}  // namespace pfgm
