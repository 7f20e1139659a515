// group_norm_silu_backward: the driver of kernels/group_norm.inl's backward.
#include <tuple>

#include "norm.h"

namespace pfgm {
namespace {

/// dx, and (B, 3, C): Σ dz, Σ dz x̂ and Σ dx over the pixels.
std::tuple<Tensor, Tensor> group_norm_silu_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                    const Tensor& bias, const Tensor& mean,
                                                    const Tensor& rstd, int64_t groups, bool silu,
                                                    const Optional& add, const Optional& scale,
                                                    const Optional& shift) {
  const Norm norm(x, weight, bias, groups, silu, add, scale, shift);
  require(dy.scalar_type() == x.scalar_type() && same_shape(dy, x), "the gradient must be as x is");
  if (norm.view.channels_last) Norm::require_channels_last(dy);
  else require(dy.is_contiguous(), "the gradient must lie as x does");
  require(mean.is_contiguous() && rstd.is_contiguous() && mean.numel() == norm.batch * groups &&
              rstd.numel() == norm.batch * groups && mean.scalar_type() == ScalarType::Float &&
              rstd.scalar_type() == ScalarType::Float,
          "mean and rstd must be (B, groups) float32");
  Tensor dx = torch::stable::empty_like(x),
         sums = new_tensor(x, {norm.batch, 3, norm.channels}, ScalarType::Float);
  void* to = dx.mutable_data_ptr();
  float* rows = static_cast<float*>(sums.mutable_data_ptr());
  const void* by = dy.const_data_ptr();
  const float *means = static_cast<const float*>(mean.const_data_ptr()),
              *roots = static_cast<const float*>(rstd.const_data_ptr());
  const Kernels& k = kernels();
  norm.parallel([&](int64_t image, int64_t begin, int64_t end) {
    const int64_t c = begin * norm.each, count = (end - begin) * norm.each, start = norm.start(image, c);
    NormView view = norm.view;
    view.channels = count;
    Buffers of(count);
    of.fill(norm, image, c, count, means + image * groups, roots + image * groups);
    k.norm_gradients(view, of.view(), norm.at(norm.x, start), norm.at(by, start), of.totals.data());
    float* row = rows + image * 3 * norm.channels + c;
    const double* totals = of.totals.data();
    for (int64_t from = 0; from < count; from += norm.each) {
      double all = 0, along = 0;
      for (int64_t i = from; i < from + norm.each; ++i) {
        all += of.gain[i] * totals[i];
        along += of.gain[i] * totals[count + i];
      }
      const double share = of.rstd[from] / (static_cast<double>(norm.pixels) * norm.each);
      for (int64_t i = from; i < from + norm.each; ++i) {
        of.first[i] = static_cast<float>(share * all), of.second[i] = static_cast<float>(share * along);
        row[i] = static_cast<float>(totals[i]);
        row[norm.channels + i] = static_cast<float>(totals[count + i]);
        row[2 * norm.channels + i] =
            static_cast<float>(of.rstd[i] * of.gain[i] * totals[i] -
                               share * (all * norm.pixels + along * totals[2 * count + i]));
      }
    }
    k.norm_backward(view, of.view(), norm.at(norm.x, start), norm.at(by, start), norm.at(to, start));
  });
  return {dx, sums};
}

}  // namespace
}  // namespace pfgm

PFGM_LIBRARY_IMPL(m) { m.impl("group_norm_silu_backward", TORCH_BOX(&pfgm::group_norm_silu_backward)); }
