// drift(vx, vz, z, gamma, z_exp, x, radius): dx/dz = v_x/v_z in z's dtype.
#include "steps.h"

namespace pfgm {
namespace {

template <class T>
void run(const Tensor& vx, const Tensor& vz, const Tensor& z, double gamma, double z_exp, const T* x,
         double radius, const Tensor& out) {
  const int64_t dim = vx.sizes()[1];
  T* to = static_cast<T*>(out.mutable_data_ptr());
  const PerRow vz_at(vz), z_at(z);
  over_rows(vx.sizes()[0], dim, [&](int64_t begin, int64_t end) {
    Rows<T> rows(vx);
    for (int64_t row = begin; row < end; ++row) {
      const T *v = rows(row), *from = x + row * dim;
      const double t = z_at(row);
      StepSums<double> sums{};
      if (radius > 0) sums_with(from, v, dim, sums);
      else if (t < z_exp) sums.vv = square_sum(v, dim);
      const double scale = inverse_vz<T>(sums.vv, dim, vz_at(row), t, gamma, z_exp);
      const Factors<double> by = euler_factors(sums, scale, t, 1.0, radius);
      if (by.base == 0) scaled(v, static_cast<T>(by.first), to + row * dim, dim);
      else
        combine(static_cast<T>(by.base), from, static_cast<T>(by.first), v, T(0),
                static_cast<const T*>(nullptr), to + row * dim, dim);
    }
  });
}

Tensor drift(const Tensor& vx, const Tensor& vz, const Tensor& z, double gamma, double z_exp,
             const Optional& x, std::optional<double> radius) {
  require_matrix(vx, "v_x must be (B, N) and contiguous");
  require_rows(vz, vx, "v_z must be (B,) and contiguous");
  require(is_real(z), "z must be float32 or float64");
  require(!x || (x->scalar_type() == z.scalar_type() && x->is_contiguous() && same_shape(*x, vx)),
          "x must be of v_x's shape and z's dtype");
  Tensor out = new_tensor(vx, {vx.sizes()[0], vx.sizes()[1]}, z.scalar_type());
  const void* from = x ? x->const_data_ptr() : nullptr;
  const double within = ball_radius(x ? radius : std::nullopt);
  if (z.scalar_type() == ScalarType::Double)
    run(vx, vz, z, gamma, z_exp, static_cast<const double*>(from), within, out);
  else run(vx, vz, z, gamma, z_exp, static_cast<const float*>(from), within, out);
  return out;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) { m.impl("drift", TORCH_BOX(&pfgm::drift)); }
