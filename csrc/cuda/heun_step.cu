// heun_step(x, vx, vz, vx_next, vz_next, z, z_next, gamma, z_exp, radius): x + (z' − z)/2 · (v_x/v_z +
// v_x'/v_z').
#include "steps.h"

namespace pfgm {
namespace {

Tensor heun_step(const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& vx_next,
                 const Tensor& vz_next, const Tensor& z, const Tensor& z_next, double gamma, double z_exp,
                 std::optional<double> radius) {
  require_rows(vz, vx, "v_z must be (B,) and contiguous");
  require_rows(vz_next, vx, "v_z at z' must be (B,) and contiguous");
  Tensor out = new_like(x);
  // One kernel reads both networks' outputs: they come from one network, so they have one dtype; where not,
  // x's is taken.
  const bool same = vx.scalar_type() == vx_next.scalar_type();
  const Tensor first = same ? vx : converted(vx, x), second = same ? vx_next : converted(vx_next, x);
  run_step(
      [&]<class T>(T) {
        return HeunRule<T>{per_row(vz),
                           per_row(z),
                           per_row(z_next),
                           per_row(vz_next),
                           static_cast<T>(gamma),
                           static_cast<T>(z_exp),
                           static_cast<T>(ball_radius(radius))};
      },
      &x, first, &second, out);
  return out;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) { m.impl("heun_step", TORCH_BOX(&pfgm::heun_step)); }
