// Asynchronous copies to shared memory and integer matrix instructions: PTX for sm_80 and later,
// tests/cuda_host/tensor_core.h on the host.
#pragma once

#include "../device.h"

#if !defined(__CUDACC__)
#include "cuda_host/tensor_core.h"
#endif

namespace pfgm {

#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
/// 16 bytes from global to shared memory; zeros where `valid` is false (`from` must be a readable address all
/// the same).
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
/// Wait until at most `kInFlight` of this thread's committed groups are unfinished.
template <int kInFlight>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kInFlight) : "memory");
}
__device__ __forceinline__ void load_matrix(uint32_t (&f)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3])
               : "r"(shared_address(row))
               : "memory");
}
template <bool kSigned>
__device__ __forceinline__ void multiply(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kSigned)
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
        "%1, %2, %3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
        "%1, %2, %3};\n"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}
#else
inline void copy_async(void* to, const void* from, bool valid) {
  emulate::copy_async(to, from, 16, valid ? 16 : 0);
}
inline void commit_copies() { emulate::commit_copies(); }
template <int kInFlight>
void wait_copies() {
  emulate::wait_copies(kInFlight);
}
inline void load_matrix(uint32_t (&f)[4], const void* row) { emulate::load_matrix(f, row); }
template <bool kSigned>
void multiply(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulate::multiply<kSigned>(c, a, b);
}
inline uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  return emulate::permute(low, high, selector);
}
#endif

/// Four words of four bytes, transposed: out[c] holds byte c of each word, in the words' order; `crossed`: in
/// the order 2, 3, 0, 1.
__device__ __forceinline__ void transpose_bytes(const uint32_t (&word)[4], uint32_t (&out)[4],
                                                bool crossed = false) {
  const uint32_t lower = crossed ? 0x1054 : 0x5410, upper = crossed ? 0x3276 : 0x7632;
  const uint32_t low01 = permute(word[0], word[1], 0x5140), high01 = permute(word[0], word[1], 0x7362);
  const uint32_t low23 = permute(word[2], word[3], 0x5140), high23 = permute(word[2], word[3], 0x7362);
  out[0] = permute(low01, low23, lower);
  out[1] = permute(low01, low23, upper);
  out[2] = permute(high01, high23, lower);
  out[3] = permute(high01, high23, upper);
}

constexpr int kDepth = 64;  // bytes of the contracted dimension in one stage of a pipeline
constexpr int kChunk = 16;  // bytes of one asynchronous copy
constexpr int kLongestSum =
    1 << 16;  // products of a byte and a signed digit that an int32 holds: 255 · 128 · 2^16 < 2^31

/// Where chunk `chunk` (of 4) of row `row` lies in a tile of 64-byte rows, so that 8 rows read at one chunk
/// hit 32 banks.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * kDepth + (chunk ^ (row >> 1 & 3)) * kChunk;
}

/// Where a lane's row of a fragment lies in a swizzled tile, beside the fragment's first row (a multiple of
/// 8) and for the first 32 bytes of depth; `^ 32 * step` leads to the next 32. An A operand is 16 rows, a
/// pair of B operands is 16 columns.
__device__ __forceinline__ int fragment_lane() {
  const int lane = threadIdx.x % kWarp;
  return swizzled(lane % 16, lane / 16);
}
__device__ __forceinline__ int fragment_pair_lane() {
  const int lane = threadIdx.x % kWarp;
  return swizzled(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

}  // namespace pfgm
