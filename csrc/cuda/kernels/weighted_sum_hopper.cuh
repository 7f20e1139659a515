// The second product for dense queries (weighted_sum.cuh) by Hopper's own means: the same whole numbers.
//
// Tiling: 64 dense queries × 3 digits × 256 columns a tile; a block stays on its multiprocessor and takes its
// pieces of tiles one after another (sum_pieces.cuh). 128 charges a stage, four stages ahead. A warpgroup of
// its own loads: charges by tensor map into the 128-byte swizzle, the weight digits of listed, so scattered,
// queries by asynchronous copies into the same. Two warpgroups multiply 128 columns each: wgmma m64nNk32 with
// the columns as its rows, N = 3 × 16, 32, 48 or 64 queries, as many as the tile has. The charges' bytes are
// not contiguous along the contracted dimension: a thread reads four words of four columns, each once a
// block, transposes them in registers while the last step's product runs, and they are A; the digits are B,
// in shared memory. Cost: as weighted_sum.cuh; charges are read once from device memory, and ⌈dense/64⌉ times
// from L2; weight digits ⌈N/256⌉ times; shared memory is read once a warpgroup for the digits, once for the
// charges.
#pragma once

#include <type_traits>

#include "hopper.cuh"
#include "weighted_sum.cuh"

namespace pfgm {

constexpr int kSumStages = 4;
constexpr int kSumGroups = kSumColumns / kTileDepth;  // multiplying warpgroups, 128 columns each
constexpr int kSumWarps = kSumGroups * kWarpgroup / kWarp;
constexpr int kSumThreads = (kSumGroups + 1) * kWarpgroup;
constexpr int kSumRegisters = 232, kSumLoadRegisters = 40;  // of 168 a thread at the start, by warpgroups
constexpr int kSumCopiesAhead = 2;  // stages of which weight digits are on their way; kSumStages - 2 at most

struct SumHopperShared {
  struct Stage {
    uint8_t charges[kSumGroups][kSumDepth * kTileDepth];  // 128 columns each
    uint8_t weights[kDigits * kSumQueries * kSumDepth];   // row digit × (16, 32 or 48) + query
  } stage[kSumStages];
  Barrier full[kSumStages];   // charges and weight digits have come
  Barrier empty[kSumStages];  // each multiplying warp is done with a stage
};
static_assert(kSumDepth == kTileDepth && sizeof(SumHopperShared::Stage) % kTileAlignment == 0 &&
              sizeof(SumHopperShared::Stage::charges) % kTileAlignment == 0);
constexpr size_t kSumSharedBytes = sizeof(SumHopperShared) + kTileAlignment;  // it begins anywhere

/// The next of kSumStages stages, and the parity of its barriers' phase.
struct SumRing {
  int stage = 0, parity = 0;
  __device__ __forceinline__ void advance() {
    stage = stage + 1 == kSumStages ? 0 : stage + 1;
    parity ^= stage == 0 ? 1 : 0;
  }
};

/// What a block has of one tile.
struct SumPiece {
  bool found;
  int dense, row_begin;  // the first of its slots
  int64_t column_begin;
  int first, stages;  // of charges; none, where the last part is cut short
  int64_t offset;     // of the first slot's sums in `partial`
};

/// The block's piece number `at`, if it has so many. Asked for again rather than kept: the loops that
/// multiply have no registers for it.
__device__ __forceinline__ SumPiece piece_of(const WeightedSumCall& call, int at) {
  const int dense = *call.weight_digits.dense;
  const SumPieces all(dense, call.count, call.dim, call.blocks);
  const int line = all.column_tiles * all.parts * all.depth;
  for (int share = blockIdx.x; share < all.row_tiles * all.groups; share += gridDim.x) {
    const int row_begin = share % all.row_tiles * kSumQueries, group = share / all.row_tiles;
    const int begin = group * all.quota, end = line - begin < all.quota ? line : begin + all.quota;
    if (begin >= end) continue;
    const int tile = begin / all.depth + at, here = (end - 1) / all.depth - begin / all.depth + 1;
    if (at >= here) {
      at -= here;
      continue;
    }
    const int from = tile * all.depth > begin ? tile * all.depth : begin,
              to = (tile + 1) * all.depth < end ? (tile + 1) * all.depth : end;
    const int first = tile % all.parts * all.depth + from % all.depth, left = all.stages - first;
    return {true,
            dense,
            row_begin,
            static_cast<int64_t>(tile / all.parts) * kSumColumns,
            first,
            left < to - from ? (left > 0 ? left : 0) : to - from,
            all.offset(tile, group, row_begin)};
  }
  return {};
}

/// Calls visit(number) with the number of queries, rounded up to 16, as a constant.
template <class Visit>
__device__ __forceinline__ void with_queries(int queries, Visit visit) {
  if (queries <= 16) visit(std::integral_constant<int, 16>{});
  else if (queries <= 32) visit(std::integral_constant<int, 32>{});
  else visit(std::integral_constant<int, 48>{});
}

#if defined(PFGM_SM90A)

/// The loading warpgroup's stages, and those of them whose weight digits are still on their way.
struct SumLoads {
  SumRing next, open;
  int open_stages = 0;
  /// The oldest open stage's copies are there, and matrix instructions will see them.
  __device__ __forceinline__ void hand_over(SumHopperShared& shared) {
    barrier_arrive(&shared.full[open.stage]);
    open.advance();
    --open_stages;
  }
};

template <int kQueries>
__device__ __forceinline__ void load_piece(const WeightedSumCall& call, const TensorMap* charges,
                                           const SumPiece& piece, SumHopperShared& shared, SumLoads& loads) {
  constexpr int kRows = kWarpgroup / 8;  // at a time: eight lanes copy the 128 bytes of a row
  const int thread = threadIdx.x % kWarpgroup, chunk = thread % 8;
  const uint8_t* weights[kQueries / kRows];
#pragma unroll
  for (int i = 0; i < kQueries / kRows; ++i) {
    const int slot = piece.row_begin + thread / 8 + kRows * i;
    const int64_t query = slot < piece.dense ? call.weight_digits.queries[slot] : 0;
    weights[i] = call.weight_digits.digits + query * call.weight_digits.stride + chunk * kChunk;
  }
  const int64_t digit_pitch = call.batch * call.weight_digits.stride;
  const bool second = piece.column_begin + kTileDepth < call.dim;
  for (int k = piece.first; k < piece.first + piece.stages; ++k) {
    SumHopperShared::Stage& stage = shared.stage[loads.next.stage];
    barrier_wait(&shared.empty[loads.next.stage], loads.next.parity ^ 1);
    if (thread == 0) {
      Barrier* full = &shared.full[loads.next.stage];
      barrier_expect(full, (second ? 2 : 1) * static_cast<int>(sizeof(stage.charges[0])));
      load_tile(stage.charges[0], charges, static_cast<int64_t>(k) * kSumDepth, piece.column_begin, full);
      if (second)
        load_tile(stage.charges[1], charges, static_cast<int64_t>(k) * kSumDepth,
                  piece.column_begin + kTileDepth, full);
    }
    const int64_t begin = static_cast<int64_t>(k) * kSumDepth;
    const bool inside = begin + chunk * kChunk < call.weight_digits.stride;
#pragma unroll
    for (int i = 0; i < kQueries / kRows; ++i)
#pragma unroll
      for (int digit = 0; digit < kDigits; ++digit) {
        const int query = thread / 8 + kRows * i, row = digit * kQueries + query;
        copy_async(stage.weights + row * kSumDepth + (chunk ^ query % 8) * kChunk,
                   weights[i] + digit * digit_pitch + (inside ? begin : 0),
                   inside && piece.row_begin + query < piece.dense);
      }
    commit_copies();
    loads.next.advance();
    if (++loads.open_stages > kSumCopiesAhead) {
      wait_copies<kSumCopiesAhead>();
      proxy_fence();
      loads.hand_over(shared);
    }
  }
}

/// A warpgroup's 128 columns of the block's piece number `number`, of `stages` stages, for kQueries queries.
template <int kQueries>
__device__ __forceinline__ void multiply_piece(const WeightedSumCall& call, int number, int stages,
                                               SumHopperShared& shared, SumRing& ring) {
  constexpr int kSums = kDigits * kQueries / 2;  // of a thread, for 64 columns
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, group = lane / 4, quad = lane % 4;
  const int columns = warp / 4;  // the warpgroup
  // Column 4 group + c of the warp's 32 is row group + 8 (c % 2) of its 16 in product c / 2. The rows of
  // words 0, 1 and 2, 3 change places in half of the lanes, so that a warp's 32 words lie in 32 banks.
  const int first_chunk = 2 * (warp % 4) + group / 4, change = quad & 2;
  const int first_row = 4 * quad + change;
  const int first_word = columns * static_cast<int>(sizeof(SumHopperShared::Stage::charges[0])) +
                         first_row * kTileDepth + (first_chunk ^ first_row % 8) * kChunk + group % 4 * 4;
  int32_t sum[2][kSums] = {};
  uint32_t a[2][2][4];  // of two steps
  int before = 0;
  __syncwarp();  // the last piece's columns beyond the end have parted it
  for (int k = 0; k < stages; ++k, ring.advance()) {
    SumHopperShared::Stage& stage = shared.stage[ring.stage];
    barrier_wait(&shared.full[ring.stage], ring.parity);
    const uint64_t b = describe_tile(shared_address(stage.weights));
#pragma unroll
    for (int step = 0; step < kSumDepth / 32; ++step) {
      uint32_t word[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          word[half][i] = *reinterpret_cast<const uint32_t*>(&stage.charges[0][0] +
                                                             (first_word ^ i * (kTileDepth + kChunk)) +
                                                             (32 * step + 16 * half) * kTileDepth);
      group_wait<1>();  // the last step but one has been read
      if (step == 1 && k > 0 && lane == 0) barrier_arrive(&shared.empty[before]);
      uint32_t (&mine)[2][4] = a[step % 2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t column[4];
        transpose_bytes(word[half], column, change != 0);
#pragma unroll
        for (int c = 0; c < 4; ++c) mine[c / 2][c % 2 + 2 * half] = column[c];
      }
      group_fence(mine);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile)
        multiply_group(sum[tile], mine[tile], b + 2 * step, k > 0 || step > 0);
      group_commit();
    }
    before = ring.stage;
  }
  group_wait<0>();
  if (stages > 0 && lane == 0) barrier_arrive(&shared.empty[before]);
  sums_are_there(sum[0]);
  sums_are_there(sum[1]);

  // A thread has four neighbouring columns of two queries in eight.
  const SumPiece piece = piece_of(call, number);
  const int64_t column = kTileDepth * columns + 32 * (warp % 4) + 4 * group;
  if (piece.column_begin + column >= call.dim) return;
#pragma unroll
  for (int eight = 0; eight < kQueries / 8; ++eight)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = 8 * eight + 2 * quad + i;
      if (piece.row_begin + query >= piece.dense) continue;
      Vector<int64_t, 2> out[2];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int32_t* digit = sum[c / 2] + 4 * eight + 2 * (c % 2) + i;
        out[c / 2].at[c % 2] =
            (static_cast<int64_t>(digit[0]) * 256 + digit[kQueries / 2]) * 256 + digit[kQueries];
      }
      auto* to =
          reinterpret_cast<Vector<int64_t, 2>*>(call.partial + piece.offset + query * kSumColumns + column);
      to[0] = out[0];
      to[1] = out[1];
    }
}

