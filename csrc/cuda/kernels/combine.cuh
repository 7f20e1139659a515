// The second product as a sum of differences around the anchor: partial[split][s][i] = Σ_j coefficient^s_ij (y_j − y_a(i)),
// and the kernel that adds the splits and makes an operator's outputs of them.
//
// Tiling: kRows queries × 512 columns a block of 128 threads (4 columns each, a stride of 128 apart), over a part of the
// charges in chunks of 128: charges that no query of the tile weighs are left out by a compacted list. Within a chunk sums are in T,
// chunks are added to a second set of sums, splits in double.
// Cost: 2 operations a (used pair, column); a used charge is read once a tile, coalesced.
#pragma once

#include "../device.h"
#include "../field.h"
#include "weights.cuh"

namespace pfgm {

constexpr int kCombineThreads = 128;
constexpr int kCombineColumns = 4 * kCombineThreads;
constexpr int kCombineChunk = 128;

template <class T, class C>
struct CombineCall {
  const T* coefficients[2];  // (batch, count)
  const C* charges;          // (count, dim)
  const RowState* state;     // (batch)
  T* partial;                // (splits, sets, batch, dim)
  int64_t batch, count, dim, splits;
  T divisor, offset;
};

template <class T, int kSets>
struct CombineShared {
  static constexpr int kRows = 32 / (static_cast<int>(sizeof(T)) * kSets);  // registers: 96 a thread for the sums
  T coefficient[kCombineChunk][kSets * kRows];
  int charge[kCombineChunk];
  int before[kCombineChunk / kWarp];
};

template <class T, class C, int kSets>
__global__ void __launch_bounds__(kCombineThreads, 3) combine_kernel(CombineCall<T, C> call) {
  using Shared = CombineShared<T, kSets>;
  constexpr int kRows = Shared::kRows;
  Shared& shared = shared_memory<Shared>();
  const int64_t column_tiles = ceil_div<int64_t>(call.dim, kCombineColumns);
  const int64_t row_tiles = ceil_div<int64_t>(call.batch, kRows);
  const int64_t row_begin = blockIdx.x % row_tiles * kRows;
  const int64_t column_begin = blockIdx.x / row_tiles % column_tiles * kCombineColumns + threadIdx.x;
  const int64_t split = blockIdx.x / (row_tiles * column_tiles);
  const int64_t part = ceil_div(ceil_div<int64_t>(call.count, kCombineChunk), call.splits) * kCombineChunk;
  const int64_t begin = split * part, end = begin + part < call.count ? begin + part : call.count;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  T anchor[kRows][4], total[kSets][kRows][4];
#pragma unroll
  for (int row = 0; row < kRows; ++row)
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int64_t column = column_begin + c * kCombineThreads;
      const bool inside = row_begin + row < call.batch && column < call.dim;
      anchor[row][c] = inside ? decode(call.charges[call.state[row_begin + row].anchor * call.dim + column], call.divisor, call.offset) : T(0);
#pragma unroll
      for (int s = 0; s < kSets; ++s) total[s][row][c] = 0;
    }
  for (int64_t chunk = begin; chunk < end; chunk += kCombineChunk) {
    const int64_t mine = chunk + threadIdx.x;
    T coefficient[kSets * kRows];
    bool used = false;
#pragma unroll
    for (int i = 0; i < kSets * kRows; ++i) {
      const int64_t row = row_begin + i % kRows;
      coefficient[i] = mine < end && row < call.batch ? call.coefficients[i / kRows][row * call.count + mine] : T(0);
      used = used || coefficient[i] != T(0);  // NaN is not 0
    }
    const unsigned ballot = __ballot_sync(kAllLanes, used);
    if (lane == 0) shared.before[warp] = __popc(ballot);
    __syncthreads();
    int slot = __popc(ballot & ((1u << lane) - 1)), listed = 0;
    for (int w = 0; w < kCombineThreads / kWarp; ++w) {
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
        const int64_t column = column_begin + c * kCombineThreads;
        if (column >= call.dim) continue;
        const T y = decode(charge[column], call.divisor, call.offset);
#pragma unroll
        for (int row = 0; row < kRows; ++row)
#pragma unroll
          for (int s = 0; s < kSets; ++s) sum[s][row][c] += shared.coefficient[at][s * kRows + row] * (y - anchor[row][c]);
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
        const int64_t column = column_begin + c * kCombineThreads;
        if (row_begin + row < call.batch && column < call.dim)
          call.partial[((split * kSets + s) * call.batch + row_begin + row) * call.dim + column] = total[s][row][c];
      }
}

inline int64_t combine_splits(int64_t batch, int64_t count, int64_t dim, int rows) {
  const int64_t tiles = ceil_div<int64_t>(batch, rows) * ceil_div<int64_t>(dim, kCombineColumns);
  int64_t splits = 1;
  while (tiles * splits < 4 * multiprocessors() && count / (2 * splits) >= kCombineChunk && splits < 32) splits *= 2;
  return splits;
}

template <int kSets, class T, class C>
void launch_combine(const CombineCall<T, C>& call, Stream stream) {
  using Shared = CombineShared<T, kSets>;
  const int64_t tiles = ceil_div<int64_t>(call.batch, Shared::kRows) * ceil_div<int64_t>(call.dim, kCombineColumns);
  launch(combine_kernel<T, C, kSets>, tiles * call.splits, kCombineThreads, sizeof(Shared), stream, call);
}

// ---- outputs -----------------------------------------------------------------------------------------------------------

template <class T, class C>
struct FinishCall {
  Wanted wanted;
  const T* x;             // (batch, dim)
  const T* r;             // (batch)
  const T* r_next;        // (batch), step
  const C* charges;       // (count, dim)
  const RowState* state;  // (batch)
  const T* partial;       // (splits, sets, batch, dim)
  int64_t batch, dim, splits, sets;
  T divisor, offset;
  T* vector;    // (batch, dim)
  T* gradient;  // (batch, dim), score
};

constexpr int kFinishThreads = 256;

/// An operator's result at one element. `sum` is Σ w (y − y_a)/Σ w.
template <class T>
__device__ __forceinline__ T field_output(Wanted wanted, T x, T y, T sum, T r, T r_next) {
  switch (wanted) {
    case Wanted::kMean: return y + sum;
    case Wanted::kStep: return x + (r_next - r) / r * ((x - y) - sum);
    default: return (x - y) - sum;
  }
}

template <class T, class C>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(FinishCall<T, C> call) {
  const int64_t tiles = ceil_div<int64_t>(call.dim, kFinishThreads);
  const int64_t row = blockIdx.x / tiles, column = blockIdx.x % tiles * kFinishThreads + threadIdx.x;
  if (column >= call.dim) return;
  const RowState state = call.state[row];
  const int64_t at = row * call.dim + column, set = call.batch * call.dim;
  const auto merged = [&](int64_t which) {
    double sum = 0;
    for (int64_t s = 0; s < call.splits; ++s) sum += static_cast<double>(call.partial[(s * call.sets + which) * set + at]);
    return sum / state.total;
  };
  const T x = call.x[at], y = decode(call.charges[state.anchor * call.dim + column], call.divisor, call.offset);
  const double sum = merged(0), share = state.rate_total / state.total;
  if (call.wanted == Wanted::kMoment) {
    call.vector[at] = static_cast<T>(sum + (static_cast<double>(y) - static_cast<double>(x)) * share);
    return;
  }
  const T r = call.r[row], r_next = call.r_next ? call.r_next[row] : T(0);
  call.vector[at] = field_output(call.wanted, x, y, static_cast<T>(sum), r, r_next);
  if (call.gradient) call.gradient[at] = static_cast<T>(merged(1) + (static_cast<double>(y) - static_cast<double>(x)) * share);
}

template <class T, class C>
void launch_finish(const FinishCall<T, C>& call, Stream stream) {
  launch(finish_kernel<T, C>, call.batch * ceil_div<int64_t>(call.dim, kFinishThreads), kFinishThreads, 0, stream, call);
}

}  // namespace pfgm
