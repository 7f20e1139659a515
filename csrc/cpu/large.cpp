// Large: the course of a call, and the float product (large.h).
#include "large.h"

namespace pfgm {
namespace {

constexpr int64_t kBlockFloats = 8 << 20;
constexpr int64_t kMostRows = 256;

/// Blocks stay with their thread from call to call: new pages for 32 MiB cost as much as a tenth of a call.
template <class T, int kWhich>
Array<T>& kept() {
  static thread_local Array<T> block;
  return block;
}

}  // namespace

void run_large(const FieldCall& call, const Parallel& parallel) { Large(call, parallel).run(); }

Large::Large(const FieldCall& call, const Parallel& parallel)
    : call_(call),
      parallel_(parallel),
      k_(kernels()),
      held_(call),
      charges_(held_.view()),
      M_(call.count),
      N_(call.dim),
      u_(kept<float, 0>()),
      sums_(kept<int32_t, 1>()) {
  stride_ = (M_ + k_.tile_charges - 1) / k_.tile_charges * k_.tile_charges;
  score_ = call.op == FieldOp::kScore;
  unit_ = charges_.bytes ? 1.0f / charges_.divisor : 1.0f;
  prepare();
}

Large::Work::Work(const Large& of)
    : index(of.M_),
      squares(of.M_),
      weights(of.stride_),
      pulls(of.stride_),
      shifts(of.call_.log_weights ? of.stride_ : 0),
      anchor(of.N_),
      shift(of.N_),
      pull(of.N_) {}

void Large::run() {
  const int64_t rows = std::clamp<int64_t>(kBlockFloats / stride_, 8, kMostRows);
  const size_t wanted = std::min(rows, call_.batch) * stride_;
  if (u_.size() < wanted) u_.resize(wanted);
  if (score_) pulls_.resize(wanted);
  for (int64_t first = 0; first < call_.batch; first += rows)
    block(first, std::min(first + rows, call_.batch));
}

void Large::prepare() {
  const float* center = static_cast<const float*>(call_.center);
  center_.assign(N_, 0.0f);
  if (center) std::copy(center, center + N_, center_.begin());
  norms_.assign(stride_, 0.0f);
  roots_.assign(stride_, 0.0f);
  parallel_(0, M_, 256, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      const double norm = center ? call_.sq_norms[j] : k_.distance(center_.data(), charges_, j);
      norms_[j] = static_cast<float>(norm);
      roots_[j] = static_cast<float>(std::sqrt(norm)) * (1 + 1e-6f);
    }
  });
  largest_root_ = *std::max_element(roots_.begin(), roots_.begin() + M_);
  double shift = 0;  // ‖μ‖ as the product sees it: around 0, or around byte 128
  const double origin = charges_.bytes ? 128.0 / charges_.divisor + charges_.offset : 0.0;
  for (float value : center_) shift += (value - origin) * (value - origin);
  largest_value_ = largest_root_ + static_cast<float>(std::sqrt(shift));
  if (call_.log_weights) {
    largest_q_ = *std::max_element(call_.log_weights, call_.log_weights + M_);
    float_q_.resize(stride_);
    for (int64_t j = 0; j < M_; ++j) float_q_[j] = static_cast<float>(log_q(j));
  }
}

void Large::block(int64_t first, int64_t last) {
  std::vector<RowFacts> active;
  std::vector<char> keep(last - first);
  parallel_(0, last - first, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      keep[i] = row_is_good<float>(call_, first + i);
      if (!keep[i]) spoil_row<float>(call_, first + i);
    }
  });
  for (int64_t i = 0; i < last - first; ++i)
    if (keep[i]) active.push_back({first + i, 0, 0, 0, 0, 0, 0, 0});
  if (active.empty()) return;
  center_rows(active);
  const bool digits = digits_serve(active.size());
  if (digits && charges_.bytes && numbers_serve()) return serve_by_digits(active);
  if (digits) {
    screen(active);
    if (active.empty()) return;
    center_rows(active);
  }
  serve_by_floats(active);
}

/// x − μ of the rows, one after the other, and its norm.
void Large::center_rows(std::vector<RowFacts>& rows) {
  centered_.resize(rows.size() * N_);
  share_out(parallel_, rows.size(), [&] {
    return [&](int64_t i) {
      const float* from = x(rows[i].row);
      float* to = centered_.data() + i * N_;
      double norm = 0;
      for (int64_t k = 0; k < N_; ++k) {
        to[k] = from[k] - center_[k];
        norm += static_cast<double>(to[k]) * to[k];
      }
      rows[i].norm = static_cast<float>(std::sqrt(norm)), rows[i].centred = i;
    };
  });
}

/// Step 3: the product in float.
void Large::serve_by_floats(std::vector<RowFacts>& rows) {
  const int64_t count = rows.size();
  if (count <= kFewRows) {
    over_tiles([&](int64_t from, int64_t to) {
      k_.distance_gemm_few(centered_.data(), count, charges_, M_, from, to, unit_, norms_.data(), u_.data(),
                           stride_);
    });
  } else {
    Array<float> packed(padded_rows(count) * N_);
    k_.pack_rows(centered_.data(), count, N_, packed.data());
    over_tiles([&](int64_t from, int64_t to) {
      Array<float> scratch(k_.gemm_scratch(count));
      k_.distance_gemm(packed.data(), count, charges_, M_, from, to, unit_, norms_.data(), u_.data(), stride_,
                       scratch.data());
    });
  }
  for (int64_t i = 0; i < count; ++i) rows[i].at = i, rows[i].error = gemm_error(rows[i]);
  answer(rows, 0, count);
}

/// Answers rows [first, last), whose u are known.
void Large::answer(const std::vector<RowFacts>& rows, int64_t first, int64_t last) {
  std::vector<DenseRow> dense(last - first);
  share_out(parallel_, last - first, [&] {
    return [&, work = Work(*this)](int64_t i) mutable { dense[i] = serve_row(rows[first + i], work); };
  });
  dense.erase(std::remove_if(dense.begin(), dense.end(), [](const DenseRow& row) { return row.row < 0; }),
              dense.end());
  if (!dense.empty()) sum_dense(dense);
}

/// What rounding may make of u in the float product: about twice the largest error that is seen. Sums of 128
/// from zero, added up.
float Large::gemm_error(const RowFacts& row) const {
  const float n = static_cast<float>(N_);
  return 2 * kRound *
         (row.norm * largest_value_ * 2 * (8 + std::sqrt(n) / 11) / std::sqrt(n) +
          row.norm * largest_root_ / std::sqrt(n) + largest_root_ * largest_root_);
}

}  // namespace pfgm
