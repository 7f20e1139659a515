// What Hopper (sm_90a) adds to the device layer: tensor maps and their loads, barriers in shared memory that
// count bytes, matrix instructions of a warpgroup. PTX here, tests/cuda_host/hopper.h on the host.
#pragma once

#include <cstdlib>

#include "../device.h"
#include "tensor_core.cuh"

#if defined(__CUDACC__)
#include <cuda.h>
#include <cudaTypedefs.h>
#else
#include "cuda_host/hopper.h"
#endif

namespace pfgm {

constexpr int kWarpgroup = 4 * kWarp;
constexpr int kTileDepth = 128;  // bytes of a row in shared memory: one atom of the 128-byte swizzle
constexpr int kTileAlignment =
    1024;                           // of a tile in shared memory: eight rows, after which the swizzle repeats
constexpr int kGroupColumns = 256;  // of one matrix instruction: 64 rows × 256 columns × 32 bytes of depth
constexpr int kGroupSums = 64 * kGroupColumns / kWarpgroup;

/// Describes a tile of rows of 128 bytes, swizzled, for a matrix instruction: address and the step of 1,024
/// bytes between groups of eight rows, in units of 16 bytes; layout 1 in the two highest bits is the 128-byte
/// swizzle. 32 bytes of depth further is `+ 2`.
__device__ __forceinline__ uint64_t describe_tile(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{kTileAlignment / 16} << 32 | uint64_t{1} << 16 |
         (address & 0x3ffff) >> 4;
}

#if defined(__CUDACC__)

using TensorMap = CUtensorMap;
using Barrier = uint64_t;

/// `rows` × `width` bytes, row-major and without gaps, read in tiles of `tile_rows` × 128 bytes; zeros
/// outside.
inline TensorMap make_tensor_map(const void* base, int64_t rows, int64_t width, int tile_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                           &found),
          "tensor maps");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
          "tensor maps");
#endif
    if (found != cudaDriverEntryPointSuccess)
      throw std::runtime_error("pfgm_fast CUDA: the driver has no tensor maps");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  TensorMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(rows)},
                   strides[1] = {sizes[0]};
  const cuuint32_t box[2] = {kTileDepth, static_cast<cuuint32_t>(tile_rows)}, steps[2] = {1, 1};
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(base), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("pfgm_fast CUDA: tensor map: error " + std::to_string(static_cast<int>(status)));
  return map;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define PFGM_SM90A 1

/// A phase of the barrier ends when `arrivals` have come and all bytes that were announced.
__device__ __forceinline__ void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
/// After the last barrier_init, before the block's __syncthreads.
__device__ __forceinline__ void barriers_ready() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;\n" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives, and announces `bytes` of this phase's loads.
__device__ __forceinline__ void barrier_expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
/// Waits for the end of the phase of this parity; phases count from 0, and the one before the first counts as
/// ended.
__device__ __forceinline__ void barrier_wait(Barrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@ended bra done;\n"
      "bra again;\n"
      "done:\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
/// A tile from (row, column) on, to shared memory; its bytes count on the barrier, those outside too.
__device__ __forceinline__ void load_tile(void* to, const TensorMap* map, int64_t row, int64_t column,
                                          Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];\n" ::"r"(shared_address(to)),
      "l"(map), "r"(static_cast<int>(column)), "r"(static_cast<int>(row)), "r"(shared_address(barrier))
      : "memory");
}
/// Before the first matrix instruction of a group: what the threads wrote to the sums is seen.
__device__ __forceinline__ void group_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
/// The same, and the registers of A are what they are by now.
template <int kTiles>
__device__ __forceinline__ void group_fence(uint32_t (&a)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
    asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
  group_fence();
}
__device__ __forceinline__ void group_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
/// Wait until at most `kInFlight` of the committed groups are unfinished.
template <int kInFlight>
__device__ __forceinline__ void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kInFlight) : "memory");
}

/// After the wait for the last product: the compiler may use the sums from here on, not before.
template <int kSums>
__device__ __forceinline__ void sums_are_there(int32_t (&sum)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+r"(sum[i])::"memory");
}
/// Of a warpgroup: its threads have `kRegisters` from now on, fewer than before or more. A block starts with
/// what its threads leave each.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
/// What this thread wrote to shared memory (its copies that it waited for, too) is seen by matrix
/// instructions.
__device__ __forceinline__ void proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

#define PFGM_SUMS_8(i)                                                                                    \
  "+r"(sum[i]), "+r"(sum[i + 1]), "+r"(sum[i + 2]), "+r"(sum[i + 3]), "+r"(sum[i + 4]), "+r"(sum[i + 5]), \
      "+r"(sum[i + 6]), "+r"(sum[i + 7])
#define PFGM_SUMS_64(i)                                                                              \
  PFGM_SUMS_8(i), PFGM_SUMS_8(i + 8), PFGM_SUMS_8(i + 16), PFGM_SUMS_8(i + 24), PFGM_SUMS_8(i + 32), \
      PFGM_SUMS_8(i + 40), PFGM_SUMS_8(i + 48), PFGM_SUMS_8(i + 56)
