// Large, step 4: the second product, for the rows whose weights are spread (large.h).
#include "large.h"

namespace pfgm {

void Large::sum_dense(const std::vector<DenseRow>& rows) {
  const int64_t count = rows.size();
  compact(rows, u_);
  if (score_) compact(rows, pulls_);
  std::vector<double> sums(count * N_), pulled(score_ ? count * N_ : 0);
  // Long rows are shared out by columns (each charge is read once by each thread), short ones by rows.
  const int64_t columns = N_ >= 1024 ? (N_ / 8 + 47) / 48 * 48 : N_, rows_each = N_ >= 1024 ? count : 16;
  const int64_t across = (N_ + columns - 1) / columns, down = (count + rows_each - 1) / rows_each;
  share_out(parallel_, across * down, [&] {
    return [&](int64_t task) {
      const int64_t from = task % across * columns, to = std::min(from + columns, N_);
      const int64_t top = task / across * rows_each, some = std::min(rows_each, count - top);
      k_.weighted_sum(u_.data() + top * stride_, some, stride_, charges_, M_, from, to,
                      sums.data() + top * N_);
      if (score_)
        k_.weighted_sum(pulls_.data() + top * stride_, some, stride_, charges_, M_, from, to,
                        pulled.data() + top * N_);
    };
  });
  share_out(parallel_, count, [&] {
    return [&, anchor = std::vector<float>(N_), shift = std::vector<float>(N_),
            pull = std::vector<float>(N_)](int64_t i) mutable {
      const DenseRow& row = rows[i];
      const WeightFunction function(N_, call_.aug_dim, radius(row.row), row.anchor2);
      k_.decode(charges_, row.anchor, anchor.data());
      const double rate = row.sums.rate / row.sums.mass;
      to_shift(sums.data() + i * N_, anchor.data(), 1.0, row.sums.mass, shift.data());
      if (score_) to_shift(pulled.data() + i * N_, anchor.data(), rate, row.sums.mass, pull.data());
      finish_row<float, float>(call_, row.row, anchor.data(), shift.data(), score_ ? pull.data() : nullptr,
                               rate, row.sums.trace / row.sums.mass,
                               function.anchor_log_weight() + largest_q_ + std::log(row.sums.mass));
    };
  });
}

/// Rows of weights that are in use move together to the front.
void Large::compact(const std::vector<DenseRow>& rows, std::vector<float>& matrix) const {
  for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i)
    if (rows[i].at != i) std::copy_n(matrix.begin() + rows[i].at * stride_, M_, matrix.begin() + i * stride_);
}

/// Σ w raw → Σ w y / mass − share · y_a, share = Σ w / mass.
void Large::to_shift(const double* sums, const float* anchor, double share, double mass, float* out) const {
  const double scale = unit_ / mass,
               constant = charges_.bytes ? share * (128.0 / charges_.divisor + charges_.offset) : 0.0;
  for (int64_t k = 0; k < N_; ++k)
    out[k] = static_cast<float>((sums[k] * scale + constant) - share * anchor[k]);
}

}  // namespace pfgm
