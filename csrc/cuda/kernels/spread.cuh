// The second product for heavy queries on integer tensor cores: partial[split][slot][i] = Σ_j W_j b_ji, exact, W a query's packed
// weights (weights.cuh), b the charges' bytes; and the kernel that makes an operator's output of it, or of a light query's list.
//
// Tiling: 64 heavy queries × 3 digits × 128 columns a block of 16 warps, a part of at most 32,768 charges (what int32 holds),
// 64 charges a stage, 3 stages by cp.async. The contracted dimension is the charges', along which bytes are not contiguous: a
// thread reads 4 words of 4 columns and transposes them in registers.
// Cost: 6 integer operations a (heavy query, charge, column); charges are read ⌈heavy/64⌉ times, packed weights ⌈N/128⌉ times.
#pragma once

#include "combine.cuh"
#include "tensor_core.cuh"
#include "weights.cuh"

namespace pfgm {

constexpr int kSpreadRows = 64;
constexpr int kSpreadColumns = 128;
constexpr int kSpreadThreads = 512;  // 4 × 4 warps of 16 queries × 3 digits × 32 columns
constexpr int kSpreadStages = 3;
constexpr int64_t kSpreadLongest = 1 << 15;  // charges of one part: 255 · 255 · 2^15 < 2^31

struct SpreadCall {
  const uint8_t* charges;  // (count, dim)
  Packing packing;
  int64_t* partial;  // (splits, batch, dim), a heavy query's slot for its row
  int64_t batch, count, dim, splits;
};

struct SpreadShared {
  uint8_t weights[kSpreadStages][kDigits * kSpreadRows * kDepth];
  uint8_t charges[kSpreadStages][kDepth * kSpreadColumns];
};

/// Rows of 128 bytes (8 chunks): the four words that a thread transposes, and its neighbours', lie in 32 banks.
__device__ __forceinline__ int swizzled_wide(int row, int chunk) { return row * kSpreadColumns + (chunk ^ (row >> 2 & 3) * 2) * kChunk; }

static __global__ void __launch_bounds__(kSpreadThreads) spread_kernel(SpreadCall call) {
  SpreadShared& shared = shared_memory<SpreadShared>();
  const int heavy = *call.packing.heavy;
  const int64_t row_tiles = ceil_div<int64_t>(call.batch, kSpreadRows), column_tiles = ceil_div<int64_t>(call.dim, kSpreadColumns);
  const int64_t row_begin = blockIdx.x % row_tiles * kSpreadRows;
  if (row_begin >= heavy) return;
  const int64_t column_begin = blockIdx.x / row_tiles % column_tiles * kSpreadColumns;
  const int64_t split = blockIdx.x / (row_tiles * column_tiles);
  const int64_t part = ceil_div(ceil_div<int64_t>(call.count, kDepth), call.splits) * kDepth;
  const int64_t begin = split * part, end = begin + part < call.count ? begin + part : call.count;
  const int stages = begin < end ? static_cast<int>(ceil_div<int64_t>(end - begin, kDepth)) : 0;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_row = warp % 4 * 16, warp_column = warp / 4 * 32;

  // A thread copies a chunk of one charge, and of one query's digit; half of the threads, of one more query's third digit.
  const int my_row = static_cast<int>(threadIdx.x) / 4, my_chunk = threadIdx.x % 4;
  const bool row_valid = row_begin + my_row % kSpreadRows < heavy;
  const int64_t query = row_valid ? call.packing.queries[row_begin + my_row % kSpreadRows] : 0;
  const int64_t plane = call.batch * call.packing.stride;
  const uint8_t* weights = call.packing.digits + my_row / kSpreadRows * plane + query * call.packing.stride + begin + my_chunk * kChunk;
  const int my_charge = static_cast<int>(threadIdx.x) / 8, my_column = threadIdx.x % 8;
  const bool column_valid = column_begin + my_column * kChunk < call.dim;
  const uint8_t* charges = call.charges + (begin + my_charge) * call.dim + column_begin + my_column * kChunk;
  int charges_left = static_cast<int>(end - begin) - my_charge;
  const auto fill = [&](int slot) {
    copy_async(shared.weights[slot] + swizzled(my_row, my_chunk), weights, row_valid);
    if (my_row < kSpreadRows) copy_async(shared.weights[slot] + swizzled(2 * kSpreadRows + my_row, my_chunk), weights + 2 * plane, row_valid);
    copy_async(shared.charges[slot] + swizzled_wide(my_charge, my_column), charges, column_valid && charges_left > 0);
    weights += kDepth;
    charges += kDepth * call.dim;
    charges_left -= kDepth;
  };

  const int lane_weight = fragment_lane(), group = lane / 4, quad = lane % 4;
  int32_t sum[kDigits][4][4] = {};
  for (int stage = 0; stage < kSpreadStages - 1; ++stage) {
    if (stage < stages) fill(stage);
    commit_copies();
  }
  int slot = 0, free_slot = kSpreadStages - 1;
  for (int stage = 0; stage < stages; ++stage) {
    wait_copies<kSpreadStages - 2>();
    __syncthreads();  // everybody's copies of this stage are there, and nobody reads the one that is filled next
    if (stage + kSpreadStages - 1 < stages) fill(free_slot);
    commit_copies();
#pragma unroll
    for (int step = 0; step < kDepth / 32; ++step) {
      // Column 4 group + c of the warp's 32 is column `group` of fragment c.
      uint32_t charge[4][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t word[4], column[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = 32 * step + 16 * half + 4 * quad + i;
          word[i] = *reinterpret_cast<const uint32_t*>(shared.charges[slot] + swizzled_wide(row, warp_column / kChunk + group / 4) + group % 4 * 4);
        }
        transpose_bytes(word, column);
#pragma unroll
        for (int c = 0; c < 4; ++c) charge[c][half] = column[c];
      }
#pragma unroll
      for (int digit = 0; digit < kDigits; ++digit) {
        uint32_t weight[4];
        load_matrix(weight, shared.weights[slot] + (digit * kSpreadRows + warp_row) * kDepth + (lane_weight ^ 32 * step));
#pragma unroll
        for (int c = 0; c < 4; ++c) multiply<false>(sum[digit][c], weight, charge[c]);
      }
    }
    slot = slot + 1 == kSpreadStages ? 0 : slot + 1;
    free_slot = free_slot + 1 == kSpreadStages ? 0 : free_slot + 1;
  }
  wait_copies<0>();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = row_begin + warp_row + group + (i >= 2 ? 8 : 0);
    const int64_t column = column_begin + warp_column + 4 * (2 * quad + i % 2);
    if (row >= heavy || column >= call.dim) continue;
    int64_t* out = call.partial + (split * call.batch + row) * call.dim + column;
#pragma unroll
    for (int c = 0; c < 4; ++c) out[c] = (static_cast<int64_t>(sum[0][c][i]) * 256 + sum[1][c][i]) * 256 + sum[2][c][i];
  }
}

