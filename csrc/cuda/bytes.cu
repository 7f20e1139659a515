// Byte charges of large N on integer tensor cores: kernels/gram, weights (packed), spread. Five launches, none of which waits for
// the host; what a query needs of the second product is decided on the device.
#include "field.h"
#include "kernels/combine.cuh"
#include "kernels/gram.cuh"
#include "kernels/spread.cuh"
#include "kernels/weights.cuh"

namespace pfgm {
namespace {

/// Returns the number of splits of gaps.
template <class Tile>
int64_t run_gram(GramCall gram, const FieldCall& call) {
  gram.splits = gram_splits<Tile>(gram.batch, gram.count, gram.dim);
  launch_gram<Tile>(gram, call.stream);
  return gram.splits;
}

}  // namespace

bool bytes_serves(const FieldCall& call) {
  const bool aligned = call.dim % 16 == 0 && reinterpret_cast<uintptr_t>(call.charges) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(call.x) % 16 == 0 && reinterpret_cast<uintptr_t>(call.vector) % 16 == 0;
  return call.bytes && !call.is_double && call.center && call.sq_norms && call.wanted != Wanted::kMoment && aligned &&
         call.dim >= 64 && call.charges_count < (int64_t{1} << 31);
}

void run_bytes(const FieldCall& call) {
  const auto x = static_cast<const float*>(call.x);
  const auto r = static_cast<const float*>(call.r);
  const auto charges = static_cast<const uint8_t*>(call.charges);
  const float divisor = static_cast<float>(call.divisor), offset = static_cast<float>(call.offset);
  const int64_t B = call.batch, M = call.charges_count, N = call.dim;

  const DigitCall<float> digits{x, static_cast<const float*>(call.center), call.divisor, B, N, call.take<int8_t>(kDigits * B * N),
                                call.take<double>(B), call.take<int>(1)};
  launch(digit_kernel<float>, B, kDigitThreads, sizeof(DigitShared), call.stream, digits);

  const bool slim = B <= SlimGram::kQueries;
  const bool wide = !slim && gram_tiles<WideGram>(B, M) >= multiprocessors();
  const int64_t most_splits = slim   ? gram_splits<SlimGram>(B, M, N)
                              : wide ? gram_splits<WideGram>(B, M, N)
                                     : gram_splits<NarrowGram>(B, M, N);
  const GramCall gram{charges, digits.digits, digits.scale, call.sq_norms, call.take<double>(most_splits * B * M), B, M, N, 1, call.divisor};
  const int64_t splits = slim ? run_gram<SlimGram>(gram, call) : wide ? run_gram<WideGram>(gram, call) : run_gram<NarrowGram>(gram, call);

  const bool sums = call.wanted != Wanted::kLogDensity, score = call.wanted == Wanted::kScore;
  WeightCall<float, uint8_t> weights{gram.gaps, nullptr, call.log_weights, x, r, charges, B, M, N, splits, divisor, offset,
                                     call.aug_dim, call.power, /*relative=*/true, /*gap_unit=*/1 / (call.divisor * call.divisor),
                                     nullptr, nullptr, call.take<RowState>(B), call.lse, static_cast<float*>(call.rate),
                                     static_cast<float*>(call.trace), Packing{}};
  if (!sums) return launch_weights<Coefficients::kWeights>(weights, call.stream);
  if (score) {
    weights.weights = call.take<float>(B * M);
    weights.rates = call.take<float>(B * M);
    launch_weights<Coefficients::kScore>(weights, call.stream);
    const int64_t parts = combine_splits(B, M, N, CombineShared<float, 2>::kRows);
    const CombineCall<float, uint8_t> combine{{weights.weights, weights.rates}, charges, weights.state,
                                              call.take<float>(parts * 2 * B * N), B, M, N, parts, divisor, offset};
    launch_combine<2>(combine, call.stream);
    return launch_finish(FinishCall<float, uint8_t>{call.wanted, x, r, nullptr, charges, weights.state, combine.partial, B, N, parts, 2,
                                                    divisor, offset, static_cast<float*>(call.vector), static_cast<float*>(call.gradient)},
                         call.stream);
  }
  const int64_t stride = ceil_div<int64_t>(M, kDepth) * kDepth;
  weights.packing = {call.take<uint8_t>(kDigits * B * stride), stride, call.take<int>(B * kListed), call.take<float>(B * kListed),
                     digits.heavy, call.take<int>(B)};
  launch_weights<Coefficients::kPacked>(weights, call.stream);
  const int64_t parts = spread_splits(B, M, N);
  const SpreadCall spread{charges, weights.packing, call.take<int64_t>(parts * B * N), B, M, N, parts};
  launch_spread(spread, call.stream);
  launch_byte_finish(ByteFinishCall{call.wanted, x, r, static_cast<const float*>(call.r_next), charges, weights.state, weights.packing,
                                    spread.partial, B, N, parts, divisor, offset, static_cast<float*>(call.vector)},
                     call.stream);
}

}  // namespace pfgm
