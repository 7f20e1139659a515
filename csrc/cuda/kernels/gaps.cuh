// What the kernels behind a first product know of a row of gaps: its least, by groups of 32 charges, so that
// no row is read only to find its anchor; and how a row is cut over blocks.
//
// The kernels that write gaps in one piece write the groups' least too (a warp's 32 charges, by shuffles).
// Where N was split, merge_gaps_kernel adds the splits in a fixed order, in place, and finds them. Cost:
// reads 8 bytes a pair and split, writes 8.
#pragma once

#include "../device.h"

namespace pfgm {

constexpr int kGroup = 32;        // charges
constexpr int kRowThreads = 256;  // of the kernels that read a row
constexpr int kRowWarps = kRowThreads / kWarp;
constexpr int kMergeThreads = 256;
constexpr int64_t kMostParts = 32;  // of a row: one a lane where they are merged
#if defined(__CUDACC__)
constexpr int64_t kLeastPart = 2048;  // charges of a row that are worth a block
#else
constexpr int64_t kLeastPart = 64;  // tests are small, and shall take several parts
#endif

__host__ __device__ __forceinline__ int64_t groups_of(int64_t count) {
  return ceil_div<int64_t>(count, kGroup);
}

/// Blocks a row: so many that eight a multiprocessor come together, for most rows need little.
inline int64_t row_parts(int64_t batch, int64_t count) {
  const int64_t wanted = ceil_div<int64_t>(8 * multiprocessors(), batch),
                most = ceil_div<int64_t>(count, kLeastPart);
  const int64_t parts = wanted < most ? wanted : most;
  return parts < kMostParts ? parts : kMostParts;
}

/// Blocks a row of a kernel of which `resident` share a multiprocessor: so many that all come together.
inline int resident_parts(int64_t batch, int64_t count, int resident) {
  const int64_t wanted = int64_t{resident} * multiprocessors() / batch,
                most = ceil_div<int64_t>(count, kLeastPart);
  const int64_t parts = wanted < most ? wanted : most;
  return static_cast<int>(parts < 1 ? 1 : parts < kMostParts ? parts : kMostParts);
}

/// The charges of part `part` of `parts`: [begin, end), whole groups but for the last.
struct Part {
  int begin, end;
};
__device__ __forceinline__ Part part_of(int64_t count, int parts, int part) {
  const int64_t length = ceil_div<int64_t>(groups_of(count), parts) * kGroup, begin = part * length;
  return {static_cast<int>(begin < count ? begin : count),
          static_cast<int>(begin + length < count ? begin + length : count)};
}

/// The lesser; NaN is never less.
struct Minimum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

/// A warp's 32 gaps of one group (infinity beyond the last charge): their least, written once.
__device__ __forceinline__ void write_least(double gap, double* least) {
  gap = warp_reduce(gap, Minimum{});
  if (threadIdx.x % kWarp == 0) *least = gap;
}

struct Nearest {
  double gap;
  int charge;
};

/// The smaller gap; of equal ones the lower index, so that the choice does not depend on the order of
/// threads.
__device__ __forceinline__ Nearest nearer(Nearest a, Nearest b) {
  return b.gap < a.gap || (b.gap == a.gap && b.charge < a.charge) ? b : a;
}
__device__ __forceinline__ Nearest warp_nearest(Nearest mine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    mine = nearer(mine, {__shfl_xor_sync(kAllLanes, mine.gap, offset),
                         __shfl_xor_sync(kAllLanes, mine.charge, offset)});
  return mine;
}

template <int kThreads>
struct NearestShared {
  double gaps[kThreads / kWarp];
  int charges[kThreads / kWarp];
};

/// A row's anchor, in every thread: the group of the least gap, then the charge.
template <int kThreads>
__device__ __forceinline__ Nearest row_nearest(const double* gaps, const double* least, int count,
                                               NearestShared<kThreads>& shared) {
  const int groups = static_cast<int>(groups_of(count)), warp = threadIdx.x / kWarp,
            lane = threadIdx.x % kWarp;
  Nearest group{std::numeric_limits<double>::infinity(), 0};
  for (int g = threadIdx.x; g < groups; g += kThreads) group = nearer(group, {least[g], g});
  group = warp_nearest(group);
  if (lane == 0) {
    shared.gaps[warp] = group.gap;
    shared.charges[warp] = group.charge;
  }
  __syncthreads();
  for (int w = 0; w < kThreads / kWarp; ++w) group = nearer(group, {shared.gaps[w], shared.charges[w]});
  const int charge = group.charge * kGroup + lane;
  return warp_nearest(charge < count ? Nearest{gaps[charge], charge}
                                     : Nearest{std::numeric_limits<double>::infinity(), count - 1});
}

struct MergeCall {
  double* gaps;   // (splits, batch, count); the sums are written to the first
  double* least;  // (batch, groups)
  int64_t batch, count, splits;
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads) merge_gaps_kernel(MergeCall call) {
  const int64_t tiles = ceil_div<int64_t>(call.count, kThreads), row = blockIdx.x / tiles;
  const int64_t charge = blockIdx.x % tiles * kThreads + threadIdx.x;
  double sum = std::numeric_limits<double>::infinity();
  if (charge < call.count) {
    double* const gap = call.gaps + row * call.count + charge;
    sum = *gap;
    for (int64_t s = 1; s < call.splits; ++s) sum += gap[s * call.batch * call.count];
    *gap = sum;
  }
  const int64_t group = charge / kGroup;
  if (group < groups_of(call.count))
    write_least(sum, call.least + row * groups_of(call.count) + group);  // a whole warp, or nobody
}

template <int kThreads = kMergeThreads>
void launch_merge_gaps(const MergeCall& call, Stream stream) {
  launch<merge_gaps_kernel<kThreads>>(call.batch * ceil_div<int64_t>(call.count, kThreads), kThreads, 0,
                                      stream, call);
}

}  // namespace pfgm
