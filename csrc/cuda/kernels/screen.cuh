// After the first digit: which queries surely see one charge. With e = X − 2^16 s D what the first digit
// leaves out of x, the gap between charges j and a is known to 2|e·(b_j − b_a)| ≤ 2 ‖e‖ δ (‖y_j − μ‖ + ‖y_a −
// μ‖) (Cauchy and Schwarz). Where even so every charge but the nearest is beyond the cut of the weights, the
// query is served here: its field is one exact difference. The others are listed, and pay for the other
// digits.
//
// Tiling: `parts` blocks of 256 threads a query, one sweep over a part of its row each; the last of a row
// decides, and copies an open query's other digits to where Hopper's kernel takes them from. In float: what
// that rounds away (kRounding) widens the bounds. Cost: reads 4 bytes a pair and 8 a charge (from L2): two
// conversions-free float operations for the gap, four for its bounds.
#pragma once

#include "distance_gemm.cuh"
#include "weights.cuh"

namespace pfgm {

/// Of a gap in float, in (δ²‖y − μ‖² + 2|X·b|): five roundings of 2^-24 at most, and as many of the bounds
/// themselves.
constexpr float kRounding = 6e-7f;

/// A candidate and the two lowest bounds; the lowest that is not the candidate's own is among them.
struct Bounds {
  float nearest;  // gap
  int charge;     // whose
  float upper;    // what this gap is at most
  float lowest;   // what any gap is at least,
  int owner;      // whose,
  float next;     // and the second lowest
};
__device__ __forceinline__ Bounds merge_bounds(const Bounds& a, const Bounds& b) {
  Bounds result = b.nearest < a.nearest || (b.nearest == a.nearest && b.charge < a.charge) ? b : a;
  const bool other = b.lowest < a.lowest || (b.lowest == a.lowest && b.owner < a.owner);
  result.lowest = other ? b.lowest : a.lowest;
  result.owner = other ? b.owner : a.owner;
  result.next = other ? Minimum{}(b.next, a.lowest) : Minimum{}(a.next, b.lowest);
  return result;
}

struct ScreenCall {
  const int32_t* leading;   // (batch, count)
  const double* scale;      // (batch)
  const double* residual;   // (batch)
  const ChargeNorm* norms;  // (count)
  const float* x;           // (batch, dim)
  const float* r;           // (batch)
  const uint8_t* charges;   // (count, dim)
  int64_t batch, count, dim;
  int parts;
  float divisor, offset;
  double exact_divisor, aug_dim;
  WeightDigits weight_digits;      // or nothing
  RowState* state;                 // (batch)
  Bounds* part;                    // (batch, parts)
  int* arrived;                    // (batch), 0
  double* lse;                     // (batch), or null
  int* proven;                     // (batch)
  int* open;                       // (batch): the queries that are not proven, in no order that matters,
  int* open_count;                 // and their number, 0 before the launch
  const int8_t* digits = nullptr;  // (3, batch, dim)
  int8_t* rest = nullptr;  // (rest_rows(batch), dim): the open queries' other digits by rest_row; or null
};

struct ScreenShared {
  Bounds bounds[kRowWarps];
  double slots[kRowWarps];
  int last, place;
};

/// By one thread: whether a query is proven, from its bounds and the squared distance of the nearest charge.
/// A proven one is served; another's place in the list is returned, or −1.
__device__ __forceinline__ int decide(const ScreenCall& call, int64_t row, const Bounds& all, double squares,
                                      float slack) {
  const double r = static_cast<double>(call.r[row]), total_dim = static_cast<double>(call.dim) + call.aug_dim;
  const WeightFunction<float> function(squares + r * r, r, total_dim);
  const double cut = call.exact_divisor * call.exact_divisor * function.gap_of(weight_cut<float>(call.count));
  const bool good = r > 0 && isfinite(squares + r * r) && isfinite(all.nearest) && isfinite(slack);
  const double others = static_cast<double>(all.owner == all.charge ? all.next : all.lowest);
  const bool proven = good && others - static_cast<double>(all.upper) > cut;
  call.proven[row] = proven ? 1 : 0;
  if (!proven) {
    const int place = atomicAdd(call.open_count, 1);
    call.open[place] = static_cast<int>(row);
    return place;
  }
  call.state[row] = {all.charge, 1.0, 0.0, 0, 1};
  if (call.weight_digits.charge) {
    call.weight_digits.charge[row * kLongestSupport] = all.charge;
    call.weight_digits.weight[row * kLongestSupport] = 1.0f;
  }
  if (call.lse) call.lse[row] = anchor_log_weight(squares, r, total_dim);
  return -1;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads, 4) screen_kernel(ScreenCall call) {
  ScreenShared& shared = shared_memory<ScreenShared>();
  const int64_t row = blockIdx.x / call.parts;
  const int my_part = static_cast<int>(blockIdx.x % call.parts), lane = threadIdx.x % kWarp,
            warp = threadIdx.x / kWarp;
  const float unit = static_cast<float>(-2.0 * 65536 * call.scale[row]);
  const float slack = static_cast<float>(2 * call.residual[row] * (1 + 1e-6));
  const int32_t* leading = call.leading + row * call.count;
  const Part part = part_of(call.count, call.parts, my_part);

  const float infinity = std::numeric_limits<float>::infinity();
  Bounds mine{infinity, 0, infinity, infinity, 0, infinity};
#pragma unroll 4
  for (int j = part.begin + static_cast<int>(threadIdx.x); j < part.end; j += kThreads) {
    const ChargeNorm norm = call.norms[j];
    const float product = unit * static_cast<float>(leading[j]), gap = norm.square + product;
    const float doubt = slack * norm.root + kRounding * (norm.square + fabsf(product)), bound = gap - doubt;
    if (gap < mine.nearest) {
      mine.nearest = gap;
      mine.charge = j;
      mine.upper = gap + doubt;
    }
    if (bound < mine.lowest) {
      mine.next = mine.lowest;
      mine.lowest = bound;
      mine.owner = j;
    } else if (bound < mine.next) {
      mine.next = bound;
    }
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    mine = merge_bounds(
        mine,
        {__shfl_xor_sync(kAllLanes, mine.nearest, offset), __shfl_xor_sync(kAllLanes, mine.charge, offset),
         __shfl_xor_sync(kAllLanes, mine.upper, offset), __shfl_xor_sync(kAllLanes, mine.lowest, offset),
         __shfl_xor_sync(kAllLanes, mine.owner, offset), __shfl_xor_sync(kAllLanes, mine.next, offset)});
  if (lane == 0) shared.bounds[warp] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / kWarp; ++w) mine = merge_bounds(mine, shared.bounds[w]);
    call.part[row * call.parts + my_part] = mine;
  }
  __syncthreads();
  if (!last_block(call.arrived + row, call.parts, shared.last)) return;

