// Between PyTorch's stable ABI and raw pointers: the only header that knows tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "device.h"

#if defined(__CUDACC__)
#define PFGM_DISPATCH_KEY CUDA
#else
#define PFGM_DISPATCH_KEY CPU  // the emulated build: its operators serve CPU tensors
#endif
// The macro pastes its arguments' names together: they must be expanded first.
#define PFGM_LIBRARY_IMPL(key, m) STABLE_TORCH_LIBRARY_IMPL(pfgm_fast_cuda, key, m)

namespace pfgm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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
  emulate::poison(result.mutable_data_ptr(), element * static_cast<size_t>(result.numel()));  // what is left unwritten shows
#endif
  return result;
}
inline Tensor new_like(const Tensor& like) {
  const auto sizes = like.sizes();
  return new_tensor(like, {sizes.begin(), sizes.end()}, like.scalar_type());
}

/// `bytes` of memory on `like`'s device until the last copy of the pointer is gone, from PyTorch's allocator: ordered by the
/// stream (what is freed here is reused only by what is launched later), captured by CUDA graphs.
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

inline void require(bool condition, const char* message) { STD_TORCH_CHECK(condition, "pfgm_fast_cuda: ", message); }

inline bool is_real(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Float || tensor.scalar_type() == ScalarType::Double;
}

inline bool same_shape(const Tensor& a, const Tensor& b) {  // PyTorch 2.11's headers cannot compare sizes()
  const auto of_a = a.sizes(), of_b = b.sizes();
  return std::equal(of_a.begin(), of_a.end(), of_b.begin(), of_b.end());
}

/// What the operators rely on; the public functions have checked it with better words.
inline void require_matrix(const Tensor& tensor, const char* message) {
  require(tensor.dim() == 2 && tensor.is_contiguous(), message);
}
inline void require_rows(const Tensor& tensor, const Tensor& x, const char* message) {
  require(tensor.dim() == 1 && tensor.sizes()[0] == x.sizes()[0] && tensor.is_contiguous(), message);
}

}  // namespace pfgm
