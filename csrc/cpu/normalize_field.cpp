// normalize_field(field, r, gamma): v = −√N (field, r)/(‖(field, r)‖ + γ).
#include <tuple>

#include "steps.h"

namespace pfgm {
namespace {

template <class T>
void run(const Tensor& field, const Tensor& r, double gamma, const Tensor& vx, const Tensor& vz) {
  const int64_t dim = field.sizes()[1];
  const T *from = static_cast<const T*>(field.const_data_ptr()),
          *radius = static_cast<const T*>(r.const_data_ptr());
  T *to = static_cast<T*>(vx.mutable_data_ptr()), *last = static_cast<T*>(vz.mutable_data_ptr());
  over_rows(field.sizes()[0], dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const double z = radius[row];
      const double factor = -std::sqrt(static_cast<double>(dim)) /
                            (std::sqrt(square_sum(from + row * dim, dim) + z * z) + gamma);
      scaled(from + row * dim, static_cast<T>(factor), to + row * dim, dim);
      last[row] = static_cast<T>(factor * z);
    }
  });
}

std::tuple<Tensor, Tensor> normalize_field(const Tensor& field, const Tensor& r, double gamma) {
  require_matrix(field, "field must be (B, N) and contiguous");
  require_rows(r, field, "r must be (B,) and contiguous");
  require(is_real(field) && r.scalar_type() == field.scalar_type(),
          "field must be float32 or float64, and r of its dtype");
  Tensor vx = new_like(field), vz = new_like(r);
  const auto function = field.scalar_type() == ScalarType::Double ? run<double> : run<float>;
  function(field, r, gamma, vx, vz);
  return {vx, vz};
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) { m.impl("normalize_field", TORCH_BOX(&pfgm::normalize_field)); }
