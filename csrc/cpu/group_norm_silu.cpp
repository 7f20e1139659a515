// group_norm_silu: the driver of kernels/group_norm.inl's forward. Channels' moments are joined in double, by
// their means and the squares about them, so nothing is lost where a mean is large.
#include <cmath>
#include <tuple>

#include "norm.h"

namespace pfgm {
namespace {

std::tuple<Tensor, Tensor, Tensor> group_norm_silu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                                   int64_t groups, double eps, bool silu, const Optional& add,
                                                   const Optional& scale, const Optional& shift) {
  const Norm norm(x, weight, bias, groups, silu, add, scale, shift);
  Tensor out = torch::stable::empty_like(x), mean = new_tensor(x, {norm.batch, groups}, ScalarType::Float),
         rstd = new_tensor(x, {norm.batch, groups}, ScalarType::Float);
  void* to = out.mutable_data_ptr();
  float *means = static_cast<float*>(mean.mutable_data_ptr()),
        *roots = static_cast<float*>(rstd.mutable_data_ptr());
  const Kernels& k = kernels();
  norm.parallel([&](int64_t image, int64_t begin, int64_t end) {
    const int64_t c = begin * norm.each, count = (end - begin) * norm.each, start = norm.start(image, c);
    NormView view = norm.view;
    view.channels = count;
    Buffers of(count);
    k.norm_moments(view, norm.at(norm.x, start), of.first.data(), of.totals.data());
    const double pixels = static_cast<double>(norm.pixels);
    for (int64_t group = begin; group < end; ++group) {
      double center = 0, squares = 0;
      const auto mean_of = [&](int64_t i) {
        return of.totals[i] / pixels - of.first[i] + norm.added(image, c + i);
      };
      const int64_t from = (group - begin) * norm.each;
      for (int64_t i = from; i < from + norm.each; ++i) center += mean_of(i) / norm.each;
      for (int64_t i = from; i < from + norm.each; ++i) {
        const double away = mean_of(i) - center;
        squares += of.totals[count + i] - of.totals[i] * of.totals[i] / pixels + pixels * away * away;
      }
      const double variance = squares / (pixels * norm.each);
      means[image * groups + group] = static_cast<float>(center);
      roots[image * groups + group] =
          static_cast<float>(1 / std::sqrt((variance < 0 ? 0 : variance) + eps));  // NaN stays NaN
    }
    of.fill(norm, image, c, count, means + image * groups, roots + image * groups);
    k.norm_forward(view, of.view(), norm.at(norm.x, start), norm.at(to, start));
  });
  return {out, mean, rstd};
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) { m.impl("group_norm_silu", TORCH_BOX(&pfgm::group_norm_silu)); }
