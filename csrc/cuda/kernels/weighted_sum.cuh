// The second product for dense queries on integer tensor cores: partial[split][slot][i] = Σ_j W_j b_ji,
// exact, W a query's weight digits (byte_weights.cuh), b the charges' bytes.
//
// Tiling: 64 dense queries × 3 digits × 128 columns a block of 16 warps, a part of at most 32,768 charges
// (what int32 holds), 64 charges a stage, 3 stages by cp.async. The contracted dimension is the charges',
// along which bytes are not contiguous: a thread reads 4 words of 4 columns and transposes them in registers.
// Cost: 6 integer operations a (dense query, charge, column); charges are read ⌈dense/64⌉ times, weight
// digits ⌈N/128⌉ times.
#pragma once

#include "byte_weights.cuh"
#include "split_digits.cuh"
#include "sum_pieces.cuh"
#include "tensor_core.cuh"

namespace pfgm {

constexpr int kWeightedSumRows = 64;
constexpr int kWeightedSumColumns = 128;
constexpr int kWeightedSumThreads = 512;  // 4 × 4 warps of 16 queries × 3 digits × 32 columns
constexpr int kWeightedSumStages = 3;
constexpr int64_t kWeightedSumLongest = 1 << 15;  // charges of one part: 255 · 255 · 2^15 < 2^31

struct WeightedSumCall {
  const uint8_t* charges;  // (count, dim)
  WeightDigits weight_digits;
  int64_t* partial;  // (splits, batch, dim), a dense query's slot for its row; else pieces (sum_pieces.cuh)
  int64_t batch, count, dim, splits;
  int blocks;  // 0: in splits; else the blocks that share the work in pieces (weighted_sum_hopper.cuh)
};

/// Calls visit(where a partial sum of a dense query's `column` and those behind it lie) for each of them.
template <class Visit>
__device__ __forceinline__ void visit_partial_sums(const WeightedSumCall& call, int dense, int64_t slot,
                                                   int64_t column, Visit visit) {
  if (call.blocks == 0) {
    for (int64_t split = 0; split < call.splits; ++split)
      visit(call.partial + (split * call.batch + slot) * call.dim + column);
    return;
  }
  const SumPieces pieces(dense, call.count, call.dim, call.blocks);
  const int first = static_cast<int>(column / kSumColumns) * pieces.parts;
  for (int tile = first; tile < first + pieces.parts; ++tile) {
    const int end = (tile + 1) * pieces.depth;
    const int group = tile * pieces.depth / pieces.quota, groups = (end - 1) / pieces.quota - group + 1;
    const int64_t* part = call.partial + pieces.offset(tile, group, slot) + column % kSumColumns;
    const int64_t next = pieces.offset(0, 1, 0);
#pragma unroll 4
    for (int i = 0; i < groups; ++i) visit(part + i * next);
  }
}

struct WeightedSumShared {
  uint8_t weights[kWeightedSumStages][kDigits * kWeightedSumRows * kDepth];
  uint8_t charges[kWeightedSumStages][kDepth * kWeightedSumColumns];
};

/// Rows of 128 bytes (8 chunks): the four words that a thread transposes, and its neighbours', lie in 32
/// banks.
__device__ __forceinline__ int swizzled_wide(int row, int chunk) {
  return row * kWeightedSumColumns + (chunk ^ (row >> 2 & 3) * 2) * kChunk;
}

static __global__ void __launch_bounds__(kWeightedSumThreads) weighted_sum_kernel(WeightedSumCall call) {
  WeightedSumShared& shared = shared_memory<WeightedSumShared>();
  const int dense = *call.weight_digits.dense;
  const int64_t row_tiles = ceil_div<int64_t>(call.batch, kWeightedSumRows),
                column_tiles = ceil_div<int64_t>(call.dim, kWeightedSumColumns);
  const int64_t row_begin = blockIdx.x % row_tiles * kWeightedSumRows;
  if (row_begin >= dense) return;
  const int64_t column_begin = blockIdx.x / row_tiles % column_tiles * kWeightedSumColumns;
  const int64_t split = blockIdx.x / (row_tiles * column_tiles);
  const int64_t part = ceil_div(ceil_div<int64_t>(call.count, kDepth), call.splits) * kDepth;
  const int64_t begin = split * part, end = begin + part < call.count ? begin + part : call.count;
  const int stages = begin < end ? static_cast<int>(ceil_div<int64_t>(end - begin, kDepth)) : 0;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_row = warp % 4 * 16, warp_column = warp / 4 * 32;
  const bool idle = row_begin + warp_row >= dense;  // a whole warp, which only copies

  // A thread copies a chunk of one charge, and of one query's digit; half of the threads, of one more query's
  // third digit.
  const int my_row = static_cast<int>(threadIdx.x) / 4, my_chunk = threadIdx.x % 4;
  const bool row_valid = row_begin + my_row % kWeightedSumRows < dense;
  const int64_t query = row_valid ? call.weight_digits.queries[row_begin + my_row % kWeightedSumRows] : 0;
  const int64_t digit_pitch = call.batch * call.weight_digits.stride;
  const uint8_t* weights = call.weight_digits.digits + my_row / kWeightedSumRows * digit_pitch +
                           query * call.weight_digits.stride + begin + my_chunk * kChunk;
  const int my_charge = static_cast<int>(threadIdx.x) / 8, my_column = threadIdx.x % 8;
  const bool column_valid = column_begin + my_column * kChunk < call.dim;
  const uint8_t* charges = call.charges + (begin + my_charge) * call.dim + column_begin + my_column * kChunk;
  int charges_left = static_cast<int>(end - begin) - my_charge;
  const auto fill = [&](int slot) {
    copy_async(shared.weights[slot] + swizzled(my_row, my_chunk), weights, row_valid);
    if (my_row < kWeightedSumRows)
      copy_async(shared.weights[slot] + swizzled(2 * kWeightedSumRows + my_row, my_chunk),
                 weights + 2 * digit_pitch, row_valid);
    copy_async(shared.charges[slot] + swizzled_wide(my_charge, my_column), charges,
               column_valid && charges_left > 0);
    weights += kDepth;
    charges += kDepth * call.dim;
    charges_left -= kDepth;
  };

  const int lane_weight = fragment_lane(), group = lane / 4, quad = lane % 4;
  int32_t sum[kDigits][4][4] = {};
  for (int stage = 0; stage < kWeightedSumStages - 1; ++stage) {
    if (stage < stages) fill(stage);
    commit_copies();
  }
  int slot = 0, free_slot = kWeightedSumStages - 1;
  for (int stage = 0; stage < stages; ++stage) {
    wait_copies<kWeightedSumStages - 2>();
    __syncthreads();  // everybody's copies of this stage are there, and nobody reads the one that is filled
                      // next
    if (stage + kWeightedSumStages - 1 < stages) fill(free_slot);
    commit_copies();
#pragma unroll
    for (int step = 0; step < kDepth / 32; ++step) {
      if (idle) continue;
      // Column 4 group + c of the warp's 32 is column `group` of fragment c.
      uint32_t charge[4][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t word[4], column[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = 32 * step + 16 * half + 4 * quad + i;
          word[i] = *reinterpret_cast<const uint32_t*>(
              shared.charges[slot] + swizzled_wide(row, warp_column / kChunk + group / 4) + group % 4 * 4);
        }
        transpose_bytes(word, column);
#pragma unroll
        for (int c = 0; c < 4; ++c) charge[c][half] = column[c];
      }
#pragma unroll
      for (int digit = 0; digit < kDigits; ++digit) {
        uint32_t weight[4];
        load_matrix(weight, shared.weights[slot] + (digit * kWeightedSumRows + warp_row) * kDepth +
                                (lane_weight ^ 32 * step));
#pragma unroll
        for (int c = 0; c < 4; ++c) multiply<false>(sum[digit][c], weight, charge[c]);
      }
    }
    slot = slot + 1 == kWeightedSumStages ? 0 : slot + 1;
    free_slot = free_slot + 1 == kWeightedSumStages ? 0 : free_slot + 1;
  }
  wait_copies<0>();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = row_begin + warp_row + group + (i >= 2 ? 8 : 0);
    const int64_t column = column_begin + warp_column + 4 * (2 * quad + i % 2);
    if (row >= dense || column >= call.dim) continue;
    int64_t* out = call.partial + (split * call.batch + row) * call.dim + column;
#pragma unroll
    for (int c = 0; c < 4; ++c)
      out[c] = (static_cast<int64_t>(sum[0][c][i]) * 256 + sum[1][c][i]) * 256 + sum[2][c][i];
  }
}

inline int64_t weighted_sum_splits(int64_t batch, int64_t count, int64_t dim) {
  const int64_t tiles =
      ceil_div<int64_t>(batch, kWeightedSumRows) * ceil_div<int64_t>(dim, kWeightedSumColumns);
  int64_t splits = ceil_div<int64_t>(count, kWeightedSumLongest);
  while (tiles * splits < 4 * multiprocessors() && count / (splits + 1) >= 512 && splits < 32) ++splits;
  return splits;
}

inline void launch_weighted_sum(const WeightedSumCall& call, Stream stream) {
  const int64_t tiles =
      ceil_div<int64_t>(call.batch, kWeightedSumRows) * ceil_div<int64_t>(call.dim, kWeightedSumColumns);
  launch<weighted_sum_kernel>(tiles * call.splits, kWeightedSumThreads, sizeof(WeightedSumShared), stream,
                              call);
}

}  // namespace pfgm
