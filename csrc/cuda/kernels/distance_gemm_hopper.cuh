// The first product of byte charges (distance_gemm.cuh: FirstTile, RestTile) by Hopper's own means: the first
// digit of all queries, and the other two of those that the screening leaves open. The same whole numbers,
// and the same rounding of what is made of them: equal to the bit.
//
// An H200 has run the first digit: 128 × 50,000 × 3072 in 57 µs against FirstTile's 117, 1024 × 50,000 × 3072
// in 235 µs against 1,036. The other digits and the halved tiles of the last round
// have been timed with the whole call alone (docs/cuda.md).
//
// Tiling: 128 rows of digits × 256 charges a tile, two warpgroups of 64 rows. A row is a query's first digit;
// or eight rows are eight open queries' second digits and the next eight their third (rest_row), so that a
// thread has both of a query. A block stays on its multiprocessor and takes every gridDim-th tile, neighbours
// sharing charges; where the last round has tiles for at most half of the blocks, each is halved. A warp of
// its own loads: 128 bytes of depth a stage, both operands by tensor maps into the 128-byte swizzle, four
// stages ahead, past the end of a tile into the next. The warpgroups multiply (wgmma m64n256k32, both
// operands from shared memory) with one stage's instructions in flight, then write from their registers.
// Cost: as FirstTile and RestTile; operands pass through registers nowhere, and shared memory is read once a
// warpgroup.
#pragma once

#include "distance_gemm.cuh"
#include "hopper.cuh"

namespace pfgm {

constexpr int kHopperRows = 128, kHopperColumns = kGroupColumns;  // of a tile: rows of digits, charges
constexpr int kHopperHalf = kHopperColumns / 2;                   // charges of a load
constexpr int kHopperStages = 4;
constexpr int kHopperGroups = kHopperRows / 64;
constexpr int kHopperThreads = (kHopperGroups + 1) * kWarpgroup;
constexpr int kLoadingRegisters = 40, kMultiplyingRegisters = 232;  // of a thread
static_assert(kWarpgroup * (kLoadingRegisters + kHopperGroups * kMultiplyingRegisters) <= 65536);
constexpr int kRestLoad = 2 * kRestGroup;  // rows of a load of the other digits: so many are needed or not

struct HopperGemmShared {
  struct Stage {
    int8_t digits[kHopperRows * kTileDepth];
    uint8_t charges[kHopperColumns * kTileDepth];
  } stage[kHopperStages];
  Barrier full[kHopperStages];   // a stage's bytes have come
  Barrier empty[kHopperStages];  // each multiplying warp is done with a stage
};
static_assert(sizeof(HopperGemmShared::Stage) % kTileAlignment == 0 &&
              kHopperRows * kTileDepth % kTileAlignment == 0 && kRestLoad * kTileDepth % kTileAlignment == 0);
constexpr size_t kHopperSharedBytes =
    sizeof(HopperGemmShared) + kTileAlignment;  // dynamic shared memory begins anywhere

/// The next stage of a ring, and the parity of its barriers' phase.
struct Ring {
  int stage = 0, parity = 0;
  __device__ __forceinline__ void advance() {
    stage = stage + 1 == kHopperStages ? 0 : stage + 1;
    parity ^= stage == 0 ? 1 : 0;
  }
};

struct HopperTile {
  int64_t row, charge;  // the first of each
  int columns;          // kHopperColumns, or kHopperHalf
};

/// A block's tiles of `rows` × `count`.
struct HopperTiles {
  int64_t rows, count;
  int along_rows, tiles, whole;  // whole: those of the full rounds
  bool halves;                   // the tiles of the last round are two blocks' each

  __device__ HopperTiles(int64_t rows, int64_t count)
      : rows(rows),
        count(count),
        along_rows(static_cast<int>(ceil_div<int64_t>(rows, kHopperRows))),
        tiles(along_rows * static_cast<int>(ceil_div<int64_t>(count, kHopperColumns))),
        whole(tiles - tiles % static_cast<int>(gridDim.x)),
        halves(2 * (tiles - whole) <= static_cast<int>(gridDim.x)) {}

