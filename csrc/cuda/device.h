// The device layer: what a kernel may use. Under nvcc it is CUDA; under a host compiler it is
// tests/cuda_host/emulator.h, where every thread of a block really runs, so that the same kernel source can
// be executed on a machine without a GPU.
//
// Kernels live in .cuh headers, take raw pointers, and use only the names below besides plain arithmetic,
// threadIdx, blockIdx, blockDim, gridDim, __syncthreads and the __shfl/__ballot intrinsics. Shared memory is
// one struct a kernel, `Shared`, always dynamic: `launch` is told its size, and the emulator poisons it
// before each block.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_host/emulator.h"
#endif

namespace pfgm {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

// ---- launching
// ---------------------------------------------------------------------------------------------------------

using Stream = cudaStream_t;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("pfgm_fast CUDA: ") + what + ": " + cudaGetErrorString(status));
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "current device");
  return device;
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, current_device()), "device attribute");
  return value;
}

/// Streaming multiprocessors of the current device.
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

/// More than 48 KB of dynamic shared memory must be asked for: once for each kernel and device.
template <auto kKernel>
void allow_shared_memory(size_t bytes) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  constexpr int kDevices = 64;  // remembered; others are asked each time
  if (bytes <= kWithoutAsking) return;
  static std::atomic<size_t> allowed[kDevices];
  const int device = current_device();
  if (device < kDevices && allowed[device].load(std::memory_order_relaxed) >= bytes) return;
  check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory");
  if (device < kDevices) allowed[device].store(bytes, std::memory_order_relaxed);
}

template <class... Parameters, class... Arguments>
void launch_as(void (*kernel)(Parameters...), const char* name, int64_t blocks, int threads, size_t shared,
               Stream stream, Arguments... arguments) {
#if defined(__CUDACC__)
  (void)name;
  kernel<<<static_cast<unsigned>(blocks), threads, shared, stream>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), "launch");
#else
  emulate::launch(kernel, name, blocks, threads, shared, stream, static_cast<Parameters>(arguments)...);
#endif
}

/// Run kKernel on `blocks` blocks of `threads` threads with `shared` bytes of dynamic shared memory. Never
/// synchronises.
template <auto kKernel, class... Arguments>
void launch(int64_t blocks, int threads, size_t shared, Stream stream, Arguments... arguments) {
  if (blocks == 0) return;
  if (blocks > std::numeric_limits<int>::max())
    throw std::runtime_error("pfgm_fast CUDA: the call needs more than 2^31 blocks");
  allow_shared_memory<kKernel>(shared);
#if defined(__CUDACC__)
  launch_as(kKernel, "", blocks, threads, shared, stream, arguments...);
#else
  launch_as(kKernel, __PRETTY_FUNCTION__, blocks, threads, shared, stream, arguments...);
#endif
}

/// The block's dynamic shared memory, as the struct that the launch was sized for.
template <class Shared>
__device__ __forceinline__ Shared& shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) unsigned char pfgm_dynamic_shared_memory[];
  return *reinterpret_cast<Shared*>(pfgm_dynamic_shared_memory);
#else
  return *reinterpret_cast<Shared*>(emulate::shared(sizeof(Shared)));
#endif
}

template <class Integer>
__host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

// ---- number types
// ------------------------------------------------------------------------------------------------------

#if defined(__CUDACC__)
using BFloat16 = __nv_bfloat16;
using Half = __half;
__device__ __forceinline__ float widen(BFloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float widen(Half value) { return __half2float(value); }
#else
using BFloat16 = emulate::BFloat16;
using Half = emulate::Half;
inline float widen(BFloat16 value) { return emulate::to_float(value); }
inline float widen(Half value) { return emulate::to_float(value); }
#endif
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }

/// `kCount` values that are moved with one instruction where their size allows it.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount <= 16 ? sizeof(T) * kCount : 16) Vector {
  T at[kCount];
};

template <class T, int kCount>
__device__ __forceinline__ Vector<T, kCount> load(const T* from) {
  return *reinterpret_cast<const Vector<T, kCount>*>(from);
}

