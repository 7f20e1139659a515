// euler_step(x, vx, vz, z, z_next, gamma, z_exp, radius): x + (z' − z) v_x/v_z, and euler_step.out.
#include "steps.h"

namespace pfgm {
namespace {

void into(const Tensor& out, const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& z,
          const Tensor& z_next, double gamma, double z_exp, std::optional<double> radius) {
  require_rows(vz, vx, "v_z must be (B,) and contiguous");
  run_step(
      [&]<class T>(T) {
        return EulerRule<T>{per_row(vz),           per_row(z),
                            per_row(z_next),       static_cast<T>(gamma),
                            static_cast<T>(z_exp), static_cast<T>(ball_radius(radius))};
      },
      &x, vx, nullptr, out);
}

Tensor euler_step(const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& z, const Tensor& z_next,
                  double gamma, double z_exp, std::optional<double> radius) {
  Tensor out = new_like(x);
  into(out, x, vx, vz, z, z_next, gamma, z_exp, radius);
  return out;
}

void euler_step_out(const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& z,
                    const Tensor& z_next, double gamma, double z_exp, std::optional<double> radius,
                    const Tensor& out) {
  into(out, x, vx, vz, z, z_next, gamma, z_exp, radius);
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(PFGM_DISPATCH_KEY, m) {
  m.impl("euler_step", TORCH_BOX(&pfgm::euler_step));
  m.impl("euler_step.out", TORCH_BOX(&pfgm::euler_step_out));
}
