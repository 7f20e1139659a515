// drift(vx, vz, z, gamma, z_exp): dx/dz = v_x/v_z, v_z substituted below z_exp; in z's dtype.
#include "steps.h"

namespace pfgm {
namespace {

Tensor drift(const Tensor& vx, const Tensor& vz, const Tensor& z, double gamma, double z_exp) {
  require_rows(vz, vx, "v_z must be (B,) and contiguous");
  const auto sizes = vx.sizes();
  Tensor out = new_tensor(vx, {sizes.begin(), sizes.end()}, z.scalar_type());
  run_step(
      [&]<class T>(T) {
        return DriftRule<T>{per_row(vz), per_row(z), static_cast<T>(gamma), static_cast<T>(z_exp)};
      },
      nullptr, vx, nullptr, out);
  return out;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("drift", TORCH_BOX(&pfgm::drift)); }
