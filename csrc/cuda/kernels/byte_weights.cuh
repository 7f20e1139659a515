// From gaps of bytes to weights for integer tensor cores. A sparse query's are a list (sparse_row.cuh gives
// its charges their weights); a dense one's are three rows of bytes, in fixed point around the anchor (whose
// own difference is 0), rounded up or down by a fixed hash so that the error of a sum has no bias. What a
// weight is: weights.cuh.
//
// Tiling: as many blocks of 256 threads a query as come together on the device, one sweep over a part of its
// row each; where the screening left few queries open, these share all blocks. A thread takes four charges at
// a time, and the next four are on their way. Blocks of a row do not wait for each other: the next launch
// merges their parts. Cost: reads 8 bytes a pair once, writes 3; a pair costs one subtraction in double, the
// rest in float: one log1p and one exp if it is not beyond the cut.
#pragma once

#include "weights.cuh"

namespace pfgm {

constexpr int kLongestSupport = 64;          // a sparse query has at most so many charges with a weight
constexpr double kDigitsOfOne = 16777214.0;  // the fixed-point weight of 1: three unsigned digits of 8 bits
constexpr int kByteWeightBlocks = 3;         // that share a multiprocessor

/// What one block found in its part of a row, and of the row.
struct BytePart {
  double total, digit_total;    // Σ weights; Σ of the fixed-point weights
  double squares, largest;      // ‖ρ_a‖²; the log-weight from which weights are measured, beside the anchor's
  int anchor, used;             // used: charges with a weight above 0
  int listed[kLongestSupport];  // these charges, in no order that matters, where they are so few
};

struct WeightDigits {
  uint8_t* digits;  // (3, batch, stride), the most significant first, zeros behind `count`
  int64_t stride;   // of a query's bytes, a multiple of 64
  BytePart* part;   // one a block
  int* charge;      // (batch, kLongestSupport): a sparse query's charges, in their order
  double* squares;  // (batch, segments, kLongestSupport): their distances, each segment's share
  int segments;     // of N
  int* dense;       // the number of dense queries, 0 before the launch
  int* queries;     // (batch): the dense queries, in no order that matters
};

struct ByteWeightCall {
  WeightCall<float, uint8_t> row;
  WeightDigits digits;
  bool screened;          // the queries that are not served yet are listed; else these are all
  const int* open;        // (batch): the list,
  const int* open_count;  // and their number
  int together,
      most_parts;  // blocks that the queries share, where they are fewer; at most so many of them a row
};

/// Blocks that come together on the device.
inline int byte_weights_together() { return kByteWeightBlocks * multiprocessors(); }
inline int most_byte_parts(int64_t count) { return resident_parts(1, count, kMostParts); }

/// How the queries at work share the blocks.
struct RowShare {
  int queries, parts;
};
__device__ __forceinline__ RowShare row_share(const ByteWeightCall& call) {
  if (!call.screened) return {static_cast<int>(call.row.batch), call.row.parts};
  const int queries = *call.open_count,
            parts = queries < call.together ? call.together / Maximum{}(queries, 1) : 1;
  return {queries, parts < call.most_parts ? parts : call.most_parts};
}
__device__ __forceinline__ int64_t row_of(const ByteWeightCall& call, int slot) {
  return call.screened ? call.open[slot] : slot;
}

struct ByteWeightShared {
  int listed[kLongestSupport];
  int used;
  double total[kRowWarps], digit_total[kRowWarps], slots[kRowWarps];
  int warp_used[kRowWarps];
  NearestShared<kRowThreads> nearest;
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads, kByteWeightBlocks) byte_weights_kernel(ByteWeightCall call) {
  ByteWeightShared& shared = shared_memory<ByteWeightShared>();
  const RowShare share = row_share(call);
  const int slot = static_cast<int>(blockIdx.x) / share.parts,
            my_part = static_cast<int>(blockIdx.x) % share.parts;
  if (slot >= share.queries) return;
  const WeightCall<float, uint8_t>& rows = call.row;
  const int64_t row = row_of(call, slot);
  const int count = static_cast<int>(rows.count);
  const double* gaps = rows.gaps + row * rows.count;
  const Part part = part_of(rows.count, share.parts, my_part);
  const bool aligned = reinterpret_cast<uintptr_t>(gaps) % 16 == 0;
  const auto fetch = [&](int first, double (&gap)[4]) {
    if (aligned && first + 4 <= part.end) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const auto two = load<double, 2>(gaps + first + i);
        gap[i] = two.at[0], gap[i + 1] = two.at[1];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        gap[i] = first + i < part.end ? gaps[first + i] : std::numeric_limits<double>::infinity();
    }
  };
  const int begin = part.begin + 4 * static_cast<int>(threadIdx.x);
  double next[4];
  fetch(begin, next);  // while the row's anchor is found
  if (threadIdx.x == 0) shared.used = 0;
  const RowWeights<float> known = row_weights<false>(rows, row, shared);
  __syncthreads();

