// Float charges for the integer tensor cores of distance_gemm.cuh: Y = y − μ = s_j Q, Q whole numbers of 24
// bits in three signed digits, each kept as an unsigned byte, digit + 128. And what this costs in accuracy,
// made good: refine_kernel.
//
// Six products of digits matter (of nine; what is left out is below the rounding of x and y to 24 bits): all
// three of x's with a charge's first, two with its second, one with its third. A gap then errs by about 0.6
// (s_i ‖y_j − μ‖ + s_j ‖x_i − μ‖), one standard deviation: nothing where the weights are spread, and too much
// close to a charge, or among near-duplicates. There the gaps of all charges that may have a weight are
// computed once more by direct differences.
//
// split_charge_digits_kernel: one block a charge; reads 8 bytes an element (the second time from L1),
// writes 3. refine_kernel: one block of 512 threads a query; reads its row of gaps twice, and the charges
// that it computes anew.
#pragma once

#include "distance_gemm.cuh"
#include "weight_function.cuh"

namespace pfgm {

constexpr int kRefineThreads = 512;

struct RefineCall {
  double* gaps;                // (batch, count)
  double* least;               // (batch, groups)
  const double* scale;         // (batch)
  const double* norm;          // (batch): ‖x − μ‖
  const double* charge_scale;  // (count)
  const double* sq_norms;      // (count)
  const float* x;              // (batch, dim)
  const float* r;              // (batch)
  const float* charges;        // (count, dim)
  int64_t batch, count, dim;
  double aug_dim;
};

struct RefineShared {
  double slots[kRefineThreads / kWarp];
  NearestShared<kRefineThreads> nearest;
  int listed[kRefineThreads];
  int used;
};

constexpr double kGapDeviation = 0.6;  // of a gap's error, in (s_i ‖y_j − μ‖ + s_j ‖x_i − μ‖)
constexpr double kGapSlack = 6;        // deviations: what a gap surely does not err by
constexpr double kSpreadDeviation =
    3e-5;  // of a log-weight's error, that many charges with a weight average away
constexpr double kFewCharges = 64;

static __global__ void __launch_bounds__(kRefineThreads, 2) refine_kernel(RefineCall call) {
  RefineShared& shared = shared_memory<RefineShared>();
  const int64_t row = blockIdx.x;
  const int count = static_cast<int>(call.count), dim = static_cast<int>(call.dim);
  double* gaps = call.gaps + row * call.count;
  const float* x = call.x + row * call.dim;
  const double scale = call.scale[row], norm = call.norm[row];
  const auto deviation = [&](int j) {
    return kGapDeviation * (scale * static_cast<double>(sqrtf(static_cast<float>(call.sq_norms[j]))) +
                            call.charge_scale[j] * norm);
  };

  double* least = call.least + row * groups_of(call.count);
  const Nearest nearest = row_nearest<kRefineThreads>(gaps, least, count, shared.nearest);
  const Values<float> values(1.0f, 0.0f);
  const double squares =
      block_distance<kRefineThreads>(call.charges + nearest.charge * call.dim, x, dim, values, shared.slots);
  const double r = static_cast<double>(call.r[row]), total_dim = dim + call.aug_dim;
  const double base = squares + r * r;
  if (!(r > 0) || !isfinite(base) || !isfinite(nearest.gap)) return;  // the weights make a row of NaN of it
  const WeightFunction<float> function(base, r, total_dim);
  const double slack = kGapSlack * deviation(nearest.charge);
  const double limit =
      nearest.gap + slack + function.gap_of(weight_cut<float>(count) - 1) + slack;  // the nearest may err too
  const auto may_weigh = [&](int j) { return gaps[j] - kGapSlack * deviation(j) <= limit; };
  double candidates = 0, worst = 0;
  for (int j = static_cast<int>(threadIdx.x); j < count; j += kRefineThreads)
    if (may_weigh(j)) {
      candidates += 1;
      worst = Maximum{}(worst, deviation(j));
    }
  candidates = block_reduce<kRefineThreads>(candidates, Sum{}, shared.slots);
  worst = block_reduce<kRefineThreads>(worst, Maximum{}, shared.slots);
  const double error = (worst + slack / kGapSlack) * function.power * function.inverse_base;
  if (candidates < 2 || (candidates > kFewCharges && error <= kSpreadDeviation)) return;

  // A warp a candidate. The nearest keeps its gap, so that all gaps stay distances up to one constant.
  for (int first = 0; first < count; first += kRefineThreads) {
    if (threadIdx.x == 0) shared.used = 0;
    __syncthreads();
    const int mine = first + static_cast<int>(threadIdx.x);
    if (mine < count && may_weigh(mine))
      shared.listed[atomicAdd(&shared.used, 1)] = static_cast<int>(threadIdx.x);
    __syncthreads();
    const int used = shared.used;
    for (int at = static_cast<int>(threadIdx.x) / kWarp; at < used; at += kRefineThreads / kWarp) {
      const int j = first + shared.listed[at];
      const float* charge = call.charges + j * call.dim;
      const double share =
          distance_share(charge, x, dim, values, static_cast<int>(threadIdx.x) % kWarp, kWarp);
      const double sum = warp_reduce(share, Sum{});
      if (threadIdx.x % kWarp == 0 && j != nearest.charge) gaps[j] = nearest.gap + (sum - squares);
    }
    __syncthreads();
    if (used > 0 &&
        mine - static_cast<int>(threadIdx.x) % kWarp < count)  // a whole warp: 32 gaps of which some are new
      write_least(mine < count ? gaps[mine] : std::numeric_limits<double>::infinity(), least + mine / kGroup);
  }
}

}  // namespace pfgm
