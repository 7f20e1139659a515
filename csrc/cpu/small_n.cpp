// Few dimensions (N ≤ 16): the driver of kernels/small_n.inl. Charges become columns once a call; rows run in
// parallel.
#include <algorithm>
#include <vector>

#include "charge_view.h"
#include "finish.h"
#include "kernels/table.h"
#include "weight_function.h"

namespace pfgm {

constexpr int64_t kMostDimensions = 16;
constexpr double kMostPower =
    40;  // above, float32 squares are too coarse for the exponent; the large path recomputes them

bool small_n_serves(const FieldCall& call) {
  return call.dim <= kMostDimensions && 0.5 * (call.dim + call.aug_dim) <= kMostPower;
}

void run_small_n(const FieldCall& call, const Parallel& parallel) {
  const Kernels& k = kernels();
  const int64_t M = call.count, N = call.dim, stride = (M + 63) / 64 * 64;
  const Charges held(call);
  const ChargeView& charges = held.view();
  std::vector<float> columns(N * stride), log_q(call.log_weights ? stride : 0);
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
  parallel(0, call.batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> squares(stride);
    float shift[kMostDimensions], pull[kMostDimensions], anchor[kMostDimensions];
    for (int64_t row = begin; row < end; ++row) {
      if (!row_is_good<float>(call, row)) {
        spoil_row<float>(call, row);
        continue;
      }
      const float* x = static_cast<const float*>(call.x) + row * N;
      const float r = static_cast<const float*>(call.r)[row];
      int64_t near = 0;
      const WeightSums sums =
          k.small_n(x, columns.data(), N, stride, M, log_q.empty() ? nullptr : log_q.data(),
                    static_cast<float>(0.5 * (N + call.aug_dim)), static_cast<float>(N + call.aug_dim), r * r,
                    squares.data(), &near, shift, score ? pull : nullptr);
      for (int64_t i = 0; i < N; ++i) anchor[i] = columns[i * stride + near];
      const WeightFunction function(N, call.aug_dim, r, k.distance(x, charges, near));
      finish_row<float, float>(call, row, anchor, shift, pull, sums.rate / sums.mass, sums.trace / sums.mass,
                               function.anchor_log_weight() + largest_q + std::log(sums.mass));
    }
  });
}

}  // namespace pfgm