// Operations that must not be contracted to a fused multiply-add, and one that must.
#if defined(__CUDACC__)
__device__ __forceinline__ float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply_rounded(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float add_rounded(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add_rounded(double a, double b) { return __dadd_rn(a, b); }
__device__ __forceinline__ float reciprocal(float a) { return __frcp_rn(a); }
__device__ __forceinline__ double reciprocal(double a) { return __drcp_rn(a); }
/// 1/√a; float: to 2^-22.9, denormal numbers count as 0.
__device__ __forceinline__ float reciprocal_root(float a) {
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(a));
  return root;
}
__device__ __forceinline__ double reciprocal_root(double a) { return rsqrt(a); }
#else
using emulate::reciprocal_root;
template <class T>
T multiply_rounded(T a, T b) {
  return a * b;
}
template <class T>
T add_rounded(T a, T b) {
  return a + b;
}
template <class T>
T reciprocal(T a) {
  return T(1) / a;
}
#endif

/// What an element of a charge is worth: a byte `byte / divisor + offset` with two roundings, as PyTorch's
/// CPU has it; a number itself. One division a thread: with the correctly rounded reciprocal, quotient and
/// remainder by fused multiply-adds give the correctly rounded quotient (Markstein 1990).
template <class T>
struct Values {
  T divisor, offset, inverse;
  __device__ __forceinline__ Values(T divisor_of_bytes, T offset_of_bytes)
      : divisor(divisor_of_bytes), offset(offset_of_bytes), inverse(reciprocal(divisor_of_bytes)) {}
  __device__ __forceinline__ T operator()(uint8_t byte) const {
    const T whole = static_cast<T>(byte), quotient = multiply_rounded(whole, inverse);
    return add_rounded(fma(fma(-quotient, divisor, whole), inverse, quotient), offset);
  }
  __device__ __forceinline__ T operator()(T value) const { return value; }
};

// ---- reductions
// --------------------------------------------------------------------------------------------------------

/// The reduction of all lanes' values, in every lane; the order of operations is fixed.
template <class T, class Operation>
__device__ __forceinline__ T warp_reduce(T value, Operation operation) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value = operation(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

/// The reduction of all threads' values, in every thread. `slots` holds one value a warp; it may be reused at
/// once.
template <int kThreads, class T, class Operation>
__device__ __forceinline__ T block_reduce(T value, Operation operation, T* slots) {
  static_assert(kThreads % kWarp == 0);
  value = warp_reduce(value, operation);
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = slots[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) total = operation(total, slots[warp]);
  __syncthreads();
  return total;
}

/// Whether the calling block is the last of `blocks` that come here; what the others wrote before is then
/// visible to it. The counter is 0 again afterwards. `flag` lies in shared memory.
__device__ __forceinline__ bool last_block(int* arrived, int blocks, int& flag) {
  if (blocks == 1) return true;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    flag = atomicAdd(arrived, 1) == blocks - 1 ? 1 : 0;
    if (flag) *arrived = 0;
  }
  __syncthreads();
  if (flag == 0) return false;
  __threadfence();
  return true;
}

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Maximum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};

/// A running sum of T: float carries its rounding errors in a second float (Knuth's exact addition), double
/// does not need it.
template <class T>
struct LongSum {
  T high = 0, low = 0;
  __device__ __forceinline__ void add(T value) {
    if constexpr (sizeof(T) == 4) {
      const T sum = high + value, virtual_value = sum - high;
      low += (high - (sum - virtual_value)) + (value - virtual_value);
      high = sum;
    } else {
      high += value;
    }
  }
  __device__ __forceinline__ double value() const {
    return static_cast<double>(high) + static_cast<double>(low);
  }
};

/// Σ (y − x)²: float keeps the error of each difference, square and sum in a second float; double does not
/// need it.
template <class T>
struct SquaredDistance {
  LongSum<T> sum;
  __device__ __forceinline__ void add(T y, T x) {
    const T difference = y - x;
    if constexpr (sizeof(T) == 4) {
      const T back = difference - y, error = (y - (difference - back)) - (x + back);
      const T square = multiply_rounded(difference, difference);
      sum.low += fma(difference, difference, -square) + 2 * difference * error;
      sum.add(square);
    } else {
      sum.add(difference * difference);
    }
  }
  __device__ __forceinline__ double value() const { return sum.value(); }
};

}  // namespace pfgm
