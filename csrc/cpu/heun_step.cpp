// heun_step(x, vx, vz, vx_next, vz_next, z, z_next, gamma, z_exp, radius):
// x + (z' − z)/2 · (dx/dz at z + dx/dz at z').
#include "steps.h"

namespace pfgm {
namespace {

template <class T>
void run(const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& vx_next, const Tensor& vz_next,
         const Tensor& z, const Tensor& z_next, double gamma, double z_exp, double radius,
         const Tensor& out) {
  const int64_t dim = x.sizes()[1];
  const T* all = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  const PerRow vz_at(vz), vz_next_at(vz_next), z_at(z), next_at(z_next);
  over_rows(x.sizes()[0], dim, [&](int64_t begin, int64_t end) {
    Rows<T> rows(vx), rows_next(vx_next);
    for (int64_t row = begin; row < end; ++row) {
      const T *v = rows(row), *w = rows_next(row), *from = all + row * dim;
      const double t = z_at(row), t_next = next_at(row);
      StepSums<double> sums{};
      if (radius > 0) {
        sums_with(from, v, dim, sums);
        sums_with(from, v, w, dim, sums);
      } else {
        if (t < z_exp) sums.vv = square_sum(v, dim);
        if (t_next < z_exp) sums.ww = square_sum(w, dim);
      }
      const double scale = inverse_vz<T>(sums.vv, dim, vz_at(row), t, gamma, z_exp);
      const double scale_next = inverse_vz<T>(sums.ww, dim, vz_next_at(row), t_next, gamma, z_exp);
      move(from, heun_factors(sums, scale, scale_next, t, t_next, t_next - t, radius), v, w, to + row * dim,
           dim);
    }
  });
}

Tensor heun_step(const Tensor& x, const Tensor& vx, const Tensor& vz, const Tensor& vx_next,
                 const Tensor& vz_next, const Tensor& z, const Tensor& z_next, double gamma, double z_exp,
                 std::optional<double> radius) {
  require_step(x, vx, vz);
  require_step(x, vx_next, vz_next);
  Tensor out = new_like(x);
  const auto function = x.scalar_type() == ScalarType::Double ? run<double> : run<float>;
  function(x, vx, vz, vx_next, vz_next, z, z_next, gamma, z_exp, ball_radius(radius), out);
  return out;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) { m.impl("heun_step", TORCH_BOX(&pfgm::heun_step)); }
