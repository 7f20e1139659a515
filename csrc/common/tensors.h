// Between PyTorch's stable ABI and raw pointers, for both compiled backends. A backend's own tensors.h
// defines PFGM_BACKEND, its namespace of operators as text, before it includes this, and new_tensor behind
// it.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace pfgm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

/// Not filled; on the device of `like`.
Tensor new_tensor(const Tensor& like, std::vector<int64_t> sizes, ScalarType type);

inline Tensor new_like(const Tensor& like) {
  const auto sizes = like.sizes();
  return new_tensor(like, {sizes.begin(), sizes.end()}, like.scalar_type());
}
inline Tensor new_lse(const Tensor& x) { return new_tensor(x, {x.sizes()[0]}, ScalarType::Double); }
inline Tensor new_rows(const Tensor& x) { return new_tensor(x, {x.sizes()[0]}, x.scalar_type()); }

inline void require(bool condition, const char* message) {
  STD_TORCH_CHECK(condition, PFGM_BACKEND ": ", message);
}

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
