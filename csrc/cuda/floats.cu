// Float charges of large N on integer tensor cores: kernels/distance_gemm and refine, then as the direct way.
// For many queries: a charge's digits are written anew in each call, which only then costs little beside the
// products.
#include "differences.h"
#include "kernels/distance_gemm.cuh"
#include "kernels/refine.cuh"

namespace pfgm {
namespace {

#if defined(__CUDACC__)
constexpr int64_t kDigitBytes = int64_t{1} << 28;  // of the charges' digits at a time, about
#else
constexpr int64_t kDigitBytes = int64_t{1} << 16;  // tests are small, and shall take several parts
#endif

}  // namespace

bool floats_serves(const FieldCall& call) {
  // A wave of tiles costs the same however few they are, and direct differences by the pair. By count an H100
  // has a wave's six products in 240 us and its charges' digits in 120, direct distances of as many in 620:
  // three quarters of a wave are worth it, a quarter is not.
  const int64_t tiles = gemm_tiles<WideTile>(call.batch, call.count);
  return !call.bytes && !call.is_double && call.center && call.sq_norms && !call.log_weights &&
         call.op != FieldOp::kSecondMoment && call.batch > 64 && call.dim >= 64 && call.dim <= kLongestSum &&
         call.count < (int64_t{1} << 31) && 4 * tiles >= 3 * multiprocessors();
}

void run_floats(const FieldCall& call, Arena& arena) {
  const int64_t B = call.batch, M = call.count, N = call.dim, stride = ceil_div<int64_t>(N, kChunk) * kChunk;
  WeightCall<float, float> weights = weights_of<float, float>(call);
  const auto center = static_cast<const float*>(call.center);
  DigitCall<float> digits{};
  digits.x = weights.x;
  digits.center = center;
  digits.divisor = 1;
  digits.batch = B;
  digits.dim = N;
  digits.stride = stride;
  digits.digits = arena.take<int8_t>(kDigits * B * stride);
  digits.scale = arena.take<double>(B);
  digits.segments = 1;
  digits.residual = arena.take<double>(B);
  digits.norm = arena.take<double>(B);
  digits.sums = arena.take<int>(kDigits * B);
  digits.counters = arena.take<int>(2);
  digits.arrived = arena.take<int>(B);

  const int64_t most = kDigitBytes / (kDigits * stride) / 128 * 128 + 128, rows = M < most ? M : most;
  uint8_t* charge_digits = arena.take<uint8_t>(kDigits * rows * stride);
  double* charge_scale = arena.take<double>(M);
  double* gaps = arena.take<double>(B * M);
  double* least = arena.take<double>(B * groups_of(M));
  const auto differences = take_differences<float>(call, arena, call.op != FieldOp::kLogDensity);
  if (arena.measures()) return;

  launch_split_digits(digits, call.stream);
  for (int64_t first = 0; first < M; first += rows) {
    const int64_t count = M - first < rows ? M - first : rows;
    launch<split_charge_digits_kernel<float>>(
        count, kDigitThreads, sizeof(DigitShared), call.stream,
        ChargeDigitCall<float>{weights.charges + first * N, center, count, N, stride, charge_digits,
                               charge_scale + first});
    DistanceGemmCall gemm{};
    gemm.digits = digits.digits;
    gemm.scale = digits.scale;
    gemm.sq_norms = call.sq_norms + first;
    gemm.gaps = gaps + first;
    gemm.batch = B;
    gemm.count = count;
    gemm.dim = stride;
    gemm.splits = 1;
    gemm.divisor = 1;
    gemm.charge_scale = charge_scale + first;
    gemm.digit_sums = digits.sums;
    gemm.row_length = M;
    const auto next = [&](int digit) {
      gemm.least = digit == kDigits - 1 ? least + first / kGroup : nullptr;
      gemm.charges = charge_digits + digit * count * stride;
      gemm.charge_digit = digit;
      return gemm;
    };
    launch_distance_gemm<WideTile>(next(0), call.stream);
    launch_distance_gemm<TwoDigitTile>(next(1), call.stream);
    launch_distance_gemm<OneDigitTile>(next(2), call.stream);
  }
  launch<refine_kernel>(B, kRefineThreads, sizeof(RefineShared), call.stream,
                        RefineCall{gaps, least, digits.scale, digits.norm, charge_scale, call.sq_norms,
                                   weights.x, weights.r, weights.charges, B, M, N, call.aug_dim});
  weights.gaps = gaps;
  weights.least = least;
  weights.arrived = digits.arrived;
  weights.relative = true;
  finish_by_differences(call, weights, differences);
}

}  // namespace pfgm
