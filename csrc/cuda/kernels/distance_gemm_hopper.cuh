// The first product with one digit (distance_gemm.cuh, FirstTile) by Hopper's own means: the same whole
// numbers, bit for bit.
//
// An H200 has run it: equal to FirstTile's to the bit; 128 × 50,000 × 3072 in 57 µs against 117, 1024 ×
// 50,000 × 3072 in 235 µs against 1,036.
//
// Tiling: 128 queries × 256 charges a tile, two warpgroups of 64 queries; a block stays on its multiprocessor
// and takes every gridDim-th tile, neighbours sharing charges. A warp of its own loads: 128 bytes of depth a
// stage, both operands by tensor maps into the 128-byte swizzle, four stages ahead, past the end of a tile
// into the next. The warpgroups multiply (wgmma m64n256k32, both operands from shared memory) with one
// stage's instructions in flight, then write from their registers. Cost: as FirstTile; operands pass through
// registers nowhere, and shared memory is read once a warpgroup.
#pragma once

#include "distance_gemm.cuh"
#include "hopper.cuh"

namespace pfgm {

constexpr int kHopperQueries = 128;
constexpr int kHopperStages = 4;
constexpr int kHopperGroups = kHopperQueries / 64;
constexpr int kHopperThreads = kHopperGroups * kWarpgroup + kWarp;

struct HopperGemmCall {
  int32_t* leading;  // (batch, count)
  int64_t batch, count, dim;
};

struct HopperGemmShared {
  struct Stage {
    int8_t digits[kHopperQueries * kTileDepth];
    uint8_t charges[kGroupColumns * kTileDepth];
  } stage[kHopperStages];
  Barrier full[kHopperStages];   // a stage's bytes have come
  Barrier empty[kHopperStages];  // each multiplying warp is done with a stage
};
static_assert(sizeof(HopperGemmShared::Stage) % kTileAlignment == 0 &&
              kHopperQueries * kTileDepth % kTileAlignment == 0);
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

static __global__ void __launch_bounds__(kHopperThreads, 1)
    distance_gemm_hopper_kernel(const __grid_constant__ TensorMap digits,
                                const __grid_constant__ TensorMap charges, HopperGemmCall call) {
#if defined(PFGM_SM90A)
  unsigned char* memory = &shared_memory<unsigned char[kHopperSharedBytes]>()[0];
  memory += (kTileAlignment - shared_address(memory) % kTileAlignment) % kTileAlignment;
  HopperGemmShared& shared = *reinterpret_cast<HopperGemmShared*>(memory);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t query_tiles = ceil_div<int64_t>(call.batch, kHopperQueries);
  const int64_t tiles = query_tiles * ceil_div<int64_t>(call.count, kGroupColumns);
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
  if (warp == kHopperGroups * kWarpgroup / kWarp) {
    if (lane != 0) return;
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x)
      for (int k = 0; k < stages; ++k, ring.advance()) {
        HopperGemmShared::Stage& stage = shared.stage[ring.stage];
        Barrier* full = &shared.full[ring.stage];
        barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
        barrier_expect(full, sizeof(stage));
        load_tile(stage.digits, &digits, tile % query_tiles * kHopperQueries, k * kTileDepth, full);
        load_tile(stage.charges, &charges, tile / query_tiles * kGroupColumns, k * kTileDepth, full);
      }
    return;
  }

  const int group = warp / 4;
  const bool pairs = call.count % 2 == 0;
  int32_t sum[kGroupSums];
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int before = 0;
    for (int k = 0; k < stages; ++k, ring.advance()) {
      HopperGemmShared::Stage& stage = shared.stage[ring.stage];
      barrier_wait(&shared.full[ring.stage], ring.parity);
      const uint64_t a = describe_tile(shared_address(stage.digits + group * 64 * kTileDepth));
      const uint64_t b = describe_tile(shared_address(stage.charges));
      group_fence();
#pragma unroll
      for (int step = 0; step < kTileDepth / 32; ++step)
        multiply_group(sum, a + 2 * step, b + 2 * step, k > 0 || step > 0);
      group_commit();
      group_wait<1>();
      if (k > 0 && lane == 0) barrier_arrive(&shared.empty[before]);  // the stage before has been read
      before = ring.stage;
    }
    group_wait<0>();
    if (lane == 0) barrier_arrive(&shared.empty[before]);

    // A thread has two rows and pairs of columns; four lanes write 32 bytes in a row.
    const int64_t query_begin = tile % query_tiles * kHopperQueries + 16 * warp + lane / 4;
    const int64_t charge_begin = tile / query_tiles * kGroupColumns + 2 * (lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t query = query_begin + 8 * half;
      if (query >= call.batch) continue;
      int32_t* row = call.leading + query * call.count;
#pragma unroll
      for (int c = 0; c < kGroupColumns / 8; ++c) {
        const int64_t charge = charge_begin + 8 * c;
        if (pairs) {  // an even count: a pair is inside or outside, and aligned
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
#endif
}

inline void launch_distance_gemm_hopper(const DistanceGemmCall& call, Stream stream) {
  const TensorMap digits = make_tensor_map(call.digits, call.batch, call.dim, kHopperQueries);
  const TensorMap charges = make_tensor_map(call.charges, call.count, call.dim, kGroupColumns);
  const int64_t tiles =
      ceil_div<int64_t>(call.batch, kHopperQueries) * ceil_div<int64_t>(call.count, kGroupColumns);
  const int64_t blocks = tiles < multiprocessors() ? tiles : multiprocessors();
  launch<distance_gemm_hopper_kernel>(blocks, kHopperThreads, kHopperSharedBytes, stream, digits, charges,
                                      HopperGemmCall{call.leading, call.batch, call.count, call.dim});
}

}  // namespace pfgm
