// After the first digit: which queries surely see one charge. With e = X − 2^16 s D what the first digit
// leaves out of x, the gap between charges j and a is known to 2|e·(b_j − b_a)| ≤ 2 ‖e‖ δ (‖y_j − μ‖ + ‖y_a −
// μ‖) (Cauchy and Schwarz). Where even so every charge but the nearest is beyond the cut of the weights, the
// query is served here: its field is one exact difference. The others are listed, and pay for the other
// digits.
//
// Only the charge of the lowest bound can be that one: a proof needs its gap's upper bound below all others'
// lower ones. So a thread keeps the two lowest, and the upper bound is computed once a row.
//
// Tiling: two queries a block of 256 threads, which share the charges' norms; so many blocks a pair that all
// come together on the device, one sweep over a part of the rows each, four charges of a thread at a time and
// the next four on their way; the last block of a pair decides, half of it a query, and copies an open
// query's other digits to where Hopper's kernel takes them from. In float: what that rounds away (kRounding)
// widens the bounds. Cost: reads 4 bytes a pair and 4 more of the norms (from L2), about 12 operations.
#pragma once

#include "distance_gemm.cuh"
#include "weights.cuh"

namespace pfgm {

/// Of a gap in float, in (δ²‖y − μ‖² + 2|X·b|): five roundings of 2^-24 at most, and as many of the bounds
/// themselves.
constexpr float kRounding = 6e-7f;

/// The two lowest bounds of gaps.
struct Bounds {
  float lowest;  // what any gap is at least,
  int owner;     // whose,
  float next;    // and the second lowest
};
__device__ __forceinline__ Bounds merge_bounds(const Bounds& a, const Bounds& b) {
  const bool other = b.lowest < a.lowest || (b.lowest == a.lowest && b.owner < a.owner);
  return {other ? b.lowest : a.lowest, other ? b.owner : a.owner,
          other ? Minimum{}(b.next, a.lowest) : Minimum{}(a.next, b.lowest)};
}
template <int kLanes = kWarp>
__device__ __forceinline__ Bounds warp_bounds(Bounds mine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    mine = merge_bounds(mine, {__shfl_xor_sync(kAllLanes, mine.lowest, offset),
                               __shfl_xor_sync(kAllLanes, mine.owner, offset),
                               __shfl_xor_sync(kAllLanes, mine.next, offset)});
  return mine;
}

struct ScreenCall {
  const int32_t* leading;  // (batch, count)
  const double* scale;     // (batch)
  const double* residual;  // (batch, residuals): squares
  int residuals;
  const ChargeNorm* norms;  // (count)
  const float* x;           // (batch, dim)
  const float* r;           // (batch)
  const uint8_t* charges;   // (count, dim)
  int64_t batch, count, dim;
  int parts;
  float divisor, offset;
  double exact_divisor, aug_dim;
  RowState* state;       // (batch)
  Bounds* part;          // (batch, parts)
  int* arrived;          // (batch), 0
  double* lse;           // (batch), or null
  int* proven;           // (batch)
  int* open;             // (batch): the queries that are not proven, in no order that matters,
  int* open_count;       // and their number, 0 before the launch
  const int8_t* digits;  // (3, batch, dim)
  int8_t* rest;          // (rest_rows(batch), dim): the open queries' other digits by rest_row; or null
};

constexpr int kScreenRows = 2;    // queries a block
constexpr int kScreenBlocks = 4;  // that share a multiprocessor

inline int screen_parts(int64_t batch, int64_t count) {
  return resident_parts(ceil_div<int64_t>(batch, kScreenRows), count, kScreenBlocks);
}

struct ScreenShared {
  Bounds bounds[kScreenRows][kRowWarps];
  double squares[kRowWarps];
  int last;
  int place[kScreenRows];  // in the list of open queries, or −1
};

/// How a query's gaps are made of the first products.
struct ScreenRow {
  float unit, slack;
  __device__ ScreenRow(double scale, double squares_left_out)
      : unit(static_cast<float>(-2.0 * 65536 * scale)),
        slack(static_cast<float>(2 * sqrt(squares_left_out) * (1 + 1e-6))) {}
  struct Gap {
    float gap, doubt;
  };
  __device__ __forceinline__ Gap gap(int32_t product_of_digits, ChargeNorm norm) const {
    const float product = unit * static_cast<float>(product_of_digits);
    return {norm.square + product, slack * norm.root + kRounding * (norm.square + fabsf(product))};
  }
};

/// By one thread: whether a query is proven, from its bounds and the squared distance of the charge that owns
/// the lowest. A proven one is served; another's place in the list is returned, or −1.
__device__ __forceinline__ int decide(const ScreenCall& call, int64_t row, const Bounds& all, ScreenRow mine,
                                      double squares) {
  const double r = static_cast<double>(call.r[row]), total_dim = static_cast<double>(call.dim) + call.aug_dim;
  const WeightFunction<float> function(squares + r * r, r, total_dim);
  const double cut = call.exact_divisor * call.exact_divisor * function.gap_of(weight_cut<float>(call.count));
  const auto [gap, doubt] = mine.gap(call.leading[row * call.count + all.owner], call.norms[all.owner]);
  const bool good = r > 0 && isfinite(squares + r * r) && isfinite(all.lowest) && isfinite(mine.slack);
  const bool proven = good && static_cast<double>(all.next) - static_cast<double>(gap + doubt) > cut;
  call.proven[row] = proven ? 1 : 0;
  if (!proven) {
    const int place = atomicAdd(call.open_count, 1);
    call.open[place] = static_cast<int>(row);
    return place;
  }
  call.state[row] = {all.owner, 1.0, 0.0, 0, 0, 0};
  if (call.lse) call.lse[row] = anchor_log_weight(squares, r, total_dim);
  return -1;
}

/// Four charges' products with a block's queries, and norms.
struct ScreenFour {
  int32_t product[kScreenRows][4];
  ChargeNorm norm[4];
};

template <int kThreads>
__global__ void __launch_bounds__(kThreads, kScreenBlocks) screen_kernel(ScreenCall call) {
  static_assert(kScreenRows == 2 && kThreads == kRowThreads);
  ScreenShared& shared = shared_memory<ScreenShared>();
  const int64_t pair = blockIdx.x / call.parts, first_row = pair * kScreenRows;
  const int my_part = static_cast<int>(blockIdx.x % call.parts), lane = threadIdx.x % kWarp,
            warp = threadIdx.x / kWarp;
  const bool whole_pair = first_row + 1 < call.batch;  // else the first query stands for both
  const int64_t second_row = first_row + (whole_pair ? 1 : 0);
  const int32_t* const leading = call.leading + first_row * call.count;
  const int to_second = whole_pair ? static_cast<int>(call.count) : 0;
  const Part part = part_of(call.count, call.parts, my_part);
  const bool aligned = call.count % 4 == 0;  // part and thread begin at multiples of 4
  const auto fetch = [&](int j, ScreenFour& four) {
    if (aligned && j + 4 <= part.end) {
      const auto first = load<int32_t, 4>(leading + j), second = load<int32_t, 4>(leading + to_second + j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        four.product[0][i] = first.at[i];
        four.product[1][i] = second.at[i];
      }
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const auto norms = load<float, 4>(&call.norms[j + i].square);
        four.norm[i] = {norms.at[0], norms.at[1]};
        four.norm[i + 1] = {norms.at[2], norms.at[3]};
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = j + i < part.end ? j + i : part.begin;
        four.product[0][i] = leading[k];
        four.product[1][i] = leading[to_second + k];
        four.norm[i] = call.norms[k];
      }
    }
  };

  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Bounds mine[kScreenRows] = {{kInfinity, 0, kInfinity}, {kInfinity, 0, kInfinity}};
  const int begin = part.begin + 4 * static_cast<int>(threadIdx.x);
  ScreenFour next{};
  if (begin < part.end) fetch(begin, next);  // while the rest of what is needed comes
  const double scale[kScreenRows] = {call.scale[first_row], call.scale[second_row]};
  double left_out[kScreenRows] = {};
#pragma unroll 1
  for (int s = 0; s < call.residuals; ++s) {
    left_out[0] += call.residual[first_row * call.residuals + s];
    left_out[1] += call.residual[second_row * call.residuals + s];
  }
  const ScreenRow rows[kScreenRows] = {{scale[0], left_out[0]}, {scale[1], left_out[1]}};
  for (int first = begin; first < part.end; first += 4 * kThreads) {
    const ScreenFour four = next;
    if (first + 4 * kThreads < part.end) fetch(first + 4 * kThreads, next);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (first + i < part.end)
#pragma unroll
        for (int row = 0; row < kScreenRows; ++row) {
          const auto [gap, doubt] = rows[row].gap(four.product[row][i], four.norm[i]);
          const float bound = gap - doubt;  // where it is NaN `next` falls to `lowest`, and nothing is proven
          mine[row].next = fminf(mine[row].next, fmaxf(mine[row].lowest, bound));
          if (bound < mine[row].lowest) {
            mine[row].lowest = bound;
            mine[row].owner = first + i;
          }
        }
  }
#pragma unroll
  for (int row = 0; row < kScreenRows; ++row) {
    const Bounds all = warp_bounds(mine[row]);
    if (lane == 0) shared.bounds[row][warp] = all;
  }
  __syncthreads();
  if (warp < kScreenRows) {
    const Bounds all = warp_bounds<kRowWarps>(shared.bounds[warp][lane % kRowWarps]);
    if (lane == 0 && first_row + warp < call.batch)
      call.part[(first_row + warp) * call.parts + my_part] = all;
  }
  __syncthreads();
  if (!last_block(call.arrived + pair, call.parts, shared.last)) return;