#endif  // PFGM_SM90A

static __global__ void __launch_bounds__(kSumThreads, 1)
    weighted_sum_hopper_kernel(const __grid_constant__ TensorMap charges, WeightedSumCall call) {
#if defined(PFGM_SM90A)
  if (*call.weight_digits.dense == 0) return;
  unsigned char* memory = &shared_memory<unsigned char[kSumSharedBytes]>()[0];
  memory += (kTileAlignment - shared_address(memory) % kTileAlignment) % kTileAlignment;
  SumHopperShared& shared = *reinterpret_cast<SumHopperShared*>(memory);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSumStages; ++i) {
      barrier_init(&shared.full[i], kWarpgroup + 1);  // each loading thread's copies; the charges
      barrier_init(&shared.empty[i], kSumWarps);
    }
    barriers_ready();
  }
  __syncthreads();

  if (warp >= kSumWarps) {
    give_registers<kSumLoadRegisters>();
    SumLoads loads;
    for (int at = 0;; ++at) {
      const SumPiece piece = piece_of(call, at);
      if (!piece.found) break;
      with_queries(piece.dense - piece.row_begin, [&](auto queries) {
        load_piece<decltype(queries)::value>(call, &charges, piece, shared, loads);
      });
    }
    wait_copies<0>();
    proxy_fence();
    while (loads.open_stages > 0) loads.hand_over(shared);
    return;
  }
  take_registers<kSumRegisters>();
  SumRing ring;
  for (int at = 0;; ++at) {
    const SumPiece piece = piece_of(call, at);
    if (!piece.found) break;
    if (piece.column_begin + kTileDepth * (warp / 4) < call.dim) {
      with_queries(piece.dense - piece.row_begin, [&](auto queries) {
        multiply_piece<decltype(queries)::value>(call, at, piece.stages, shared, ring);
      });
      continue;
    }
    for (int k = 0; k < piece.stages; ++k, ring.advance()) {  // a warpgroup without columns
      barrier_wait(&shared.full[ring.stage], ring.parity);
      __syncwarp();
      if (lane == 0) barrier_arrive(&shared.empty[ring.stage]);
    }
  }
#endif
}

inline void launch_weighted_sum_hopper(const WeightedSumCall& call, Stream stream) {
  const TensorMap charges = make_tensor_map(call.charges, call.count, call.dim, kSumDepth);
  launch<weighted_sum_hopper_kernel>(call.blocks, kSumThreads, kSumSharedBytes, stream, charges, call);
}

}  // namespace pfgm