  Bounds all = call.part[row * call.parts];
  for (int p = 1; p < call.parts; ++p) all = merge_bounds(all, call.part[row * call.parts + p]);
  const Values<float> values(call.divisor, call.offset);
  const double squares = block_distance<kThreads>(call.charges + all.charge * call.dim,
                                                  call.x + row * call.dim, call.dim, values, shared.slots);
  if (threadIdx.x == 0) shared.place = decide(call, row, all, squares, slack);
  if (!call.rest) return;
  __syncthreads();
  if (shared.place < 0) return;
  using Copied = Vector<uint32_t, 4>;
  constexpr int kCopied = sizeof(Copied);
#pragma unroll
  for (int digit = 1; digit < kDigits; ++digit) {
    const int8_t* from = call.digits + (digit * call.batch + row) * call.dim;
    int8_t* to = call.rest + rest_row(shared.place, digit) * call.dim;
    for (int64_t k = kCopied * threadIdx.x; k < call.dim; k += kCopied * kThreads)
      *reinterpret_cast<Copied*>(to + k) = *reinterpret_cast<const Copied*>(from + k);
  }
}

inline void launch_screen(const ScreenCall& call, Stream stream) {
  launch<screen_kernel<kRowThreads>>(call.batch * call.parts, kRowThreads, sizeof(ScreenShared), stream,
                                     call);
}

}  // namespace pfgm