  /// The block's tile of this round; false where it has no more.
  __device__ bool find(int round, HopperTile& tile) const {
    int index = round * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x), first = 0;
    tile.columns = kHopperColumns;
    if (halves && index >= whole) {
      tile.columns = kHopperHalf;
      first = (index - whole) % 2 * kHopperHalf;
      index = whole + (index - whole) / 2;
    }
    if (index >= tiles) return false;
    tile.row = static_cast<int64_t>(index % along_rows) * kHopperRows;
    tile.charge = static_cast<int64_t>(index / along_rows) * kHopperColumns + first;
    if (count - tile.charge <= kHopperHalf) tile.columns = kHopperHalf;
    return tile.charge < count;
  }
};

#if defined(PFGM_SM90A)
/// A warpgroup's 64 rows of a tile, over all of the depth.
template <int kColumns>
__device__ __forceinline__ void multiply_tile(int32_t (&sum)[kColumns / 2], HopperGemmShared& shared,
                                              Ring& ring, int group, int stages) {
  const bool arrives = threadIdx.x % kWarp == 0;
  int before = 0;
  for (int k = 0; k < stages; ++k, ring.advance()) {
    HopperGemmShared::Stage& stage = shared.stage[ring.stage];
    barrier_wait(&shared.full[ring.stage], ring.parity);
    const uint64_t a = describe_tile(shared_address(stage.digits + group * 64 * kTileDepth));
    const uint64_t b = describe_tile(shared_address(stage.charges));
    group_fence();
#pragma unroll
    for (int step = 0; step < kTileDepth / 32; ++step) multiply_group(sum, a + 2 * step, b + 2 * step, true);
    group_commit();
    group_wait<1>();
    if (k > 0 && arrives) barrier_arrive(&shared.empty[before]);  // the stage before has been read
    before = ring.stage;
  }
  group_wait<0>();
  if (arrives) barrier_arrive(&shared.empty[before]);
}

/// kFirst: the products as they are. A thread has two rows and pairs of columns; four lanes write 32 bytes in
/// a row.
template <int kColumns>
__device__ __forceinline__ void write_products(const DistanceGemmCall& call, const HopperTile& tile,
                                               const int32_t (&sum)[kColumns / 2]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t query_begin = tile.row + 16 * warp + lane / 4, charge_begin = tile.charge + 2 * (lane % 4);
  const bool pairs = call.count % 2 == 0;  // a pair is then inside or outside, and aligned
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t query = query_begin + 8 * half;
    if (query >= call.batch) continue;
    int32_t* row = call.leading + query * call.count;
#pragma unroll
    for (int c = 0; c < kColumns / 8; ++c) {
      const int64_t charge = charge_begin + 8 * c;
      if (pairs) {
        if (charge < call.count)
          *reinterpret_cast<Vector<int32_t, 2>*>(row + charge) = {sum[4 * c + 2 * half],
                                                                  sum[4 * c + 2 * half + 1]};
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (charge + i < call.count) row[charge + i] = sum[4 * c + 2 * half + i];
      }
    }
  }
}

/// kRest: gaps, from the products with the first digit and these. A thread has one query, and pairs of
/// columns; four lanes have a group of 32 charges. A group's first products are read before the group before
/// is written.
template <int kColumns>
__device__ __forceinline__ void write_gaps(const DistanceGemmCall& call, const HopperTile& tile, int64_t open,
                                           const int32_t (&sum)[kColumns / 2]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, column_begin = 2 * (lane % 4);
  const int64_t place = tile.row / 2 + kRestGroup * warp + lane / 4;
  const bool served = place < open,
             pairs = call.count % 2 == 0;  // a pair is then inside or outside, and aligned
  const int64_t query = served ? call.open[place] : 0, begin = query * call.count + tile.charge;
  const int inside =
                call.count - tile.charge < kColumns ? static_cast<int>(call.count - tile.charge) : kColumns,
            left = served ? inside : 0;
  const int32_t* const leading = call.leading + begin;
  const double* const norms = call.sq_norms + tile.charge;
  double* const gaps = call.gaps + begin;
  const GapScale scale(call, query);

  Vector<int32_t, 2> first[4], following[4];
  const auto read = [&](int group, Vector<int32_t, 2>(&to)[4]) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int column = kGroup * group + 8 * c + column_begin;
      to[c] = {0, 0};
      if (pairs) {
        if (column < left) to[c] = load<int32_t, 2>(leading + column);
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (column + i < left) to[c].at[i] = leading[column + i];
      }
    }
  };
  read(0, first);
