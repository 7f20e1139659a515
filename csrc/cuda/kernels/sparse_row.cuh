// A sparse query: a row of few charges with a weight. Their distances and weights by direct differences: what
// the products' rounding could do to near-duplicates is gone.
//
// sparse_row_kernel: `segments` blocks a query that is not served yet. Each merges what byte_weights_kernel's
// blocks found in the row's parts, in their order; the first writes the row's state, and a dense query's lse.
// A sparse query's charges are sorted, and a warp sums a charge's distance in the block's segment of N, up to
// four charges' loads in flight. The anchor alone (most queries) needs nothing more. SparseWeights
// (byte_finish_kernel) merges the segments and weighs the charges, each warp for itself. Cost: 5 bytes an
// element and listed charge, about 24 operations in float.
#pragma once

#include "byte_weights.cuh"

namespace pfgm {

constexpr int64_t kSparseSegment = 16 * kWarp;  // elements of a charge that a warp reads at once
constexpr int kSparseSegments = 32;             // at most, so that few are to be merged
constexpr int kSparseBlocks = 3;                // that share a multiprocessor
constexpr int kSparseCharges = 4;               // of a warp, in flight

inline int sparse_segments(int64_t dim) {
  const int64_t segments = ceil_div(dim, kSparseSegment);
  return static_cast<int>(segments < kSparseSegments ? segments : kSparseSegments);
}

struct SparseRowCall {
  ByteWeightCall weights;
  RowState* state;  // (batch)
  double* lse;      // (batch), or null: the dense queries', and of those that see the anchor alone
};

struct SparseRowShared {
  int listed[kLongestSupport], sorted[kLongestSupport];
};

/// A row's parts: lane p has part p's. Sums in every lane; the order of operations is fixed.
struct MergedParts {
  double total, digit_total;
  int used;                 // of the row
  int mine, before, parts;  // used, of the lane's part and of all before it
};
__device__ __forceinline__ MergedParts merge_byte_parts(const BytePart* part, int parts) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool any = lane < parts;
  const double total = any ? part[lane].total : 0, digit_total = any ? part[lane].digit_total : 0;
  const int mine = any ? part[lane].used : 0;
  int until = mine;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const int other = __shfl_sync(kAllLanes, until, lane >= offset ? lane - offset : lane);
    if (lane >= offset) until += other;
  }
  return {warp_reduce(total, Sum{}),
          warp_reduce(digit_total, Sum{}),
          __shfl_sync(kAllLanes, until, kWarp - 1),
          mine,
          until - mine,
          parts};
}

/// A sparse row's charges in their order, in shared memory. For all threads of a block.
__device__ __forceinline__ void sort_list(const BytePart* part, const MergedParts& all,
                                          SparseRowShared& shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int p = warp; p < all.parts; p += kRowWarps) {
    const int used = __shfl_sync(kAllLanes, all.mine, p), before = __shfl_sync(kAllLanes, all.before, p);
    for (int i = lane; i < used; i += kWarp) shared.listed[before + i] = part[p].listed[i];
  }
  __syncthreads();
  constexpr int kShare = kRowThreads / kLongestSupport;  // threads that count for one charge
  const int at = static_cast<int>(threadIdx.x) / kShare;
  const int charge = at < all.used ? shared.listed[at] : 0;
  int place = 0;
  for (int other = static_cast<int>(threadIdx.x) % kShare; other < all.used; other += kShare)
    place += shared.listed[other] < charge ? 1 : 0;
#pragma unroll
  for (int offset = kShare / 2; offset > 0; offset /= 2) place += __shfl_xor_sync(kAllLanes, place, offset);
  if (threadIdx.x % kShare == 0 && at < all.used) shared.sorted[place] = charge;
  __syncthreads();
}

