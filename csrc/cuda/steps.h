// From the steps' tensors to launch_step: dtypes become template arguments here, once for all four operators.
#pragma once

#include <type_traits>

#include "kernels/step_kernels.cuh"
#include "tensors.h"

namespace pfgm {

inline PerRow per_row(const Tensor& tensor) {
  PerRow::Type type = PerRow::Type::kFloat;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: break;
    case ScalarType::Double: type = PerRow::Type::kDouble; break;
    case ScalarType::BFloat16: type = PerRow::Type::kBFloat16; break;
    case ScalarType::Half: type = PerRow::Type::kHalf; break;
    default: require(false, "v_z and z must be float32, float64, bfloat16 or float16");
  }
  require(tensor.is_contiguous() && tensor.dim() <= 1, "v_z and z must be contiguous, of shape () or (B,)");
  return {tensor.const_data_ptr(), type, tensor.dim() == 1 && tensor.sizes()[0] > 1 ? 1 : 0};
}

inline Tensor converted(const Tensor& from, const Tensor& like) {
  Tensor result = new_like(like);
  torch::stable::copy_(result, from);
  return result;
}

inline bool is_half(const Tensor& v) {
  return v.scalar_type() == ScalarType::BFloat16 || v.scalar_type() == ScalarType::Half;
}

/// Launches the rule `make(T{})` for x's dtype T, with v in T or, where T is float32 and the rule is of a
/// network's output, in half precision: other dtypes are not worth their kernels. `x` and `second` may be
/// null.
template <class T, class MakeRule>
void run_step_as(MakeRule make, const Tensor* x, const Tensor& v, const Tensor* second, const Tensor& out) {
  std::shared_ptr<void> scratch;
  const auto go = [&]<class V>(V) {
    const StepCall<T, V> call{x ? static_cast<const T*>(x->const_data_ptr()) : nullptr,
                              static_cast<const V*>(v.const_data_ptr()),
                              second ? static_cast<const V*>(second->const_data_ptr()) : nullptr,
                              static_cast<T*>(out.mutable_data_ptr()),
                              v.sizes()[0],
                              v.sizes()[1]};
    launch_step(make(T{}), call, current_stream(v), [&](int64_t count) {
      scratch = new_scratch(v, count * static_cast<int64_t>(sizeof(T)));
      return static_cast<T*>(scratch.get());
    });
  };
  if constexpr (std::is_same_v<T, float> && decltype(make(T{}))::kNetwork) {
    if (v.scalar_type() == ScalarType::BFloat16) return go(BFloat16{});
    if (v.scalar_type() == ScalarType::Half) return go(Half{});
  }
  go(T{});
}

template <class MakeRule>
void run_step(MakeRule make, const Tensor* x, const Tensor& v, const Tensor* second, const Tensor& out) {
  require_matrix(v, "v_x must be (B, N) and contiguous");
  require_matrix(out, "the result must be (B, N) and contiguous");
  require(same_shape(out, v) && (!x || same_shape(*x, v)), "x, v_x and the result must have one shape");
  require(!x || (x->is_contiguous() && x->scalar_type() == out.scalar_type()),
          "x must be contiguous and of the result's dtype");
  require(!second ||
              (second->is_contiguous() && same_shape(*second, v) && second->scalar_type() == v.scalar_type()),
          "v_x at z' must have v_x's shape and dtype, and be contiguous");
  const bool single = out.scalar_type() == ScalarType::Float;
  require(single || out.scalar_type() == ScalarType::Double, "x must be float32 or float64");
  require(v.scalar_type() == ScalarType::Float || v.scalar_type() == ScalarType::Double || is_half(v),
          "v_x must be float32, float64, bfloat16 or float16");
  const DeviceGuard guard(device_of(v));
  if (v.scalar_type() != out.scalar_type() && !(single && is_half(v))) {
    const Tensor first = converted(v, out), then = second ? converted(*second, out) : first;
    return run_step(make, x, first, second ? &then : nullptr, out);
  }
  if (single) run_step_as<float>(make, x, v, second, out);
  else run_step_as<double>(make, x, v, second, out);
}

}  // namespace pfgm
