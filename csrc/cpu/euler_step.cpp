// euler_step(x, vx, vz, z, z_next, gamma, z_exp, radius): x + (z' − z) v_x/v_z, and euler_step.out,
// where out may be x.
#include "steps.h"

namespace pfgm {
namespace {

template <class T>
void run(const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& z, const Tensor& z_next,
         double gamma, double z_exp, double radius, const Tensor& out) {
  const int64_t dim = x.sizes()[1];
  const T* all = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  const PerRow vz_at(vz), z_at(z), next_at(z_next);
  over_rows(x.sizes()[0], dim, [&](int64_t begin, int64_t end) {
    Rows<T> rows(vx);
    for (int64_t row = begin; row < end; ++row) {
      const T *v = rows(row), *from = all + row * dim;
      const double t = z_at(row);
      StepSums<double> sums{};
      if (radius > 0) sums_with(from, v, dim, sums);
      else if (t < z_exp) sums.vv = square_sum(v, dim, from);
      const double scale = inverse_vz<T>(sums.vv, dim, vz_at(row), t, gamma, z_exp);
      move(from, euler_factors(sums, scale, t, next_at(row) - t, radius), v, static_cast<const T*>(nullptr),
           to + row * dim, dim);
    }
  });
}

void into(const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& z, const Tensor& z_next,
          double gamma, double z_exp, std::optional<double> radius, const Tensor& out) {
  require_step(x, vx, vz);
  require(out.is_contiguous() && same_shape(out, x) && out.scalar_type() == x.scalar_type(),
          "out must be like x");
  const auto function = x.scalar_type() == ScalarType::Double ? run<double> : run<float>;
  function(x, vx, vz, z, z_next, gamma, z_exp, ball_radius(radius), out);
}

Tensor euler_step(const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& z, const Tensor& z_next,
                  double gamma, double z_exp, std::optional<double> radius) {
  Tensor out = new_like(x);
  into(x, vx, vz, z, z_next, gamma, z_exp, radius, out);
  return out;
}

void euler_step_out(const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& z,
                    const Tensor& z_next, double gamma, double z_exp, std::optional<double> radius,
                    const Tensor& out) {
  into(x, vx, vz, z, z_next, gamma, z_exp, radius, out);
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) {
  m.impl("euler_step", TORCH_BOX(&pfgm::euler_step));
  m.impl("euler_step.out", TORCH_BOX(&pfgm::euler_step_out));
}
