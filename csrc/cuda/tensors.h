// CUDA's part of common/tensors.h, and what else needs tensors: the device, its stream, memory.
#pragma once

#include <memory>

#define PFGM_BACKEND "pfgm_fast_cuda"

#include "../common/tensors.h"
#include "device.h"

#if defined(__CUDACC__)
#define PFGM_DISPATCH_KEY CUDA
#else
#define PFGM_DISPATCH_KEY CPU  // the emulated build: its operators serve CPU tensors
#endif
// The macro pastes its arguments' names together: they must be expanded first.
#define PFGM_LIBRARY_IMPL(key, m) STABLE_TORCH_LIBRARY_IMPL(pfgm_fast_cuda, key, m)

namespace pfgm {

#if defined(__CUDACC__)
using torch::stable::accelerator::DeviceGuard;
inline auto device_of(const Tensor& tensor) { return tensor.get_device_index(); }
inline Stream current_stream(const Tensor& like) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_of(like), &stream));
  return static_cast<Stream>(stream);
}
#else
using emulate::DeviceGuard;
inline int device_of(const Tensor& tensor) { return emulate::device_of(tensor.const_data_ptr()); }
inline Stream current_stream(const Tensor& like) { return emulate::current_stream(device_of(like)); }
#endif

inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> sizes, ScalarType type) {
  Tensor result = torch::stable::new_empty(like, sizes, type);
#if !defined(__CUDACC__)
  const size_t element = type == ScalarType::Byte ? 1 : type == ScalarType::Float ? 4 : 8;
  emulate::poison(result.mutable_data_ptr(),
                  element * static_cast<size_t>(result.numel()));  // what is left unwritten shows
#endif
  return result;
}
/// `bytes` of memory on `like`'s device until the last copy of the pointer is gone, from PyTorch's allocator:
/// ordered by the stream (what is freed here is reused only by what is launched later), captured by CUDA
/// graphs.
inline std::shared_ptr<void> new_scratch(const Tensor& like, int64_t bytes) {
  Tensor memory = new_tensor(like, {bytes}, ScalarType::Byte);
  void* const begin = memory.mutable_data_ptr();
#if defined(__CUDACC__)
  return {begin, [memory](void*) {}};
#else
  const int device = device_of(like);
  emulate::count_scratch(device, bytes);
  return {begin, [memory, device, bytes](void*) { emulate::count_scratch(device, -bytes); }};
#endif
}

}  // namespace pfgm
