// Byte charges of large N on integer tensor cores: kernels/gram, screen, weights (packed), spread. Five to seven launches, none of
// which waits for the host; what a query needs, of digits and of the second product, is decided on the device.
#include "differences.h"
#include "field.h"
#include "kernels/gram.cuh"
#include "kernels/gram_hopper.cuh"
#include "kernels/screen.cuh"
#include "kernels/spread.cuh"

namespace pfgm {
namespace {

using Weights = WeightCall<float, uint8_t>;
using Digits = DigitCall<float>;

/// All three digits for all queries.
template <class Tile>
void all_digits(const FieldCall& call, GramCall gram, Weights& weights) {
  weights.splits = gram.splits = gram_splits<Tile>(gram.batch, gram.count, gram.dim);
  weights.gaps = gram.gaps = call.take<double>(gram.splits * gram.batch * gram.count);
  launch_gram<Tile>(gram, call.stream);
}

/// One digit for all queries, the others for those that it does not prove to see one charge.
void digits_as_needed(const FieldCall& call, const Digits& digits, GramCall gram, Weights& weights) {
  const int64_t pairs = gram.batch * gram.count;
  gram.leading = call.take<int32_t>(pairs);
  if (hopper_asked()) launch_hopper_gram(gram, call.stream);
  else if (gram.batch > FirstGram::kQueries) launch_gram<FirstWideGram>(gram, call.stream);
  else launch_gram<FirstGram>(gram, call.stream);
  int* proven = call.take<int>(gram.batch);
  int* open = call.take<int>(gram.batch);
  launch_screen(ScreenCall{gram.leading, digits.scale, digits.residual, gram.sq_norms, weights.x, weights.r, weights.charges,
                           gram.batch, gram.count, gram.dim, weights.divisor, weights.offset, call.divisor, call.aug_dim,
                           weights.packing, weights.state, weights.lse, proven, open, digits.counters + 1},
                call.stream);
  gram.open = open;
  gram.open_count = digits.counters + 1;
  weights.gaps = gram.gaps = call.take<double>(pairs);
  weights.proven = proven;
  launch_gram<RestGram>(gram, call.stream);
}

}  // namespace

bool bytes_serves(const FieldCall& call) {
  const bool aligned = call.dim % 16 == 0 && reinterpret_cast<uintptr_t>(call.charges) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(call.x) % 16 == 0 && reinterpret_cast<uintptr_t>(call.vector) % 16 == 0;
  return call.bytes && !call.is_double && call.center && call.sq_norms && call.wanted != Wanted::kMoment && aligned &&
         call.dim >= 64 && call.charges_count < (int64_t{1} << 31);
}

void run_bytes(const FieldCall& call) {
  const int64_t B = call.batch, M = call.charges_count, N = call.dim;
  const bool sums = call.wanted != Wanted::kLogDensity, score = call.wanted == Wanted::kScore;

  Digits digits{};
  digits.x = static_cast<const float*>(call.x);
  digits.center = static_cast<const float*>(call.center);
  digits.divisor = call.divisor;
  digits.batch = B;
  digits.dim = digits.stride = N;
  digits.digits = call.take<int8_t>(kDigits * B * N);
  digits.scale = call.take<double>(B);
  digits.residual = call.take<double>(B);
  digits.counters = call.take<int>(2);
  launch(digit_kernel<float>, B, kDigitThreads, sizeof(DigitShared), call.stream, digits);

  Weights weights = weights_of<float, uint8_t>(call);
  weights.relative = true;
  weights.gap_unit = 1 / (call.divisor * call.divisor);
  weights.state = call.take<RowState>(B);
  weights.lse = call.lse;
  const int64_t stride = ceil_div<int64_t>(M, kDepth) * kDepth;
  if (sums && !score)
    weights.packing = {call.take<uint8_t>(kDigits * B * stride), stride, call.take<int>(B * kListed), call.take<float>(B * kListed),
                       digits.counters, call.take<int>(B)};

  GramCall gram{};
  gram.charges = weights.charges;
  gram.digits = digits.digits;
  gram.scale = digits.scale;
  gram.sq_norms = call.sq_norms;
  gram.batch = B;
  gram.count = M;
  gram.dim = N;
  gram.splits = 1;
  gram.divisor = call.divisor;
  const bool wide = gram_tiles<WideGram>(B, M) >= multiprocessors();
  if (B <= SlimGram::kQueries) all_digits<SlimGram>(call, gram, weights);
  else if (!wide) all_digits<NarrowGram>(call, gram, weights);
  else if (call.log_weights || score || N > kLongestSum) all_digits<WideGram>(call, gram, weights);
  else digits_as_needed(call, digits, gram, weights);

  if (score || !sums) return finish_by_differences(call, weights);  // two sets of coefficients, or none
  launch_weights<Coefficients::kPacked>(weights, call.stream);
  const int64_t parts = spread_splits(B, M, N);
  const SpreadCall spread{weights.charges, weights.packing, call.take<int64_t>(parts * B * N), B, M, N, parts};
  launch_spread(spread, call.stream);
  launch_byte_finish(ByteFinishCall{call.wanted, weights.x, weights.r, static_cast<const float*>(call.r_next), weights.charges,
                                    weights.state, weights.packing, spread.partial, B, N, parts, weights.divisor, weights.offset,
                                    static_cast<float*>(call.vector)},
                     call.stream);
}

}  // namespace pfgm