  // Half of the block a query.
  constexpr int kHalf = kThreads / kScreenRows, kHalfWarps = kHalf / kWarp;
  const int half = static_cast<int>(threadIdx.x) / kHalf, rank = static_cast<int>(threadIdx.x) % kHalf;
  const int64_t row = first_row + (whole_pair ? half : 0);
  const Bounds all =
      warp_bounds(lane < call.parts ? call.part[row * call.parts + lane] : Bounds{kInfinity, 0, kInfinity});
  const Values<float> values(call.divisor, call.offset);
  const double share =
      warp_reduce(distance_share(call.charges + all.owner * call.dim, call.x + row * call.dim,
                                 static_cast<int>(call.dim), values, rank, kHalf),
                  Sum{});
  if (lane == 0) shared.squares[warp] = share;
  __syncthreads();
  if (rank == 0) {
    double squares = 0;
    for (int w = 0; w < kHalfWarps; ++w) squares += shared.squares[half * kHalfWarps + w];
    const bool exists = half <= (whole_pair ? 1 : 0);
    shared.place[half] = exists ? decide(call, row, all, half == 0 ? rows[0] : rows[1], squares) : -1;
  }
  if (!call.rest) return;
  __syncthreads();
  const int place = shared.place[half];
  if (place < 0) return;
  using Copied = Vector<uint32_t, 4>;
  constexpr int kCopied = sizeof(Copied);
#pragma unroll
  for (int digit = 1; digit < kDigits; ++digit) {
    const int8_t* from = call.digits + (digit * call.batch + row) * call.dim;
    int8_t* to = call.rest + rest_row(place, digit) * call.dim;
    for (int64_t k = kCopied * rank; k < call.dim; k += kCopied * kHalf)
      *reinterpret_cast<Copied*>(to + k) = *reinterpret_cast<const Copied*>(from + k);
  }
}

inline void launch_screen(const ScreenCall& call, Stream stream) {
  launch<screen_kernel<kRowThreads>>(ceil_div<int64_t>(call.batch, kScreenRows) * call.parts, kRowThreads,
                                     sizeof(ScreenShared), stream, call);
}

}  // namespace pfgm