#pragma unroll
  for (int group = 0; group < kColumns / kGroup; ++group) {
    if (group + 1 < kColumns / kGroup) read(group + 1, following);
    double gap[4][2], lowest = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = kGroup * group + 8 * c + column_begin + i, at = 16 * group + 4 * c + i;
        const int64_t product = (static_cast<int64_t>(first[c].at[i]) * 256 + sum[at]) * 256 + sum[at + 2];
        gap[c][i] = column < left ? scale.gap(static_cast<double>(product), norms[column])
                                  : std::numeric_limits<double>::infinity();
        lowest = c + i == 0 ? gap[c][i] : Minimum{}(lowest, gap[c][i]);
      }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int column = kGroup * group + 8 * c + column_begin;
      if (pairs) {
        if (column < left) *reinterpret_cast<Vector<double, 2>*>(gaps + column) = {gap[c][0], gap[c][1]};
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i)
          if (column + i < left) gaps[column + i] = gap[c][i];
      }
      first[c] = following[c];
    }
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2)
      lowest = Minimum{}(lowest, __shfl_xor_sync(kAllLanes, lowest, offset));
    if (lane % 4 == 0 && kGroup * group < left)
      call.least[query * groups_of(call.count) + tile.charge / kGroup + group] = lowest;
  }
}

template <GemmOutput kOutput, int kColumns>
__device__ __forceinline__ void serve_tile(const DistanceGemmCall& call, const HopperTile& tile, int64_t open,
                                           HopperGemmShared& shared, Ring& ring, int group, int stages) {
  int32_t sum[kColumns / 2] = {};  // set here, so that no register is held for it between tiles
  multiply_tile<kColumns>(sum, shared, ring, group, stages);
  if constexpr (kOutput == GemmOutput::kFirst) write_products<kColumns>(call, tile, sum);
  else write_gaps<kColumns>(call, tile, open, sum);
}

