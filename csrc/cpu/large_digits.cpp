// Large, step 1: digits of x against bytes, on processors that multiply bytes (large.h).
#include "large.h"

namespace pfgm {
namespace {

constexpr int64_t kDigitSums = 6 << 20;
constexpr int64_t kDigitDimensions = 65000;  // above, 32 bits may not hold a sum of bytes times digits
static_assert(255 * 128 * kDigitDimensions < int64_t{1} << 31,
              "a byte is at most 255, a later digit at least -128");
constexpr int64_t kShortestBytes = 128, kShortestFloats = 256;  // below, packing costs what digits save
constexpr int64_t kScreenedRows = 32;  // fewer do not pay for a screening before the float product

}  // namespace

bool Large::digits_serve(int64_t rows) const {
  if (k_.largest_digit == 0 || N_ > kDigitDimensions || M_ < 2 * k_.tile_charges) return false;
  if (charges_.bytes && numbers_serve()) return N_ >= kShortestBytes;
  return N_ >= (charges_.bytes ? kShortestBytes : kShortestFloats) && rows >= kScreenedRows;
}

/// A row so far out that no charge can be proven to be without weight: d²_a is at least (‖x − μ‖ − max ‖y −
/// μ‖)² + r², and the gap at which weights vanish is beyond what the gaps usually reach.
bool Large::beyond_screening(const RowFacts& row) const {
  const double away = std::max(0.0, static_cast<double>(row.norm) - largest_root_);
  const WeightFunction function(N_, call_.aug_dim, radius(row.row), away * away);
  const double usual = 16.0 * row.norm * largest_root_ / std::sqrt(static_cast<double>(N_)) +
                       static_cast<double>(largest_root_) * largest_root_;
  return function.gap_of(threshold()) > usual;
}

/// Step 2 for a row of which u is known up to `errors`; largest_product: of the sums that were rounded to
/// float.
bool Large::screened(const RowFacts& row, const float* u, ErrorBound errors, float largest_product,
                     Work& work) {
  const int64_t a = k_.least(u, M_);
  const float rounding = 4 * kRound * (2 * largest_product + largest_root_ * largest_root_);
  errors.margin = errors.slack * roots_[a] + rounding;
  if (errors.residual_slack > 0) errors.margin += errors.residual_slack * residuals_[a];
  return serve_sparse(row.row, u, a, errors, work, few(pair_before_product()));
}

/// Steps 1 and 2 by one digit alone: `rows` keeps those that it could not serve.
void Large::screen(std::vector<RowFacts>& rows) {
  std::vector<RowFacts> tried, left;
  for (const RowFacts& row : rows) (beyond_screening(row) ? left : tried).push_back(row);
  const int64_t count = tried.size();
  if (count < kScreenedRows) return;
  Array<int8_t> digits(count * N_);
  std::vector<const int8_t*> firsts(count);
  share_out(parallel_, count, [&] {
    return [&](int64_t i) {
      split(tried[i], 1, digits.data() + i * N_);
      firsts[i] = digits.data() + i * N_;
    };
  });
  int32_t* sums = reinterpret_cast<int32_t*>(u_.data());
  if (!charges_.bytes) scales_.resize(stride_), residuals_.resize(stride_);
  multiply_digits(firsts, sums);
  std::vector<char> open(count);
  share_out(parallel_, count, [&] {
    return [&, work = Work(*this)](int64_t i) mutable {
      const RowFacts& row = tried[i];
      float* u = u_.data() + i * stride_;
      if (charges_.bytes) {
        k_.scale_digit(sums + i * stride_, static_cast<float>(2 * row.step * unit_), norms_.data(), stride_,
                       u);
        open[i] = !screened(row, u, {row.slack, 0, 0}, largest_byte_product(row), work);
      } else {
        k_.scale_rounded(sums + i * stride_, static_cast<float>(2 * row.step), 128 * row.digit_sum,
                         scales_.data(), norms_.data(), stride_);
        open[i] = !screened(row, u, {row.slack, 2 * row.norm + row.slack, 0},
                            2 * largest_root_ * (row.norm + row.slack), work);
      }
    };
  });
  for (int64_t i = 0; i < count; ++i)
    if (open[i]) left.push_back(tried[i]);
  rows.swap(left);
}

/// Of the first digit's sums with raw bytes, as they are rounded to float.
float Large::largest_byte_product(const RowFacts& row) const {
  return 255 * unit_ * std::sqrt(static_cast<float>(N_)) * (row.norm + row.slack);
}

/// The centred row in `digits` signed bytes, of which the first serves the screening.
void Large::split(RowFacts& row, int digits, int8_t* out) const {
  const DigitSplit found = k_.split_digits(centered(row), N_, digits, out);
  row.step = found.step;
  row.slack = 2 * static_cast<float>(found.first_left) * (1 + 1e-6f);
  row.error = 2 * static_cast<float>(found.left) * (1 + 1e-6f);
  row.digit_sum = found.first_sum;
}

void Large::multiply_digits(const std::vector<const int8_t*>& rows, int32_t* sums) {
  const int64_t count = rows.size();
  Array<int32_t> packed(k_.packed_digits(count, N_));
  k_.pack_digits(rows.data(), count, N_, packed.data());
  over_tiles([&](int64_t from, int64_t to) {
    Array<int32_t> scratch(k_.digit_scratch(count, N_));
    if (charges_.bytes)
      k_.distance_gemm_digits(packed.data(), count, charges_, M_, from, to, sums, stride_, scratch.data());
    else
      k_.distance_gemm_rounded(packed.data(), count, charges_, M_, from, to, center_.data(), sums, stride_,
                               scales_.data(), residuals_.data(), scratch.data());
  });
}

/// Steps 1 to 3 for bytes: the first digit of all rows, and the other two of those that it leaves open.
void Large::serve_by_digits(std::vector<RowFacts>& rows) {
  const int64_t count = rows.size();
  Array<int8_t> digits(3 * count * N_);
  std::vector<const int8_t*> firsts(count);
  share_out(parallel_, count, [&] {
    return [&](int64_t i) {
      rows[i].at = i;
      split(rows[i], 3, digits.data() + 3 * i * N_);
      firsts[i] = digits.data() + 3 * i * N_;
    };
  });
  const auto lower_digits = [&](int64_t i) {
    return std::array{digits.data() + (3 * i + 1) * N_, digits.data() + (3 * i + 2) * N_};
  };
  int32_t* first_sums = reinterpret_cast<int32_t*>(u_.data());
  const bool together = count <= kFewRows && 3 * count * stride_ <= kDigitSums;  // packing is the cost
  if (together) {
    for (int64_t i = 0; i < count; ++i)
      for (const int8_t* digit : lower_digits(i)) firsts.push_back(digit);
    if (sums_.size() < static_cast<size_t>(3 * count * stride_)) sums_.resize(3 * count * stride_);
    multiply_digits(firsts, sums_.data());
    std::copy_n(sums_.begin(), count * stride_, first_sums);
  } else {
    multiply_digits(firsts, first_sums);
  }
  std::vector<char> open(count, 1);
  share_out(parallel_, count, [&] {
    return [&, work = Work(*this), u = Array<float>(stride_)](int64_t i) mutable {
      const RowFacts& row = rows[i];
      if (beyond_screening(row)) return;
      k_.scale_digit(first_sums + i * stride_, static_cast<float>(2 * 65536 * row.step * unit_),
                     norms_.data(), stride_, u.data());
      open[i] = !screened(row, u.data(), {row.slack, 0, 0}, largest_byte_product(row), work);
    };
  });
  rows.erase(std::remove_if(rows.begin(), rows.end(), [&](const RowFacts& row) { return !open[row.at]; }),
             rows.end());
  const int64_t left = rows.size();
  const int64_t group = together ? count : std::max<int64_t>(1, kDigitSums / (2 * stride_));
  for (int64_t first = 0; first < left; first += group) {
    const int64_t some = std::min(group, left - first);
    if (!together) {
      std::vector<const int8_t*> others;
      for (int64_t i = first; i < first + some; ++i)
        for (const int8_t* digit : lower_digits(rows[i].at)) others.push_back(digit);
      if (sums_.size() < static_cast<size_t>(2 * some * stride_)) sums_.resize(2 * some * stride_);
      multiply_digits(others, sums_.data());
    }
    share_out(parallel_, some, [&] {
      return [&](int64_t i) {
        RowFacts& row = rows[first + i];
        const int32_t* sums = sums_.data() + (together ? count + 2 * row.at : 2 * i) * stride_;
        float* u = u_.data() + row.at * stride_;
        k_.join_digits(first_sums + row.at * stride_, sums, sums + stride_, 2 * row.step * unit_,
                       norms_.data(), M_, u);
        // e is as good as random against the charges: eight deviations of its product with the farthest two
        // of them
        row.error = row.error * 2 * largest_root_ * std::min(1.0f, 8 / std::sqrt(static_cast<float>(N_))) +
                    2 * kRound * largest_root_ * largest_root_;
      };
    });
    answer(rows, first, first + some);
  }
}

}  // namespace pfgm
