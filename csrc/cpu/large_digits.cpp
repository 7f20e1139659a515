// Large, step 1: digits of x against bytes, on processors that multiply bytes (large.h).
#include "large.h"

namespace pfgm {
namespace {

constexpr int64_t kDigitSums = 6 << 20;
constexpr int64_t kDigitDimensions = 65000;  // above, 32 bits may not hold a sum of bytes times digits
static_assert(255 * 128 * kDigitDimensions < int64_t{1} << 31,
              "a byte is at most 255, a later digit at least -128");
constexpr int64_t kFloatRows = 32;  // fewer rows do not pay for rounding float charges

}  // namespace

bool Large::digits_serve(int64_t rows) const {
  if (!k_.has_bytes || N_ > kDigitDimensions || M_ < 2 * k_.tile_charges) return false;
  return charges_.bytes ? N_ >= 32 : N_ >= 256 && rows >= kFloatRows;
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

/// Steps 1 and 2: `rows` keeps those that the digit could not serve.
void Large::screen(std::vector<RowFacts>& rows) {
  std::vector<int64_t> tried;
  std::vector<char> open(rows.size(), 1);
  for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i)
    if (!beyond_screening(rows[i])) tried.push_back(i);
  const int64_t count = tried.size();
  if (count == 0 || (!charges_.bytes && count < kFloatRows)) return;
  std::vector<int8_t> digits(count * N_);
  share_out(parallel_, count,
            [&] { return [&](int64_t i) { split(rows[tried[i]], tried[i], 1, digits.data() + i * N_); }; });
  int32_t* sums = reinterpret_cast<int32_t*>(u_.data());
  if (!charges_.bytes) scales_.resize(stride_), residuals_.resize(stride_);
  multiply_digits(digits, count, sums);
  share_out(parallel_, count, [&] {
    return [&, work = Work(*this)](int64_t i) mutable {
      const RowFacts& row = rows[tried[i]];
      const float* u = u_.data() + i * stride_;
      const float scale = static_cast<float>(2 * row.step * unit_);
      ErrorBound errors{row.slack, 0, 0};
      float largest_product;  // of a digit's sum, as a value: what is rounded to float
      if (charges_.bytes) {
        k_.scale_digit(sums + i * stride_, scale, norms_.data(), stride_);
        largest_product = 255 * unit_ * std::sqrt(static_cast<float>(N_)) * (row.norm + row.slack);
      } else {
        k_.scale_rounded(sums + i * stride_, scale, 128 * row.digit_sum, scales_.data(), norms_.data(),
                         stride_);
        errors.residual_slack = 2 * row.norm + row.slack;
        largest_product = 2 * largest_root_ * (row.norm + row.slack);
      }
      const int64_t a = k_.least(u, M_);
      const float rounding = 4 * kRound * (2 * largest_product + largest_root_ * largest_root_);
      errors.margin =
          errors.slack * roots_[a] + (charges_.bytes ? 0 : errors.residual_slack * residuals_[a]) + rounding;
      open[tried[i]] = !serve_sparse(row.row, u, a, errors, work, few(pair_before_product()));
    };
  });
  std::vector<RowFacts> left;
  for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i)
    if (open[i]) left.push_back(rows[i]);
  rows.swap(left);
}

/// The centred row in fixed point of `digits` signed bytes, scaled by its largest entry; sets step and slack
/// = 2‖e‖.
void Large::split(RowFacts& row, int64_t i, int digits, int8_t* out) const {
  const float* from = centered_.data() + i * N_;
  float largest = 0;
  for (int64_t k = 0; k < N_; ++k) largest = std::max(largest, std::fabs(from[k]));
  const double most = digits == 1 ? 127.0 : 127.0 * 65536 - 32768;  // lower digits run from −128 to 127
  const double step = row.step = largest / most, inverse = largest > 0 ? most / largest : 0;
  double left = 0;
  int32_t first_sum = 0;
  for (int64_t k = 0; k < N_; ++k) {
    const double q = std::nearbyint(from[k] * inverse), e = from[k] - q * step;
    left += e * e;
    int32_t whole = static_cast<int32_t>(q);
    for (int digit = digits - 1; digit > 0; --digit) {
      const int32_t low = ((whole + 128) & 255) - 128;
      out[digit * N_ + k] = static_cast<int8_t>(low);
      whole = (whole - low) / 256;
    }
    out[k] = static_cast<int8_t>(whole);
    first_sum += whole;
  }
  row.digit_sum = first_sum;
  row.slack = 2 * static_cast<float>(std::sqrt(left)) * (1 + 1e-6f);
}

void Large::multiply_digits(const std::vector<int8_t>& digits, int64_t count, int32_t* sums) {
  std::vector<int32_t> packed(padded_rows(count) * ((N_ + 3) / 4));
  k_.pack_digits(digits.data(), count, N_, packed.data());
  over_tiles([&](int64_t from, int64_t to) {
    std::vector<int32_t> scratch(k_.digit_scratch(count));
    if (charges_.bytes)
      k_.distance_gemm_digits(packed.data(), count, charges_, M_, from, to, sums, stride_, scratch.data());
    else
      k_.distance_gemm_rounded(packed.data(), count, charges_, M_, from, to, center_.data(), sums, stride_,
                               scales_.data(), residuals_.data(), scratch.data());
  });
}

/// Step 3 for bytes: three digits.
void Large::serve_by_digits(std::vector<RowFacts>& rows) {
  const int64_t count = rows.size();
  std::vector<int8_t> digits(3 * count * N_);
  share_out(parallel_, count,
            [&] { return [&](int64_t i) { split(rows[i], i, 3, digits.data() + 3 * i * N_); }; });
  const int64_t group = std::clamp<int64_t>(kDigitSums / (3 * stride_), 1, count);
  if (sums_.size() < static_cast<size_t>(3 * group * stride_)) sums_.resize(3 * group * stride_);
  for (int64_t first = 0; first < count; first += group) {
    const int64_t last = std::min(first + group, count);
    const std::vector<int8_t> part(digits.begin() + 3 * first * N_, digits.begin() + 3 * last * N_);
    multiply_digits(part, 3 * (last - first), sums_.data());
    share_out(parallel_, last - first, [&] {
      return [&](int64_t i) {
        const int32_t* sums = sums_.data() + 3 * i * stride_;
        RowFacts& row = rows[first + i];
        k_.join_digits(sums, sums + stride_, sums + 2 * stride_, 2 * row.step * unit_, norms_.data(), M_,
                       u_.data() + i * stride_);
        // e is as good as random against the charges: eight deviations of its product with the farthest two
        // of them
        row.error = row.slack * 2 * largest_root_ * std::min(1.0f, 8 / std::sqrt(static_cast<float>(N_))) +
                    2 * kRound * largest_root_ * largest_root_;
      };
    });
    answer(rows, first, last);
  }
}

}  // namespace pfgm
