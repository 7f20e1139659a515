// A long row's anchor and its distance by direct differences: `segments` blocks a query, each of which finds
// the anchor and the share of its distance that lies in its segment of N. Without it every block of
// weights.cuh does both, which costs nothing where a row is short. Cost: reads 5 bytes an element.
#pragma once

#include "gaps.cuh"
#include "weight_function.cuh"

namespace pfgm {

#if defined(__CUDACC__)
constexpr int64_t kAnchorSegment = 16 * kRowThreads;  // elements: 16 bytes of a charge a thread
constexpr int64_t kShortRow =
    4 * kAnchorSegment;  // elements that a block reads in no more time than a launch takes
#else
constexpr int64_t kAnchorSegment = 1024;  // tests are small, and shall take several segments
constexpr int64_t kShortRow = 4 * kAnchorSegment;
#endif

/// What one block found.
struct AnchorShare {
  Nearest nearest;
  double squares;  // of ‖ρ_a‖²
};

/// Segments of a row: 0 where no block of its own finds its anchor.
inline int anchor_segments(int64_t dim) {
  return dim <= kShortRow ? 0 : static_cast<int>(ceil_div(dim, kAnchorSegment));
}

/// ‖ρ_a‖², in every lane; the order of operations is fixed.
__device__ __forceinline__ double merged_squares(const AnchorShare* shares, int segments) {
  double squares = 0;
  for (int s = static_cast<int>(threadIdx.x) % kWarp; s < segments; s += kWarp) squares += shares[s].squares;
  return warp_reduce(squares, Sum{});
}

struct AnchorCall {
  const double* gaps;      // (batch, count)
  const double* least;     // (batch, groups)
  const float* x;          // (batch, dim)
  const uint8_t* charges;  // (count, dim)
  int64_t batch, count, dim;
  int segments;
  float divisor, offset;
  AnchorShare* anchor;  // (batch, segments)
  const int* proven;    // (batch), or null: not 0 where the query is served already
};

struct AnchorShared {
  double slots[kRowWarps];
  NearestShared<kRowThreads> nearest;
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads) anchor_kernel(AnchorCall call) {
  AnchorShared& shared = shared_memory<AnchorShared>();
  const int64_t row = blockIdx.x / call.segments, segment = blockIdx.x % call.segments;
  if (call.proven && call.proven[row]) return;
  const int64_t length = ceil_div<int64_t>(ceil_div<int64_t>(call.dim, 16), call.segments) * 16,
                begin = segment * length,
                mine = begin + length < call.dim ? length
                       : begin < call.dim        ? call.dim - begin
                                                 : 0;
  const Nearest nearest =
      row_nearest<kThreads>(call.gaps + row * call.count, call.least + row * groups_of(call.count),
                            static_cast<int>(call.count), shared.nearest);
  const Values<float> values(call.divisor, call.offset);
  const double squares =
      block_distance<kThreads>(call.charges + nearest.charge * call.dim + begin,
                               call.x + row * call.dim + begin, mine, values, shared.slots);
  if (threadIdx.x == 0) call.anchor[blockIdx.x] = {nearest, squares};
}

template <int kThreads = kRowThreads>
void launch_anchor(const AnchorCall& call, Stream stream) {
  launch<anchor_kernel<kThreads>>(call.batch * call.segments, kThreads, sizeof(AnchorShared), stream, call);
}

}  // namespace pfgm