/// sum = (keep ? sum : 0) + A Bᵀ, A 64 rows of signed bytes, B 256 rows of unsigned bytes, 32 bytes of depth;
/// asynchronous.
__device__ __forceinline__ void multiply_group(int32_t (&sum)[kGroupSums], uint64_t a, uint64_t b,
                                               bool keep) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.u8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
      "}, %128, %129, keep;\n"
      "}\n"
      : PFGM_SUMS_64(0), PFGM_SUMS_64(64)
      : "l"(a), "l"(b), "r"(static_cast<int>(keep)));
}
/// Of 128 rows of B.
__device__ __forceinline__ void multiply_group(int32_t (&sum)[kGroupSums / 2], uint64_t a, uint64_t b,
                                               bool keep) {
  asm volatile(
      "{\n"
      ".reg .pred keep;\n"
      "setp.ne.b32 keep, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.u8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, keep;\n"
      "}\n"
      : PFGM_SUMS_64(0)
      : "l"(a), "l"(b), "r"(static_cast<int>(keep)));
}
#define PFGM_SUMS_24(i) PFGM_SUMS_8(i), PFGM_SUMS_8(i + 8), PFGM_SUMS_8(i + 16)
#define PFGM_SUMS_48(i) PFGM_SUMS_24(i), PFGM_SUMS_24(i + 24)
#define PFGM_NAMES_24                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11" \
  ", %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23"
#define PFGM_NAMES_48                                            \
  PFGM_NAMES_24                                                  \
  ", %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35" \
  ", %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define PFGM_NAMES_72                                            \
  PFGM_NAMES_48                                                  \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59" \
  ", %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71"
#define PFGM_NAMES_96                                            \
  PFGM_NAMES_72                                                  \
  ", %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83" \
  ", %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PFGM_MULTIPLY_REGISTERS(columns, names, a0, a1, a2, a3, b, kept, ...) \
  asm volatile(                                                               \
      "{\n"                                                                   \
      ".reg .pred keep;\n"                                                    \
      "setp.ne.b32 keep, %" kept                                              \
      ", 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n" columns "k32.s32.u8.u8 {" names     \
      "}, "                                                                   \
      "{%" a0 ", %" a1 ", %" a2 ", %" a3 "}, %" b                             \
      ", keep;\n"                                                             \
      "}\n"                                                                   \
      : __VA_ARGS__                                                           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_tile), "r"(static_cast<int>(keep)))
/// The same with A in registers (mma.m16n8k32's layout, 16 rows a warp), both of unsigned bytes, and B of
/// 2 kSums rows. Neither the sums nor A may be touched until it has been waited for.
template <int kSums>
__device__ __forceinline__ void multiply_group(int32_t (&sum)[kSums], const uint32_t (&a)[4], uint64_t b_tile,
                                               bool keep) {
  static_assert(kSums == 24 || kSums == 48 || kSums == 72 || kSums == 96);
  if constexpr (kSums == 24)
    PFGM_MULTIPLY_REGISTERS("48", PFGM_NAMES_24, "24", "25", "26", "27", "28", "29", PFGM_SUMS_24(0));
  else if constexpr (kSums == 48)
    PFGM_MULTIPLY_REGISTERS("96", PFGM_NAMES_48, "48", "49", "50", "51", "52", "53", PFGM_SUMS_48(0));
  else if constexpr (kSums == 72)
    PFGM_MULTIPLY_REGISTERS("144", PFGM_NAMES_72, "72", "73", "74", "75", "76", "77", PFGM_SUMS_48(0),
                            PFGM_SUMS_24(48));
  else
    PFGM_MULTIPLY_REGISTERS("192", PFGM_NAMES_96, "96", "97", "98", "99", "100", "101", PFGM_SUMS_48(0),
                            PFGM_SUMS_48(48));
}
#undef PFGM_MULTIPLY_REGISTERS
#undef PFGM_NAMES_24
#undef PFGM_NAMES_48
#undef PFGM_NAMES_72
#undef PFGM_NAMES_96
#undef PFGM_SUMS_24
#undef PFGM_SUMS_48
#undef PFGM_SUMS_8
#undef PFGM_SUMS_64
#endif  // sm_90a

#else  // the host

#define PFGM_SM90A 1
using emulate::Barrier;
using emulate::barrier_arrive;
using emulate::barrier_expect;
using emulate::barrier_init;
using emulate::barrier_wait;
using emulate::barriers_ready;
using emulate::group_commit;
using emulate::group_fence;
using emulate::load_tile;
using emulate::multiply_group;
using emulate::proxy_fence;
using emulate::shared_address;
using emulate::TensorMap;

inline TensorMap make_tensor_map(const void* base, int64_t rows, int64_t width, int tile_rows) {
  return emulate::make_tensor_map(base, rows, width, tile_rows, kTileDepth);
}
template <int kInFlight>
void group_wait() {
  emulate::group_wait(kInFlight);
}
template <int kRegisters>
void give_registers() {}
template <int kRegisters>
void take_registers() {}
template <int kTiles>
void group_fence(uint32_t (&)[kTiles][4]) {
  group_fence();
}
template <int kSums>
void sums_are_there(int32_t (&)[kSums]) {}

#endif

/// Whether kernels of Hopper's own are taken on the current device: on compute capability 9.0, where the
/// library was built for 9.0a. PFGM_FAST_CUDA_HOPPER=0 leaves them out; =1 is an error where they cannot be
/// had.
inline bool hopper_serves() {
  const char* asked = std::getenv("PFGM_FAST_CUDA_HOPPER");
  const std::string said = asked == nullptr ? "" : asked;
  if (said == "0") return false;
#if defined(PFGM_FAST_HOPPER)
  if (device_attribute(cudaDevAttrComputeCapabilityMajor) == 9) return true;
  if (said == "1")
    throw std::runtime_error(
        "pfgm_fast CUDA: PFGM_FAST_CUDA_HOPPER=1 asks for a Hopper GPU (compute capability 9.0)");
#else
  if (said == "1")
    throw std::runtime_error(
        "pfgm_fast CUDA: PFGM_FAST_CUDA_HOPPER=1, but the library was built without architecture 9.0a");
#endif
  return false;
}

}  // namespace pfgm
