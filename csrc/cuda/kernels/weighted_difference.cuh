// The second product as a sum of differences around the anchor: partial[split][s][i] = Σ_j coefficient^s_ij
// (y_j − y_a(i)).
//
// Only rows that need it: where one charge, the anchor, has all the weight the sum is 0, and most training
// queries are such (`needs_sum`, which finish.cuh asks too). Blocks list the others anew, 256 rows at a time.
//
// Tiling: kRows listed rows × 256 columns a block of 128 threads (2 columns each, a stride of 128 apart),
// over a part of the charges in chunks of 128: charges that no row of the tile weighs are left out by a
// compacted list. kAhead charges are on their way from memory while as many are summed. Within a chunk sums
// are in T, chunks are added to a second set of sums, splits in double. Cost: 2 operations a (row, used
// charge, column); a used charge is read once a tile of 16 rows (float, one set), coalesced, mostly from L2.
#pragma once

#include <type_traits>

#include "../device.h"
#include "../field.h"
#include "weights.cuh"

namespace pfgm {

constexpr int kDifferenceThreads = 128;
constexpr int kDifferenceColumns = 2 * kDifferenceThreads;
constexpr int kDifferenceChunk = 128;
#if defined(__CUDACC__)
constexpr int kListedRows = 256;  // rows whose list one tile is a part of
#else
constexpr int kListedRows = 32;  // tests are small, and shall take several lists
#endif

template <class T, class C>
struct WeightedDifferenceCall {
  const T* coefficients[2];  // (batch, count)
  const C* charges;          // (count, dim)
  const RowState* state;     // (batch)
  T* partial;                // (splits, sets, batch, dim); nothing is written for rows that need no sum
  int64_t batch, count, dim, splits;
  T divisor, offset;
  bool weighted;
};

template <class T, int kSets>
struct WeightedDifferenceShared {
  static constexpr int kAhead = 16 / static_cast<int>(sizeof(T));
  static constexpr int kRows =
      64 / (static_cast<int>(sizeof(T)) * kSets);  // registers: 96 a thread for the sums
  alignas(16) T coefficient[kDifferenceChunk][kSets * kRows];
  int64_t
      charge[kDifferenceChunk + 2 * kAhead];  // where a listed one begins, in elements from the chunk's first
  int before[kDifferenceThreads / kWarp];
  int row[kRows];
};

/// Tiles of a list of rows, and of all: as many as if every row needed its sum.
template <class T, int kSets>
constexpr int kTilesOfList = kListedRows / WeightedDifferenceShared<T, kSets>::kRows;
template <class T, int kSets>
__host__ __device__ __forceinline__ int64_t difference_tiles(int64_t batch) {
  return ceil_div<int64_t>(batch, WeightedDifferenceShared<T, kSets>::kRows);
}

/// How many of the threads before this one in the block say yes, and how many of all.
struct Ranked {
  int before, all;
};
template <int kThreads>
__device__ __forceinline__ Ranked rank(bool yes, int* slots) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned ballot = __ballot_sync(kAllLanes, yes);
  if (lane == 0) slots[warp] = __popc(ballot);
  __syncthreads();
  Ranked result{__popc(ballot & ((1u << lane) - 1)), 0};
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) result.before += slots[w];
    result.all += slots[w];
  }
  return result;
}

