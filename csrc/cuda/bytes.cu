// Byte charges of large N on integer tensor cores: kernels/distance_gemm, screen, byte_weights, sparse_row,
// weighted_sum, finish. Six to eight launches, none of which waits for the host; what a query needs, of
// digits and of the second product, is decided on the device.
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
                      ScreenCall screen, int8_t* rest) {
  if (rest) launch_first_by_hopper(gemm, call.stream);
  else if (gemm.batch > FirstTile::kQueries) launch_distance_gemm<FirstWideTile>(gemm, call.stream);
  else launch_distance_gemm<FirstTile>(gemm, call.stream);
  screen.leading = gemm.leading;
  screen.scale = digits.scale;
  screen.residual = digits.residual;
  screen.residuals = digits.segments;
  screen.norms = digits.norms;
  screen.x = weights.x;
  screen.r = weights.r;
  screen.charges = weights.charges;
  screen.batch = gemm.batch;
  screen.count = gemm.count;
  screen.dim = gemm.dim;
  screen.divisor = weights.divisor;
  screen.offset = weights.offset;
  screen.exact_divisor = call.divisor;
  screen.aug_dim = call.aug_dim;
  screen.state = weights.state;
  screen.arrived = weights.arrived;
  screen.lse = weights.lse;
  screen.digits = gemm.digits;
  screen.rest = rest;
  launch_screen(screen, call.stream);
  gemm.open = screen.open;
  gemm.open_count = screen.open_count;
  weights.proven = screen.proven;
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
  digits.segments = digit_segments(N);
  digits.maximum = arena.take<double>(B * digits.segments);
  digits.residual = arena.take<double>(B * digits.segments);
  digits.counters = arena.take<int>(2);
  digits.arrived = arena.take<int>(B);

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
  ScreenCall screen{};
  int8_t* rest = nullptr;
  if (tile == Tile::kAsNeeded) {
    screen.parts = screen_parts(B, M);
    screen.part = arena.take<Bounds>(B * screen.parts);
    screen.proven = arena.take<int>(B);
    screen.open = arena.take<int>(B);
    screen.open_count = digits.counters + 1;
    digits.sq_norms = call.sq_norms;
    digits.norms = arena.take<ChargeNorm>(M);
    digits.count = M;
    gemm.leading = arena.take<int32_t>(B * M);
    if (hopper_serves()) rest = arena.take<int8_t>(rest_rows(B) * N);
  }
  ByteWeightCall byte_weights{};
  AnchorCall anchor{weights.gaps,
                    least,
                    weights.x,
                    weights.charges,
                    B,
                    M,
                    N,
                    anchor_segments(N),
                    weights.divisor,
                    weights.offset,
                    arena.take<AnchorShare>(B * anchor_segments(N)),
                    screen.proven};
  if (anchor.segments > 0) weights.anchor = anchor.anchor;
  weights.segments = anchor.segments;
  const bool by_hopper = by_digits && hopper_serves();
  WeightedSumCall sum{
      weights.charges, {}, nullptr, B, M, N, weighted_sum_splits(B, M, N), by_hopper ? multiprocessors() : 0};
  if (by_digits) {
    weights.parts = resident_parts(B, M, kByteWeightBlocks);
    const int64_t stride = ceil_div<int64_t>(M, kDepth) * kDepth;
    const int segments = sparse_segments(N);
    byte_weights.screened = tile == Tile::kAsNeeded;
    byte_weights.open = screen.open;
    byte_weights.open_count = screen.open_count;
    byte_weights.most_parts = most_byte_parts(M);
    byte_weights.together = byte_weights_together();
    byte_weights.row = weights;
    sum.weight_digits = byte_weights.digits = {arena.take<uint8_t>(kDigits * B * stride),
                                               stride,
                                               arena.take<BytePart>(byte_weights_blocks(byte_weights)),
                                               arena.take<int>(B * kLongestSupport),
                                               arena.take<double>(B * segments * kLongestSupport),
                                               segments,
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
    case Tile::kAsNeeded: digits_as_needed(call, digits, gemm, weights, screen, rest); break;
  }
  if (gemm.splits > 1) launch_merge_gaps({gemm.gaps, least, B, M, gemm.splits}, call.stream);
  launch_anchor(anchor, call.stream);
  if (!by_digits)
    return finish_by_differences(call, weights, differences);  // two sets of coefficients, or none
  byte_weights.row = weights;
  launch_byte_weights(byte_weights, call.stream);
  launch_sparse_rows(SparseRowCall{byte_weights, weights.state, weights.lse}, call.stream);
  if (by_hopper) launch_weighted_sum_hopper(sum, call.stream);
  else launch_weighted_sum(sum, call.stream);
  launch_byte_finish(
      ByteFinishCall{call.op, weights.x, weights.r, static_cast<const float*>(call.r_next), weights.charges,
                     weights.log_weights, weights.state, sum.weight_digits, sum, B, N, weights.divisor,
                     weights.offset, call.aug_dim, weights.lse, static_cast<float*>(call.out)},
      call.stream);
}

}  // namespace pfgm
