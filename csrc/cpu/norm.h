// What group_norm_silu and group_norm_silu_backward share: their arguments, the units of their work, and the
// numbers of the channels of one. A unit is one image, or, where images are few, some groups of one.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/table.h"
#include "tensors.h"

namespace pfgm {

/// The arguments that both share; numbers of (image, channel) are null where there are none.
struct __attribute__((visibility("hidden"))) Norm {
  NormView view{};
  int64_t batch, channels, pixels, groups, each;  // each: channels of a group
  const void* x;
  const float *weight, *bias, *add = nullptr, *scale = nullptr, *shift = nullptr;

  Norm(const Tensor& input, const Tensor& weights, const Tensor& biases, int64_t group_count, bool silu,
       const Optional& added, const Optional& scaled, const Optional& shifted)
      : groups(group_count) {
    require(input.dim() >= 2, "x must be (B, C, ...)");
    const auto sizes = input.sizes();
    batch = sizes[0], channels = sizes[1], pixels = 1;
    for (int64_t i = 2; i < input.dim(); ++i) pixels *= sizes[i];
    require(groups > 0 && channels % groups == 0, "groups must divide the channels");
    each = channels / groups;
    view.silu = silu, view.bfloat = input.scalar_type() == ScalarType::BFloat16, view.pixels = pixels;
    require(view.bfloat || input.scalar_type() == ScalarType::Float, "x must be float32 or bfloat16");
    view.channels_last = !input.is_contiguous();
    if (view.channels_last) require_channels_last(input);
    view.stride = view.channels_last ? channels : pixels;
    x = input.const_data_ptr();
    weight = numbers(weights, 1, "weight must be (C,) float32"),
    bias = numbers(biases, 1, "bias must be (C,) float32");
    if (added) add = numbers(*added, batch, "add must be (B, C) float32");
    if (scaled) scale = numbers(*scaled, batch, "scale must be (B, C) float32");
    if (shifted) shift = numbers(*shifted, batch, "shift must be (B, C) float32");
  }

  const float* numbers(const Tensor& tensor, int64_t rows, const char* message) const {
    require(tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous() &&
                tensor.numel() == rows * channels,
            message);
    return static_cast<const float*>(tensor.const_data_ptr());
  }

  static void require_channels_last(const Tensor& tensor) {
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    int64_t step = sizes[1];
    bool good = tensor.dim() == 4 && (sizes[1] == 1 || strides[1] == 1);
    for (int64_t i : {3, 2, 0}) {
      if (!good) break;
      good = sizes[i] == 1 || strides[i] == step;
      step *= sizes[i];
    }
    require(good, "x must be contiguous, or (B, C, H, W) with channels last");
  }

  float gain(int64_t image, int64_t c) const {
    return weight[c] * (scale ? 1.0f + scale[image * channels + c] : 1.0f);
  }
  float offset(int64_t image, int64_t c) const {
    const int64_t at = image * channels + c;
    return bias[c] * (scale ? 1.0f + scale[at] : 1.0f) + (shift ? shift[at] : 0.0f);
  }
  float added(int64_t image, int64_t c) const { return add ? add[image * channels + c] : 0.0f; }

  /// Elements before the first of a channel.
  int64_t start(int64_t image, int64_t c) const {
    return image * channels * pixels + c * (view.channels_last ? 1 : pixels);
  }
  const void* at(const void* array, int64_t element) const {
    return static_cast<const char*>(array) + element * (view.bfloat ? 2 : 4);
  }
  void* at(void* array, int64_t element) const {
    return static_cast<char*>(array) + element * (view.bfloat ? 2 : 4);
  }

  /// body(image, first group, last group) in parallel.
  template <class Body>
  void parallel(const Body& body) const {
    const int64_t least = batch < 16 && pixels * channels > 65536 ? std::max<int64_t>(1, 64 / each) : groups;
    const int64_t parts = (groups + least - 1) / least;
    const int64_t grain = 1 + 16384 / (std::min(groups, least) * each * pixels + 1);
    torch::stable::parallel_for(0, batch * parts, grain, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t first = unit % parts * least;
        body(unit / parts, first, std::min(groups, first + least));
      }
    });
  }
};

/// Numbers of some channels, and the sums over their pixels.
struct __attribute__((visibility("hidden"))) Buffers {
  std::vector<float> shift, rstd, gain, bias, first, second;
  std::vector<double> totals;
  explicit Buffers(int64_t count)
      : shift(count), rstd(count), gain(count), bias(count), first(count), second(count), totals(3 * count) {}
  NormChannels view() const {
    return {shift.data(), rstd.data(), gain.data(), bias.data(), first.data(), second.data()};
  }
  void fill(const Norm& norm, int64_t image, int64_t c, int64_t count, const float* mean, const float* root) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t group = (c + i) / norm.each;
      shift[i] = norm.added(image, c + i) - mean[group], rstd[i] = root[group];
      gain[i] = norm.gain(image, c + i), bias[i] = norm.offset(image, c + i);
    }
  }
};

}  // namespace pfgm
