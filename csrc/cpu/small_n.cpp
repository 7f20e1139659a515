// Few dimensions (N ≤ 16), any D: the driver of kernels/small_n.inl. Charges become columns once a call; rows
// run in parallel.
#include <algorithm>
#include <vector>

#include "aligned.h"
#include "charge_view.h"
#include "finish.h"
#include "kernels/table.h"
#include "weight_function.h"

namespace pfgm {
namespace {

constexpr int64_t kMostDimensions = 16;
constexpr double kMostFactors = 40;        // largest p for which weights are products of roots
constexpr double kMostFloatExponent = 16;  // p ‖ρ_a‖²/d²_a above which gaps in float are too coarse

/// N + D where it is whole and small, so that a weight is so many factors 1/√(1 + gap/d²_a); else 0.
int halves_of(const WeightFunction& function, bool weighted) {
  const bool whole =
      !function.gaussian && function.power <= kMostFactors && function.total == std::floor(function.total);
  return whole && !weighted ? static_cast<int>(function.total) : 0;
}

}  // namespace

bool small_n_serves(const FieldCall& call) { return call.dim <= kMostDimensions; }

void run_small_n(const FieldCall& call, const Parallel& parallel) {
  const Kernels& k = kernels();
  const int64_t M = call.count, N = call.dim, stride = (M + 63) / 64 * 64;
  const Charges held(call);
  const ChargeView& charges = held.view();
  Array<float> columns(N * stride), log_q(call.log_weights ? stride : 0);
  double largest_q = 0;
  if (call.log_weights) {
    largest_q = *std::max_element(call.log_weights, call.log_weights + M);
    for (int64_t j = 0; j < M; ++j) log_q[j] = static_cast<float>(call.log_weights[j] - largest_q);
  }
  parallel(0, stride, 4096, [&](int64_t begin, int64_t end) {
    float y[kMostDimensions];
    for (int64_t j = begin; j < end; ++j) {
      k.decode(charges, std::min(j, M - 1), y);
      for (int64_t i = 0; i < N; ++i) columns[i * stride + j] = y[i];
    }
  });
  const bool score = call.op == FieldOp::kScore;
  const double negligible = kNegligible + std::log(static_cast<double>(M));
  parallel(0, call.batch, 1, [&](int64_t begin, int64_t end) {
    Array<float> squares(stride);
    float shift[kMostDimensions], pull[kMostDimensions], anchor[kMostDimensions];
    for (int64_t at = begin; at < end; ++at) {
      if (!row_is_good<float>(call, at)) {
        spoil_row<float>(call, at);
        continue;
      }
      const float* x = static_cast<const float*>(call.x) + at * N;
      int64_t near = k.small_n_nearest(x, columns.data(), N, stride, M, false, squares.data());
      double anchor2 = k.distance(x, charges, near);
      const double r = static_cast<const float*>(call.r)[at];
      WeightFunction function(N, call.aug_dim, r, anchor2);
      const bool precise =
          (function.gaussian ? 1.0 : function.power) * anchor2 * function.per_gap > kMostFloatExponent;
      if (precise) {
        near = k.small_n_nearest(x, columns.data(), N, stride, M, true, squares.data());
        anchor2 = k.distance(x, charges, near);
        function = WeightFunction(N, call.aug_dim, r, anchor2);
      }
      const double reach = (anchor2 + function.gap_of(negligible)) * (1 + 1e-6 * (N + 2));
      const bool weighted = call.log_weights != nullptr;
      const SmallNRow row{
          x,
          columns.data(),
          squares.data(),
          weighted ? log_q.data() : nullptr,
          N,
          stride,
          M,
          near,
          anchor2,
          weighted || !(reach < 1e37) ? std::numeric_limits<float>::infinity() : static_cast<float>(reach),
          halves_of(function, weighted),
          precise};
      const WeightSums sums =
          k.small_n_sums(row, in_float(function, 0.0, M, weighted), shift, score ? pull : nullptr);
      for (int64_t i = 0; i < N; ++i) anchor[i] = columns[i * stride + near];
      finish_row<float, float>(call, at, anchor, shift, pull, sums.rate / sums.mass, sums.trace / sums.mass,
                               function.anchor_log_weight() + largest_q + std::log(sums.mass));
    }
  });
}

}  // namespace pfgm
