// The CPU's part of common/tensors.h.
#pragma once

#define PFGM_BACKEND "pfgm_fast_cpu"
#define PFGM_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(pfgm_fast_cpu, CPU, m)

#include "../common/tensors.h"

namespace pfgm {

inline Tensor new_tensor(const Tensor& like, std::vector<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, type);
}

}  // namespace pfgm