inline int64_t spread_splits(int64_t batch, int64_t count, int64_t dim) {
  const int64_t tiles = ceil_div<int64_t>(batch, kSpreadRows) * ceil_div<int64_t>(dim, kSpreadColumns);
  int64_t splits = ceil_div<int64_t>(count, kSpreadLongest);
  while (tiles * splits < 4 * multiprocessors() && count / (splits + 1) >= 512 && splits < 32) ++splits;
  return splits;
}

inline void launch_spread(const SpreadCall& call, Stream stream) {
  const int64_t tiles = ceil_div<int64_t>(call.batch, kSpreadRows) * ceil_div<int64_t>(call.dim, kSpreadColumns);
  launch(spread_kernel, tiles * call.splits, kSpreadThreads, sizeof(SpreadShared), stream, call);
}

// ---- outputs -----------------------------------------------------------------------------------------------------------

struct ByteFinishCall {
  Wanted wanted;
  const float* x;          // (batch, dim)
  const float* r;          // (batch)
  const float* r_next;     // (batch), step
  const uint8_t* charges;  // (count, dim)
  const RowState* state;   // (batch)
  Packing packing;
  const int64_t* partial;  // (splits, batch, dim)
  int64_t batch, dim, splits;
  float divisor, offset;
  float* vector;  // (batch, dim)
};

constexpr int kByteFinishThreads = 128;
constexpr int kByteFinishColumns = 4 * kByteFinishThreads;

/// Block `i` serves the i-th query. A heavy one's sum is Σ W (b − b_a) in whole numbers; a light one's Σ w (y − y_a) by differences.
static __global__ void __launch_bounds__(kByteFinishThreads) byte_finish_kernel(ByteFinishCall call) {
  const int64_t tiles = ceil_div<int64_t>(call.dim, kByteFinishColumns);
  const int64_t slot = blockIdx.x / tiles % call.batch;
  const bool heavy_grid = blockIdx.x >= tiles * call.batch;  // the second half of the grid: heavy queries by their slots
  const int heavy = *call.packing.heavy;
  if (heavy_grid && slot >= heavy) return;
  const int64_t row = heavy_grid ? call.packing.queries[slot] : slot;
  const RowState state = call.state[row];
  if (!heavy_grid && state.used > kListed) return;
  const int64_t column = blockIdx.x % tiles * kByteFinishColumns + 4 * threadIdx.x;
  if (column >= call.dim) return;
  using Four = Vector<uint8_t, 4>;
  const Four near = load<uint8_t, 4>(call.charges + state.anchor * call.dim + column);
  float anchor[4];
  double sum[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) anchor[c] = decode(near.at[c], call.divisor, call.offset);
  if (heavy_grid) {
    int64_t whole[4] = {};
    for (int64_t s = 0; s < call.splits; ++s)
#pragma unroll
      for (int c = 0; c < 4; ++c) whole[c] += call.partial[(s * call.batch + slot) * call.dim + column + c];
    const double unit = 1.0 / (kPackedOne * static_cast<double>(call.divisor) * state.total);
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[c] = static_cast<double>(whole[c] - near.at[c] * state.packed) * unit;
  } else {
    float together[4] = {};
    for (int at = 0; at < state.used; ++at) {
      const float weight = call.packing.weight[row * kListed + at];
      const Four bytes = load<uint8_t, 4>(call.charges + call.packing.charge[row * kListed + at] * call.dim + column);
#pragma unroll
      for (int c = 0; c < 4; ++c) together[c] += weight * (decode(bytes.at[c], call.divisor, call.offset) - anchor[c]);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[c] = together[c] / state.total;
  }
  const float r = call.r[row], r_next = call.r_next ? call.r_next[row] : 0.0f;
  const auto x = load<float, 4>(call.x + row * call.dim + column);
  Vector<float, 4> out;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    out.at[c] = field_output(call.wanted, x.at[c], anchor[c], static_cast<float>(sum[c]), r, r_next);
    if (state.total != state.total) out.at[c] = std::numeric_limits<float>::quiet_NaN();
  }
  *reinterpret_cast<Vector<float, 4>*>(call.vector + row * call.dim + column) = out;
}

inline void launch_byte_finish(const ByteFinishCall& call, Stream stream) {
  launch(byte_finish_kernel, 2 * call.batch * ceil_div<int64_t>(call.dim, kByteFinishColumns), kByteFinishThreads, 0, stream, call);
}

}  // namespace pfgm