  LongSum<float> sum;
  int64_t digit_total = 0;
  int used = 0;
  bool full = false;  // the block's list
  uint8_t* const digits = call.digits.digits + row * call.digits.stride;
  const int64_t digit_pitch = rows.batch * call.digits.stride;
  const auto visit = [&](auto gaussian, auto weighted, int j, double from_zero) -> uint32_t {
    const float gap = static_cast<float>(from_zero - known.nearest.gap);  // ≥ 0
    float exponent = known.cut - 1;
    if (decltype(weighted)::value || !(gap > known.gap_cut)) {
      exponent = known.function.template log_weight_of<decltype(gaussian)::value>(gap * known.to_ratio);
      if constexpr (decltype(weighted)::value)
        exponent = static_cast<float>(static_cast<double>(exponent) + rows.log_weights[j] - known.largest);
    }
    float weight = exponent < known.cut ? 0.0f : exponential(exponent);
    if (!known.good) weight = std::numeric_limits<float>::quiet_NaN();
    if (weight == 0.0f) return 0;
    sum.add(weight);
    ++used;
    if (!full) {
      const int at = atomicAdd(&shared.used, 1);
      full = at >= kLongestSupport;
      if (!full) shared.listed[at] = j;
    }
    if (j == known.nearest.charge || !known.good) return 0;
    const float product = weight * static_cast<float>(kDigitsOfOne), whole = floorf(product);
    return static_cast<uint32_t>(whole) + (product - whole > dither(row, j) ? 1 : 0);
  };
  const auto sweep = [&](auto gaussian, auto weighted) {
    for (int first = begin; first < part.end; first += 4 * kThreads) {
      double gap[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) gap[i] = next[i];
      if (first + 4 * kThreads < part.end) fetch(first + 4 * kThreads, next);
      Vector<uint8_t, 4> high, middle, low;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t number = first + i < part.end ? visit(gaussian, weighted, first + i, gap[i]) : 0;
        digit_total += number;
        high.at[i] = static_cast<uint8_t>(number >> 16);
        middle.at[i] = static_cast<uint8_t>(number >> 8);
        low.at[i] = static_cast<uint8_t>(number);
      }
      *reinterpret_cast<Vector<uint8_t, 4>*>(digits + first) = high;
      *reinterpret_cast<Vector<uint8_t, 4>*>(digits + digit_pitch + first) = middle;
      *reinterpret_cast<Vector<uint8_t, 4>*>(digits + 2 * digit_pitch + first) = low;
    }
  };
  using Yes = std::true_type;
  using No = std::false_type;
  if (rows.log_weights) known.function.gaussian ? sweep(Yes{}, Yes{}) : sweep(No{}, Yes{});
  else known.function.gaussian ? sweep(Yes{}, No{}) : sweep(No{}, No{});
  if (my_part == share.parts - 1)
    for (int64_t j = ceil_div(count, 4) * 4 + 4 * threadIdx.x; j < call.digits.stride; j += 4 * kThreads)
      for (int digit = 0; digit < 3; ++digit)
        *reinterpret_cast<uint32_t*>(digits + digit * digit_pitch + j) = 0;

  const double total = warp_reduce(sum.value(), Sum{});
  const double digit_sum = warp_reduce(static_cast<double>(digit_total), Sum{});  // below 2^53: exact
  used = warp_reduce(used, Sum{});
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (threadIdx.x % kWarp == 0) {
    shared.total[warp] = total;
    shared.digit_total[warp] = digit_sum;
    shared.warp_used[warp] = used;
  }
  __syncthreads();
  BytePart& mine = call.digits.part[blockIdx.x];
  if (threadIdx.x < kLongestSupport && static_cast<int>(threadIdx.x) < shared.used)
    mine.listed[threadIdx.x] = shared.listed[threadIdx.x];
  if (threadIdx.x != 0) return;
  double all = 0, all_digits = 0;
  int all_used = 0;
#pragma unroll
  for (int w = 0; w < kRowWarps; ++w) {
    all += shared.total[w];
    all_digits += shared.digit_total[w];
    all_used += shared.warp_used[w];
  }
  mine.total = all;
  mine.digit_total = all_digits;
  mine.squares = known.squares;
  mine.largest = known.largest;
  mine.anchor = known.nearest.charge;
  mine.used = all_used;
}

inline int64_t byte_weights_blocks(const ByteWeightCall& call) {
  if (!call.screened) return call.row.batch * call.row.parts;
  return call.row.batch > call.together ? call.row.batch : call.together;
}

inline void launch_byte_weights(const ByteWeightCall& call, Stream stream) {
  launch_largest(call.row, stream);
  launch<byte_weights_kernel<kRowThreads>>(byte_weights_blocks(call), kRowThreads, sizeof(ByteWeightShared),
                                           stream, call);
}

}  // namespace pfgm