template <class T, class C, int kSets>
__global__ void __launch_bounds__(kDifferenceThreads, 3)
    weighted_difference_kernel(WeightedDifferenceCall<T, C> call) {
  using Shared = WeightedDifferenceShared<T, kSets>;
  constexpr int kRows = Shared::kRows, kAhead = Shared::kAhead, kTiles = kTilesOfList<T, kSets>;
  Shared& shared = shared_memory<Shared>();
  const int64_t column_tiles = ceil_div<int64_t>(call.dim, kDifferenceColumns);
  const int64_t row_tiles = difference_tiles<T, kSets>(call.batch);
  const int64_t row_tile = blockIdx.x % row_tiles, split = blockIdx.x / (row_tiles * column_tiles);

  // The tile's rows: those of the list that have a rank in [first, first + kRows).
  const int first = static_cast<int>(row_tile % kTiles) * kRows;
  int rows = -first;
  for (int begin = 0; begin < kListedRows; begin += kDifferenceThreads) {
    const int64_t row = row_tile / kTiles * kListedRows + begin + threadIdx.x;
    const bool needed = begin + static_cast<int>(threadIdx.x) < kListedRows && row < call.batch &&
                        needs_sum(call.state[row], call.weighted);
    const Ranked place = rank<kDifferenceThreads>(needed, shared.before);
    const int slot = rows + place.before;
    if (needed && slot >= 0 && slot < kRows) shared.row[slot] = static_cast<int>(row);
    rows += place.all;
    __syncthreads();
  }
  if (rows <= 0) return;
  rows = rows < kRows ? rows : kRows;

  const int64_t part =
      ceil_div(ceil_div<int64_t>(call.count, kDifferenceChunk), call.splits) * kDifferenceChunk;
  const int64_t begin = split * part, left = call.count - begin;
  const int length = static_cast<int>(left < part ? left : part);
  const int64_t my_column =
      blockIdx.x / row_tiles % column_tiles * kDifferenceColumns + static_cast<int64_t>(threadIdx.x);
  const bool inside[2] = {my_column < call.dim, my_column + kDifferenceThreads < call.dim};
  // A thread's first column; beyond the last the last once more, whose sums nobody writes.
  const C* const column = call.charges + (inside[0] ? my_column : call.dim - 1);
  const Values<T> values(call.divisor, call.offset);
  T anchor[kRows][2], total[kSets][kRows][2];
#pragma unroll
  for (int row = 0; row < kRows; ++row)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      anchor[row][c] =
          row < rows && (c == 0 || inside[1])
              ? values(column[call.state[shared.row[row]].anchor * call.dim + c * kDifferenceThreads])
              : T(0);
#pragma unroll
      for (int s = 0; s < kSets; ++s) total[s][row][c] = 0;
    }

  for (int chunk = 0; chunk < length; chunk += kDifferenceChunk) {
    const int mine = chunk + static_cast<int>(threadIdx.x);
    T coefficient[kSets * kRows];
    bool used = false;
#pragma unroll
    for (int i = 0; i < kSets * kRows; ++i) {
      const int row = i % kRows;
      coefficient[i] = mine < length && row < rows
                           ? call.coefficients[i / kRows][shared.row[row] * call.count + begin + mine]
                           : T(0);
      used = used || coefficient[i] != T(0);  // NaN is not 0
    }
    const Ranked place = rank<kDifferenceThreads>(used, shared.before);
    const int listed = place.all;
    if (used) {
      shared.charge[place.before] = threadIdx.x * call.dim;
      if (place.before == listed - 1)  // for those who fetch beyond the list
        for (int i = 0; i < 2 * kAhead; ++i) shared.charge[listed + i] = threadIdx.x * call.dim;
#pragma unroll
      for (int i = 0; i < kSets * kRows; ++i) shared.coefficient[place.before][i] = coefficient[i];
    }
    for (int i = threadIdx.x; i < kAhead * kSets * kRows; i += kDifferenceThreads) {  // to whole groups
      const int at = listed + i / (kSets * kRows);
      if (at < ceil_div(listed, kAhead) * kAhead) shared.coefficient[at][i % (kSets * kRows)] = 0;
    }
    __syncthreads();
    if (listed == 0) continue;

    const C* const charges = column + (begin + chunk) * call.dim;
    const auto fetch = [&](int at, C(&y)[kAhead][2]) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const C* charge = charges + shared.charge[at + i];
        y[i][0] = charge[0];
        y[i][1] = inside[1] ? charge[kDifferenceThreads] : C(0);
      }
    };
    // For the first kServed rows of the tile, where it has no more.
    const auto sum_chunk = [&](auto served) {
      constexpr int kServed = decltype(served)::value;
      T sum[kSets][kServed][2] = {};
      C next[kAhead][2];
      fetch(0, next);
      for (int at = 0; at < listed; at += kAhead) {
        T y[kAhead][2];
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
#pragma unroll
          for (int c = 0; c < 2; ++c) y[i][c] = values(next[i][c]);
        fetch(at + kAhead, next);
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          constexpr int kLoad = kServed < 4 ? kServed : 4;
#pragma unroll
          for (int s = 0; s < kSets; ++s)
#pragma unroll
            for (int row = 0; row < kServed; row += kLoad) {
              const auto weight = load<T, kLoad>(&shared.coefficient[at + i][s * kRows + row]);
#pragma unroll
              for (int more = 0; more < kLoad; ++more)
#pragma unroll
                for (int c = 0; c < 2; ++c)
                  sum[s][row + more][c] += weight.at[more] * (y[i][c] - anchor[row + more][c]);
            }
        }
      }
#pragma unroll
      for (int s = 0; s < kSets; ++s)
#pragma unroll
        for (int row = 0; row < kServed; ++row)
#pragma unroll
          for (int c = 0; c < 2; ++c) total[s][row][c] += sum[s][row][c];
    };
    if (rows <= kRows / 4) sum_chunk(std::integral_constant<int, kRows / 4>{});
    else if (rows <= kRows / 2) sum_chunk(std::integral_constant<int, kRows / 2>{});
    else sum_chunk(std::integral_constant<int, kRows>{});
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < kSets; ++s)
#pragma unroll
    for (int row = 0; row < kRows; ++row)
#pragma unroll
      for (int c = 0; c < 2; ++c)
        if (row < rows && inside[c])
          call.partial[((split * kSets + s) * call.batch + shared.row[row]) * call.dim + my_column +
                       c * kDifferenceThreads] = total[s][row][c];
}

/// Parts of the charges, so that the blocks fill the device a few times even where a third of the rows need
/// their sums; each part at least one chunk.
template <class T, int kSets>
int64_t weighted_difference_splits(int64_t batch, int64_t count, int64_t dim) {
  const int64_t tiles = difference_tiles<T, kSets>(batch) * ceil_div<int64_t>(dim, kDifferenceColumns);
  int64_t splits = 1;
  while (tiles * splits < 8 * multiprocessors() && count / (2 * splits) >= kDifferenceChunk && splits < 32)
    splits *= 2;
  return splits;
}

template <int kSets, class T, class C>
void launch_weighted_difference(const WeightedDifferenceCall<T, C>& call, Stream stream) {
  using Shared = WeightedDifferenceShared<T, kSets>;
  const int64_t tiles =
      difference_tiles<T, kSets>(call.batch) * ceil_div<int64_t>(call.dim, kDifferenceColumns);
  launch<weighted_difference_kernel<T, C, kSets>>(tiles * call.splits, kDifferenceThreads, sizeof(Shared),
                                                  stream, call);
}

}  // namespace pfgm
