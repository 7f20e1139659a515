// Float charges of large N on integer tensor cores: kernels/gram and float_digits, then as the direct way. For many queries: a
// charge's digits are written anew in each call, which only then costs little beside the products.
#include "differences.h"
#include "kernels/float_digits.cuh"
#include "kernels/gram.cuh"

namespace pfgm {
namespace {

#if defined(__CUDACC__)
constexpr int64_t kDigitBytes = int64_t{1} << 28;  // of the charges' digits at a time, about
#else
constexpr int64_t kDigitBytes = int64_t{1} << 16;  // tests are small, and shall take several parts
#endif

}  // namespace

bool floats_serves(const FieldCall& call) {
  return !call.bytes && !call.is_double && call.center && call.sq_norms && !call.log_weights && call.wanted != Wanted::kMoment &&
         call.batch > 64 && call.dim >= 64 && call.dim <= kLongestSum && call.charges_count < (int64_t{1} << 31) &&
         gram_tiles<WideGram>(call.batch, call.charges_count) >= multiprocessors();
}

void run_floats(const FieldCall& call) {
  const int64_t B = call.batch, M = call.charges_count, N = call.dim, stride = ceil_div<int64_t>(N, kChunk) * kChunk;
  WeightCall<float, float> weights = weights_of<float, float>(call);
  const auto center = static_cast<const float*>(call.center);
  DigitCall<float> digits{};
  digits.x = weights.x;
  digits.center = center;
  digits.divisor = 1;
  digits.batch = B;
  digits.dim = N;
  digits.stride = stride;
  digits.digits = call.take<int8_t>(kDigits * B * stride);
  digits.scale = call.take<double>(B);
  digits.residual = call.take<double>(B);
  digits.norm = call.take<double>(B);
  digits.sums = call.take<int>(kDigits * B);
  digits.counters = call.take<int>(2);
  launch(digit_kernel<float>, B, kDigitThreads, sizeof(DigitShared), call.stream, digits);

  const int64_t most = kDigitBytes / (kDigits * stride) / 128 * 128 + 128, rows = M < most ? M : most;
  uint8_t* charge_digits = call.take<uint8_t>(kDigits * rows * stride);
  double* charge_scale = call.take<double>(M);
  double* gaps = call.take<double>(B * M);
  for (int64_t first = 0; first < M; first += rows) {
    const int64_t count = M - first < rows ? M - first : rows;
    launch(charge_digit_kernel, count, kDigitThreads, sizeof(DigitShared), call.stream,
           ChargeDigitCall{weights.charges + first * N, center, count, N, stride, charge_digits, charge_scale + first});
    GramCall gram{};
    gram.digits = digits.digits;
    gram.scale = digits.scale;
    gram.sq_norms = call.sq_norms + first;
    gram.gaps = gaps + first;
    gram.batch = B;
    gram.count = count;
    gram.dim = stride;
    gram.splits = 1;
    gram.divisor = 1;
    gram.charge_scale = charge_scale + first;
    gram.digit_sums = digits.sums;
    gram.row_length = M;
    const auto next = [&](int digit) {
      gram.charges = charge_digits + digit * count * stride;
      gram.charge_digit = digit;
      return gram;
    };
    launch_gram<WideGram>(next(0), call.stream);
    launch_gram<TwoDigitGram>(next(1), call.stream);
    launch_gram<OneDigitGram>(next(2), call.stream);
  }
  launch(refine_kernel, B, kWeightThreads, sizeof(RefineShared), call.stream,
         RefineCall{gaps, digits.scale, digits.norm, charge_scale, call.sq_norms, weights.x, weights.r, weights.charges, B, M, N, call.aug_dim});
  weights.gaps = gaps;
  weights.relative = true;
  finish_by_differences(call, weights);
}

}  // namespace pfgm