template <GemmOutput kOutput>
__device__ __forceinline__ void distance_gemm_hopper(const TensorMap* digits, const TensorMap* charges,
                                                     const DistanceGemmCall& call) {
  unsigned char* memory = &shared_memory<unsigned char[kHopperSharedBytes]>()[0];
  memory += (kTileAlignment - shared_address(memory) % kTileAlignment) % kTileAlignment;
  HopperGemmShared& shared = *reinterpret_cast<HopperGemmShared*>(memory);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  constexpr bool kRest = kOutput == GemmOutput::kRest;
  const int64_t open = kRest ? *call.open_count : 0;
  const HopperTiles tiles(kRest ? rest_rows(open) : call.batch, call.count);
  const int stages = static_cast<int>(ceil_div<int64_t>(call.dim, kTileDepth));

  if (threadIdx.x == 0) {
    for (int i = 0; i < kHopperStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], kHopperGroups * kWarpgroup / kWarp);
    }
    barriers_ready();
  }
  __syncthreads();

  Ring ring;
  HopperTile tile;
  if (warp >= kHopperGroups * kWarpgroup / kWarp) {
    give_registers<kLoadingRegisters>();
    if (threadIdx.x != kHopperGroups * kWarpgroup) return;
    constexpr int kLoad = kRest ? kRestLoad : kHopperRows;
    for (int round = 0; tiles.find(round, tile); ++round) {
      const int rows = kRest && tiles.rows - tile.row < kHopperRows ? static_cast<int>(tiles.rows - tile.row)
                                                                    : kHopperRows;
      for (int k = 0; k < stages; ++k, ring.advance()) {
        HopperGemmShared::Stage& stage = shared.stage[ring.stage];
        Barrier* full = &shared.full[ring.stage];
        barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
        barrier_expect(full, (rows + tile.columns) * kTileDepth);
        for (int row = 0; row < rows; row += kLoad)
          load_tile(stage.digits + row * kTileDepth, digits, tile.row + row, k * kTileDepth, full);
        for (int column = 0; column < tile.columns; column += kHopperHalf)
          load_tile(stage.charges + column * kTileDepth, charges, tile.charge + column, k * kTileDepth, full);
      }
    }
    return;
  }

  take_registers<kMultiplyingRegisters>();
  const int group = warp / 4;
  for (int round = 0; tiles.find(round, tile); ++round) {
    if (tile.row + group * 64 >= tiles.rows) {  // nothing of this warpgroup's: it only gives the stages back
      for (int k = 0; k < stages; ++k, ring.advance()) {
        barrier_wait(&shared.full[ring.stage], ring.parity);
        __syncwarp();  // nobody is left behind by two phases, which look alike
        if (lane == 0) barrier_arrive(&shared.empty[ring.stage]);
      }
    } else if (tile.columns == kHopperColumns) {
      serve_tile<kOutput, kHopperColumns>(call, tile, open, shared, ring, group, stages);
    } else {
      serve_tile<kOutput, kHopperHalf>(call, tile, open, shared, ring, group, stages);
    }
    __syncwarp();  // writing may part a warp, multiplying needs it whole
  }
}
#endif

static __global__ void __launch_bounds__(kHopperThreads, 1)
    distance_gemm_hopper_kernel(const __grid_constant__ TensorMap digits,
                                const __grid_constant__ TensorMap charges, DistanceGemmCall call) {
#if defined(PFGM_SM90A)
  distance_gemm_hopper<GemmOutput::kFirst>(&digits, &charges, call);
#endif
}

static __global__ void __launch_bounds__(kHopperThreads, 1)
    distance_gemm_hopper_rest_kernel(const __grid_constant__ TensorMap digits,
                                     const __grid_constant__ TensorMap charges, DistanceGemmCall call) {
#if defined(PFGM_SM90A)
  distance_gemm_hopper<GemmOutput::kRest>(&digits, &charges, call);
#endif
}

/// Blocks of a product with at most `rows` rows of digits.
inline int64_t hopper_blocks(int64_t rows, int64_t count) {
  const int64_t halves = 2 * ceil_div<int64_t>(rows, kHopperRows) * ceil_div<int64_t>(count, kHopperColumns);
  return halves < multiprocessors() ? halves : multiprocessors();
}

/// Products with the first digit.
inline void launch_first_by_hopper(const DistanceGemmCall& call, Stream stream) {
  launch<distance_gemm_hopper_kernel>(hopper_blocks(call.batch, call.count), kHopperThreads,
                                      kHopperSharedBytes, stream,
                                      make_tensor_map(call.digits, call.batch, call.dim, kHopperRows),
                                      make_tensor_map(call.charges, call.count, call.dim, kHopperHalf), call);
}

/// Gaps of the open queries. `rest`: their other digits, by rest_row.
inline void launch_rest_by_hopper(const DistanceGemmCall& call, const int8_t* rest, Stream stream) {
  const int64_t rows = rest_rows(call.batch);
  launch<distance_gemm_hopper_rest_kernel>(
      hopper_blocks(rows, call.count), kHopperThreads, kHopperSharedBytes, stream,
      make_tensor_map(rest, rows, call.dim, kRestLoad),
      make_tensor_map(call.charges, call.count, call.dim, kHopperHalf), call);
}

}  // namespace pfgm