/// One segment of one query. For all threads of a block.
__device__ __forceinline__ void sparse_row(const SparseRowCall& call, RowShare share, int slot, int segment,
                                           SparseRowShared& shared) {
  const WeightCall<float, uint8_t>& rows = call.weights.row;
  const WeightDigits& digits = call.weights.digits;
  const int64_t row = row_of(call.weights, slot);
  const BytePart* part = digits.part + static_cast<int64_t>(slot) * share.parts;
  const MergedParts all = merge_byte_parts(part, share.parts);
  const bool dense = all.used > kLongestSupport, good = all.total == all.total,
             alone = !good || (all.used == 1 && !rows.log_weights);  // with q it may be another
  if (segment == 0 && threadIdx.x == 0) {
    const int place = dense && good ? atomicAdd(digits.dense, 1) : 0;
    if (dense && good) digits.queries[place] = static_cast<int>(row);
    call.state[row] = {part->anchor,
                       dense || !good ? all.total : 1.0,
                       0.0,
                       static_cast<int64_t>(all.digit_total),
                       alone ? 0 : all.used,
                       place};
    if (call.lse && (dense || alone)) {
      const double r = static_cast<double>(rows.r[row]),
                   total_dim = static_cast<double>(rows.dim) + rows.aug_dim;
      call.lse[row] = part->largest + log(all.total) + anchor_log_weight(part->squares, r, total_dim);
    }
  }
  if (dense || alone) return;

  __syncthreads();  // nobody reads the last query's list
  sort_list(part, all, shared);
  if (segment == 0 && static_cast<int>(threadIdx.x) < all.used)
    digits.charge[row * kLongestSupport + threadIdx.x] = shared.sorted[threadIdx.x];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t length = ceil_div(rows.dim / 16, static_cast<int64_t>(digits.segments)) * 16,
                begin = segment * length, end = begin + length < rows.dim ? begin + length : rows.dim;
  const Values<float> values(rows.divisor, rows.offset);
  const float* x = rows.x + row * rows.dim;
  for (int first = warp; first < all.used; first += kSparseCharges * kRowWarps) {
    SquaredDistance<float> sum[kSparseCharges];
    const uint8_t* charge[kSparseCharges];
#pragma unroll
    for (int i = 0; i < kSparseCharges; ++i) {
      const int at = first + i * kRowWarps;
      charge[i] = rows.charges + shared.sorted[at < all.used ? at : first] * rows.dim;
    }
    for (int64_t k = begin + 16 * lane; k < end; k += kSparseSegment) {
      Vector<uint8_t, 16> bytes[kSparseCharges];
#pragma unroll
      for (int i = 0; i < kSparseCharges; ++i) bytes[i] = load<uint8_t, 16>(charge[i] + k);
#pragma unroll
      for (int quarter = 0; quarter < 4; ++quarter) {
        const auto here = load<float, 4>(x + k + 4 * quarter);
#pragma unroll
        for (int i = 0; i < kSparseCharges; ++i)
          if (first + i * kRowWarps < all.used)  // the same for a warp
#pragma unroll
            for (int c = 0; c < 4; ++c) sum[i].add(values(bytes[i].at[4 * quarter + c]), here.at[c]);
      }
    }
#pragma unroll
    for (int i = 0; i < kSparseCharges; ++i) {
      const int at = first + i * kRowWarps;
      if (at >= all.used) break;
      const double squares = warp_reduce(sum[i].value(), Sum{});
      if (lane == 0) digits.squares[(row * digits.segments + segment) * kLongestSupport + at] = squares;
    }
  }
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads, kSparseBlocks) sparse_row_kernel(SparseRowCall call) {
  SparseRowShared& shared = shared_memory<SparseRowShared>();
  const WeightDigits& digits = call.weights.digits;
  const RowShare share = row_share(call.weights);
  for (int item = static_cast<int>(blockIdx.x); item < share.queries * digits.segments;
       item += static_cast<int>(gridDim.x))
    sparse_row(call, share, item / digits.segments, item % digits.segments, shared);
}

inline void launch_sparse_rows(const SparseRowCall& call, Stream stream) {
  const int64_t items = call.weights.row.batch * call.weights.digits.segments,
                together = kSparseBlocks * multiprocessors();
  launch<sparse_row_kernel<kRowThreads>>(items < together ? items : together, kRowThreads,
                                         sizeof(SparseRowShared), stream, call);
}

/// A sparse query's weights: a lane has the list's charges `lane` and `lane + 32`. Not normalised.
struct SparseWeights {
  int charge[2];
  float weight[2];
  double total, lse;

  __device__ SparseWeights(const WeightDigits& digits, const double* log_weights, int64_t row, int listed,
                           double r, double total_dim) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    double squares[2], exponent[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = lane + half * kWarp;
      charge[half] = at < listed ? digits.charge[row * kLongestSupport + at] : 0;
      squares[half] = at < listed ? 0 : kInfinity;
      if (at < listed) {
#pragma unroll 8
        for (int s = 0; s < digits.segments; ++s)
          squares[half] += digits.squares[(row * digits.segments + s) * kLongestSupport + at];
      }
    }
    const double nearest = warp_reduce(Minimum{}(squares[0], squares[1]), Minimum{});
    const WeightFunction<float> function(nearest + r * r, r, total_dim);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      exponent[half] = -kInfinity;
      if (lane + half * kWarp < listed)
        exponent[half] = static_cast<double>(function.log_weight(squares[half] - nearest)) +
                         (log_weights ? log_weights[charge[half]] : 0.0);
    }
    const double largest = warp_reduce(Maximum{}(exponent[0], exponent[1]), Maximum{});
#pragma unroll
    for (int half = 0; half < 2; ++half)
      weight[half] =
          lane + half * kWarp < listed ? exponential(static_cast<float>(exponent[half] - largest)) : 0.0f;
    total = warp_reduce(static_cast<double>(weight[0]) + static_cast<double>(weight[1]), Sum{});
    lse = largest + log(total) + anchor_log_weight(nearest, r, total_dim);
  }

  /// The list's `at`-th, in every lane.
  __device__ __forceinline__ int charge_at(int at) const {
    return __shfl_sync(kAllLanes, at < kWarp ? charge[0] : charge[1], at % kWarp);
  }
  __device__ __forceinline__ float weight_at(int at) const {
    return __shfl_sync(kAllLanes, at < kWarp ? weight[0] : weight[1], at % kWarp);
  }
};

}  // namespace pfgm
