// Byte charges of large N on integer tensor cores: kernels/distance_gemm, screen, weights (by_digits),
// spread. Five to seven launches, none of which waits for the host; what a query needs, of digits and of the
// second product, is decided on the device.
#include "differences.h"
#include "field.h"
#include "kernels/distance_gemm.cuh"
#include "kernels/distance_gemm_hopper.cuh"
#include "kernels/finish.cuh"
#include "kernels/screen.cuh"
#include "kernels/weighted_sum.cuh"
#include "kernels/weighted_sum_hopper.cuh"

namespace pfgm {
namespace {

using Weights = WeightCall<float, uint8_t>;
using Digits = DigitCall<float>;

/// One digit for all queries, the others for those that it does not prove to see one charge. `rest`: memory
/// for these where Hopper's kernels are taken, or null.
void digits_as_needed(const FieldCall& call, const Digits& digits, DistanceGemmCall gemm, Weights& weights,
                      Bounds* bounds, int* proven, int* open, int8_t* rest) {
  if (rest) launch_first_by_hopper(gemm, call.stream);
  else if (gemm.batch > FirstTile::kQueries) launch_distance_gemm<FirstWideTile>(gemm, call.stream);
  else launch_distance_gemm<FirstTile>(gemm, call.stream);
  ScreenCall screen{gemm.leading,   digits.scale, digits.residual,    digits.norms,
                    weights.x,      weights.r,    weights.charges,    gemm.batch,
                    gemm.count,     gemm.dim,     weights.parts,      weights.divisor,
                    weights.offset, call.divisor, call.aug_dim,       weights.weight_digits,
                    weights.state,  bounds,       weights.arrived,    weights.lse,
                    proven,         open,         digits.counters + 1};
  screen.digits = gemm.digits;
  screen.rest = rest;
  launch_screen(screen, call.stream);
  gemm.open = open;
  gemm.open_count = digits.counters + 1;
  weights.proven = proven;
  if (rest) launch_rest_by_hopper(gemm, rest, call.stream);
  else launch_distance_gemm<RestTile>(gemm, call.stream);
}

/// How the first product is cut.
enum class Tile { kSlim, kNarrow, kWide, kAsNeeded };

Tile tile_of(const FieldCall& call) {
  if (call.batch <= SlimTile::kQueries) return Tile::kSlim;
  if (gemm_tiles<WideTile>(call.batch, call.count) < multiprocessors()) return Tile::kNarrow;
  const bool all_digits = call.log_weights || call.op == FieldOp::kScore || call.dim > kLongestSum;
  return all_digits ? Tile::kWide : Tile::kAsNeeded;
}

int64_t splits_of(Tile tile, const FieldCall& call) {
  switch (tile) {
    case Tile::kSlim: return gemm_splits<SlimTile>(call.batch, call.count, call.dim);
    case Tile::kNarrow: return gemm_splits<NarrowTile>(call.batch, call.count, call.dim);
    case Tile::kWide: return gemm_splits<WideTile>(call.batch, call.count, call.dim);
    default: return 1;
  }
}

}  // namespace

bool bytes_serves(const FieldCall& call) {
  const bool aligned = call.dim % 16 == 0 && reinterpret_cast<uintptr_t>(call.charges) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(call.x) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(call.out) % 16 == 0;
  return call.bytes && !call.is_double && call.center && call.sq_norms && call.op != FieldOp::kSecondMoment &&
         aligned && call.dim >= 64 && call.count < (int64_t{1} << 31);
}

void run_bytes(const FieldCall& call, Arena& arena) {
  const int64_t B = call.batch, M = call.count, N = call.dim;
  const bool sums = call.op != FieldOp::kLogDensity, score = call.op == FieldOp::kScore,
             by_digits = sums && !score;
  const Tile tile = tile_of(call);

  Digits digits{};
  digits.x = static_cast<const float*>(call.x);
  digits.center = static_cast<const float*>(call.center);
  digits.divisor = call.divisor;
  digits.batch = B;
  digits.dim = digits.stride = N;
  digits.digits = arena.take<int8_t>(kDigits * B * N);
  digits.scale = arena.take<double>(B);
  digits.residual = arena.take<double>(B);
  digits.counters = arena.take<int>(2);
  digits.arrived = arena.take<int>(B);
  digits.listed = by_digits ? arena.take<int>(B) : nullptr;

  Weights weights = weights_of<float, uint8_t>(call);
  weights.relative = true;
  weights.gap_unit = 1 / (call.divisor * call.divisor);
  weights.lse = call.lse;
  weights.arrived = digits.arrived;

  DistanceGemmCall gemm{};
  gemm.charges = weights.charges;
  gemm.digits = digits.digits;
  gemm.scale = digits.scale;
  gemm.sq_norms = call.sq_norms;
  gemm.batch = B;
  gemm.count = M;
  gemm.dim = N;
  gemm.splits = splits_of(tile, call);
  gemm.divisor = call.divisor;
  double* const least = arena.take<double>(B * groups_of(M));
  weights.least = least;
  gemm.least = gemm.splits == 1 ? least : nullptr;
  weights.gaps = gemm.gaps = arena.take<double>(gemm.splits * B * M);
  int *proven = nullptr, *open = nullptr;
  int8_t* rest = nullptr;
  Bounds* bounds = nullptr;
  if (tile == Tile::kAsNeeded) {
    bounds = arena.take<Bounds>(B * weights.parts);
    digits.sq_norms = call.sq_norms;
    digits.norms = arena.take<ChargeNorm>(M);
    digits.count = M;
    gemm.leading = arena.take<int32_t>(B * M);
    proven = arena.take<int>(B);
    open = arena.take<int>(B);
    if (hopper_serves()) rest = arena.take<int8_t>(rest_rows(B) * N);
  }
  const bool by_hopper = by_digits && hopper_serves();
  WeightedSumCall sum{
      weights.charges, {}, nullptr, B, M, N, weighted_sum_splits(B, M, N), by_hopper ? multiprocessors() : 0};
  if (by_digits) {
    const int64_t stride = ceil_div<int64_t>(M, kDepth) * kDepth;
    sum.weight_digits = weights.weight_digits = {arena.take<uint8_t>(kDigits * B * stride),
                                                 stride,
                                                 arena.take<int>(B * kLongestSupport),
                                                 arena.take<float>(B * kLongestSupport),
                                                 digits.listed,
                                                 digits.counters,
                                                 arena.take<int>(B)};
    sum.partial = arena.take<int64_t>(by_hopper ? sum_elements(B, M, N, sum.blocks) : sum.splits * B * N);
  }
  const auto differences = take_differences<float>(call, arena, sums && !by_digits);
  weights.state = differences.state;
  weights.part = differences.part;
  weights.largest = differences.largest;
  if (arena.measures()) return;

  launch_split_digits(digits, call.stream);
  switch (tile) {
    case Tile::kSlim: launch_distance_gemm<SlimTile>(gemm, call.stream); break;
    case Tile::kNarrow: launch_distance_gemm<NarrowTile>(gemm, call.stream); break;
    case Tile::kWide: launch_distance_gemm<WideTile>(gemm, call.stream); break;
    case Tile::kAsNeeded: digits_as_needed(call, digits, gemm, weights, bounds, proven, open, rest); break;
  }
  if (gemm.splits > 1) launch_merge_gaps({gemm.gaps, least, B, M, gemm.splits}, call.stream);
  if (!by_digits)
    return finish_by_differences(call, weights, differences);  // two sets of coefficients, or none
  launch_weights<Coefficients::kWeightDigits>(weights, call.stream);
  if (by_hopper) launch_weighted_sum_hopper(sum, call.stream);
  else launch_weighted_sum(sum, call.stream);
  launch_byte_finish(ByteFinishCall{call.op, weights.x, weights.r, static_cast<const float*>(call.r_next),
                                    weights.charges, weights.state, weights.weight_digits, sum, B, N,
                                    weights.divisor, weights.offset, static_cast<float*>(call.out)},
                     call.stream);
}

}  // namespace pfgm
