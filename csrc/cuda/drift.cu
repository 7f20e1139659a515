// drift(vx, vz, z, gamma, z_exp, x, radius): dx/dz = v_x/v_z, v_z substituted below z_exp; in z's dtype.
#include "steps.h"

namespace pfgm {
namespace {

template <template <class> class Rule>
void into(const Tensor& out, const Tensor* x, const Tensor& vx, const Tensor& vz, const Tensor& z,
          double gamma, double z_exp, double radius) {
  run_step(
      [&]<class T>(T) {
        return Rule<T>{per_row(vz), per_row(z), static_cast<T>(gamma), static_cast<T>(z_exp),
                       static_cast<T>(radius)};
      },
      x, vx, nullptr, out);
}

Tensor drift(const Tensor& vx, const Tensor& vz, const Tensor& z, double gamma, double z_exp,
             const Optional& x, std::optional<double> radius) {
  require_rows(vz, vx, "v_z must be (B,) and contiguous");
  const auto sizes = vx.sizes();
  Tensor out = new_tensor(vx, {sizes.begin(), sizes.end()}, z.scalar_type());
  if (x && radius) into<BoundedDriftRule>(out, &*x, vx, vz, z, gamma, z_exp, ball_radius(radius));
  else into<DriftRule>(out, nullptr, vx, vz, z, gamma, z_exp, 0);
  return out;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("drift", TORCH_BOX(&pfgm::drift)); }
