// drift(vx, vz, z, gamma, z_exp): dx/dz = v_x/v_z in z's dtype.
#include "steps.h"

namespace pfgm {
namespace {

template <class T>
void run(const Tensor& vx, const Tensor& vz, const Tensor& z, double gamma, double z_exp, const Tensor& out) {
  const int64_t dim = vx.sizes()[1];
  T* to = static_cast<T*>(out.mutable_data_ptr());
  const PerRow vz_at(vz), z_at(z);
  over_rows(vx.sizes()[0], dim, [&](int64_t begin, int64_t end) {
    Rows<T> rows(vx);
    for (int64_t row = begin; row < end; ++row) {
      const T* v = rows(row);
      const double inverse = inverse_vz(v, dim, vz_at(row), z_at(row), gamma, z_exp);
      combine(static_cast<const T*>(nullptr), v, static_cast<T>(inverse), to + row * dim, dim);
    }
  });
}

Tensor drift(const Tensor& vx, const Tensor& vz, const Tensor& z, double gamma, double z_exp) {
  require_matrix(vx, "v_x must be (B, N) and contiguous");
  require_rows(vz, vx, "v_z must be (B,) and contiguous");
  require(is_real(z), "z must be float32 or float64");
  Tensor out = new_tensor(vx, {vx.sizes()[0], vx.sizes()[1]}, z.scalar_type());
  const auto function = z.scalar_type() == ScalarType::Double ? run<double> : run<float>;
  function(vx, vz, z, gamma, z_exp, out);
  return out;
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) { m.impl("drift", TORCH_BOX(&pfgm::drift)); }
