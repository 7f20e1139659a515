// After the first digit: which queries surely see one charge. With e = X − 2^16 s D what the first digit leaves out of x,
// the gap between charges j and a is known to 2|e·(b_j − b_a)| ≤ 2 ‖e‖ δ (‖y_j − μ‖ + ‖y_a − μ‖) (Cauchy and Schwarz). Where even so every
// charge but the nearest is beyond the cut of the weights, the query is served here: its field is one exact difference.
// The others are listed, and pay for the other digits.
//
// Tiling: one block of 512 threads a query, one sweep. Cost: reads 4 bytes a pair and the charges' norms (from L2).
#pragma once

#include "distance_gemm.cuh"
#include "weights.cuh"

namespace pfgm {

struct ScreenCall {
  const int32_t* leading;   // (batch, count)
  const double* scale;      // (batch)
  const double* residual;   // (batch)
  const double* sq_norms;   // (count)
  const float* x;           // (batch, dim)
  const float* r;           // (batch)
  const uint8_t* charges;   // (count, dim)
  int64_t batch, count, dim;
  float divisor, offset;
  double exact_divisor, aug_dim;
  WeightDigits weight_digits;  // or nothing
  RowState* state;  // (batch)
  double* lse;      // (batch), or null
  int* proven;      // (batch)
  int* open;        // (batch): the queries that are not proven, in no order that matters,
  int* open_count;  // and their number, 0 before the launch
};

struct ScreenShared {
  double slots[kWeightThreads / kWarp];
  double nearest[kWeightThreads / kWarp];
  int64_t where[kWeightThreads / kWarp];
};

static __global__ void __launch_bounds__(kWeightThreads) screen_kernel(ScreenCall call) {
  ScreenShared& shared = shared_memory<ScreenShared>();
  const int64_t row = blockIdx.x;
  const double unit = -2.0 * 65536 * call.scale[row], norm_unit = call.exact_divisor * call.exact_divisor;
  const double slack = 2 * call.residual[row] * call.exact_divisor * (1 + 1e-5);  // the norms are rounded to float below
  const int32_t* leading = call.leading + row * call.count;
  const auto slack_of = [&](int64_t j) { return slack * static_cast<double>(sqrtf(static_cast<float>(call.sq_norms[j]))); };

  // The nearest by the first digit, and the two lowest bounds: the lowest that is not the nearest's own is among them.
  const double infinity = std::numeric_limits<double>::infinity();
  Nearest nearest{infinity, 0}, lowest{infinity, 0};
  double second = infinity;
#pragma unroll 4
  for (int64_t j = threadIdx.x; j < call.count; j += kWeightThreads) {
    const double gap = norm_unit * call.sq_norms[j] + unit * leading[j], bound = gap - slack_of(j);
    nearest = nearer(nearest, {gap, j});
    if (bound < lowest.gap) {
      second = lowest.gap;
      lowest = {bound, j};
    } else if (bound < second) {
      second = bound;
    }
  }
  nearest = block_nearest<kWeightThreads>(nearest, shared.nearest, shared.where);
  const double others = block_nearest<kWeightThreads>({lowest.charge == nearest.charge ? second : lowest.gap, 0}, shared.nearest, shared.where).gap;
  const double squares = block_distance<kWeightThreads>(call.charges + nearest.charge * call.dim, call.x + row * call.dim, call.dim,
                                                        call.divisor, call.offset, shared.slots);
  if (threadIdx.x != 0) return;
  const double r = static_cast<double>(call.r[row]), total_dim = static_cast<double>(call.dim) + call.aug_dim;
  const WeightFunction<float> function(squares + r * r, r, total_dim);
  const double cut = norm_unit * function.gap_of(weight_cut<float>(call.count));
  const bool good = r > 0 && isfinite(squares + r * r) && isfinite(nearest.gap);
  const bool proven = good && others - (nearest.gap + slack_of(nearest.charge)) > cut;
  call.proven[row] = proven ? 1 : 0;
  if (!proven) {
    call.open[atomicAdd(call.open_count, 1)] = static_cast<int>(row);
    return;
  }
  call.state[row] = {nearest.charge, 1.0, 0.0, 1, 0};
  if (call.weight_digits.charge) {
    call.weight_digits.charge[row * kListed] = static_cast<int>(nearest.charge);
    call.weight_digits.weight[row * kListed] = 1.0f;
  }
  if (call.lse) call.lse[row] = anchor_log_weight(squares, r, total_dim);
}

inline void launch_screen(const ScreenCall& call, Stream stream) {
  launch<screen_kernel>(call.batch, kWeightThreads, sizeof(ScreenShared), stream, call);
}

}  // namespace pfgm
