// Between PyTorch's stable ABI and raw pointers: the only header that knows tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
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
inline Stream current_stream(const Tensor& like) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  return static_cast<Stream>(stream);
}
#else
struct DeviceGuard {
  explicit DeviceGuard(int) {}
};
inline Stream current_stream(const Tensor&) { return nullptr; }
#endif

inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> sizes, ScalarType type) {
  Tensor result = torch::stable::new_empty(like, sizes, type);
#if !defined(__CUDACC__)
  const size_t element = type == ScalarType::Byte ? 1 : type == ScalarType::Float ? 4 : 8;
  std::memset(result.data_ptr(), 0xff, element * static_cast<size_t>(result.numel()));  // NaN: what is left unwritten shows
#endif
  return result;
}
inline Tensor new_like(const Tensor& like) {
  const auto sizes = like.sizes();
  return new_tensor(like, {sizes.begin(), sizes.end()}, like.scalar_type());
}

/// Memory for the time of one call, from PyTorch's allocator: ordered by the stream, captured by CUDA graphs.
class Scratch {
 public:
  explicit Scratch(const Tensor& like) : like_(like) {}
  template <class T>
  T* take(int64_t count) {
    held_.push_back(new_tensor(like_, {count * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte));
    return static_cast<T*>(held_.back().mutable_data_ptr());
  }

 private:
  const Tensor& like_;
  std::vector<Tensor> held_;
};

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
