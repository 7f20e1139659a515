// normalize_field(field, r, gamma): v = −√N (field, r)/(‖(field, r)‖ + γ).
#include <tuple>

#include "steps.h"

namespace pfgm {
namespace {

std::tuple<Tensor, Tensor> normalize_field(const Tensor& field, const Tensor& r, double gamma) {
  require_rows(r, field, "r must be (B,) and contiguous");
  require(r.scalar_type() == field.scalar_type(), "r must have the field's dtype");
  Tensor vx = new_like(field), vz = new_like(r);
  run_step(
      [&]<class T>(T) {
        return NormalizeRule<T>{static_cast<const T*>(r.const_data_ptr()),
                                static_cast<T*>(vz.mutable_data_ptr()), static_cast<T>(gamma)};
      },
      nullptr, field, nullptr, vx);
  return {vx, vz};
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("normalize_field", TORCH_BOX(&pfgm::normalize_field)); }
