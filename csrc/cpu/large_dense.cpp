// Large, step 4: the second product, for the rows whose weights are spread (large.h).
#include "large.h"

namespace pfgm {
namespace {

constexpr int64_t kStrip = 192;    // columns are shared out in whole strips of the kernels: of 48 and of 64
constexpr int64_t kLongRow = 256;  // from here on columns are shared out, below rows
constexpr int64_t kPacked = 6 << 20;   // fours of digits at a time
constexpr int64_t kSums = 1 << 17;     // that stay in the second-level cache
constexpr double kWeightError = 3e-7;  // what two digits may cost a row's direction, as an expectation

}  // namespace

void Large::sum_dense(const std::vector<DenseRow>& rows) {
  const int64_t count = rows.size();
  Array<double> sums(count * N_), pulled(score_ ? count * N_ : 0), shares(count), pull_shares(count);
  const bool digits = charges_.bytes && numbers_serve() && digits_serve(count);
  const auto sum = digits ? &Large::sum_by_digits : &Large::sum_by_floats;
  (this->*sum)(rows, u_, &WeightSums::mass, sums.data(), shares.data());
  if (score_) (this->*sum)(rows, pulls_, &WeightSums::rate, pulled.data(), pull_shares.data());
  share_out(parallel_, count, [&] {
    return [&, anchor = Array<float>(N_), shift = Array<float>(N_),
            pull = Array<float>(N_)](int64_t i) mutable {
      const DenseRow& row = rows[i];
      const WeightFunction function(N_, call_.aug_dim, radius(row.row), row.anchor2);
      k_.decode(charges_, row.anchor, anchor.data());
      to_shift(sums.data() + i * N_, anchor.data(), shares[i], row.sums.mass, shift.data());
      if (score_) to_shift(pulled.data() + i * N_, anchor.data(), pull_shares[i], row.sums.mass, pull.data());
      finish_row<float, float>(call_, row.row, anchor.data(), shift.data(), score_ ? pull.data() : nullptr,
                               row.sums.rate / row.sums.mass, row.sums.trace / row.sums.mass,
                               function.anchor_log_weight() + largest_q_ + std::log(row.sums.mass));
    };
  });
}

/// Pieces of (rows, columns), each once: `body(first row, how many, first column, last column)`. Long rows by
/// some `width` columns (each charge is read once by each thread), short ones by `rows` at a time.
template <class Body>
void Large::over_pieces(int64_t count, int64_t rows, int64_t width, Body body) const {
  const bool wide = N_ >= kLongRow;
  const int64_t columns = wide ? std::max((width + kStrip - 1) / kStrip, int64_t{1}) * kStrip : N_;
  if (wide) rows = count;
  const int64_t across = (N_ + columns - 1) / columns, down = (count + rows - 1) / rows;
  share_out(parallel_, across * down, [&] {
    return [&](int64_t piece) {
      const int64_t from = piece % across * columns, top = piece / across * rows;
      body(top, std::min(rows, count - top), from, std::min(from + columns, N_));
    };
  });
}

void Large::sum_by_floats(const std::vector<DenseRow>& rows, Array<float>& matrix, double WeightSums::* total,
                          double* sums, double* shares) {
  const int64_t count = rows.size();
  for (int64_t i = 0; i < count; ++i) {
    shares[i] = rows[i].sums.*total;
    if (rows[i].at != i)  // rows of weights that are in use move together to the front
      std::copy_n(matrix.begin() + rows[i].at * stride_, M_, matrix.begin() + i * stride_);
  }
  over_pieces(count, 24, N_ / 8, [&](int64_t top, int64_t some, int64_t from, int64_t to) {
    k_.weighted_sum(matrix.data() + top * stride_, some, stride_, charges_, M_, from, to, sums + top * N_);
  });
}

/// Weights in digits: two where rounding to them costs the row no more than kWeightError, or three. The
/// anchor is left out: its own difference is zero, and often it is by far the heaviest.
void Large::sum_by_digits(const std::vector<DenseRow>& rows, Array<float>& matrix, double WeightSums::* total,
                          double* sums, double* shares) {
  const int64_t bands = k_.weight_bands(M_), count = rows.size();
  Array<float> steps(count * bands);
  std::vector<WeightDigits> digits(count);
  share_out(parallel_, count, [&] {
    return [&](int64_t i) {
      float *weights = matrix.data() + rows[i].at * stride_, *largest = steps.data() + i * bands;
      weights[rows[i].anchor] = 0;
      k_.largest_weights(weights, M_, largest);
      double squares = 0;
      for (int64_t band = 0; band < bands; ++band)
        squares += static_cast<double>(largest[band]) * largest[band];
      // a rounded number errs by √(1/6) of a step at random
      const double error = std::sqrt(squares * (static_cast<double>(M_) / bands) / 6) / 65535;
      digits[i] = {0, error <= kWeightError * rows[i].sums.*total ? 2 : 3, largest};
    };
  });
  // The wider a piece, the better charges stream; two for each of several threads, should one be held up.
  const int64_t pieces = parallel_.threads == 1 ? 1 : 2 * parallel_.threads;
  const int64_t digit_row = bands * k_.band_charges / 4, room = std::max<int64_t>(3, kPacked / digit_row);
  for (int64_t first = 0, last; first < count; first = last) {  // as many rows as there is room for
    int64_t used = 0;
    for (last = first; last < count && used + digits[last].digits <= room; ++last)
      digits[last].first = used, used += digits[last].digits;
    const int64_t padded = padded_rows(used);
    if (static_cast<int64_t>(sums_.size()) < padded * digit_row) sums_.resize(padded * digit_row);
    std::fill_n(sums_.begin(), padded * digit_row, 0);
    share_out(parallel_, last - first, [&] {
      return [&](int64_t i) {
        const int64_t g = first + i;
        shares[g] = k_.pack_weights(matrix.data() + rows[g].at * stride_, M_, digits[g].digits,
                                    digits[g].first, padded, sums_.data(), steps.data() + g * bands);
      };
    });
    over_pieces(last - first, 64, std::min(N_ / pieces, kSums / (last - first)),
                [&](int64_t top, int64_t some, int64_t from, int64_t to) {
                  Array<int32_t> scratch(k_.weighted_sum_scratch(padded, to - from));
                  k_.weighted_sum_digits(sums_.data(), digits.data() + first + top, some, padded, charges_,
                                         M_, from, to, sums + (first + top) * N_, scratch.data());
                });
  }
}

/// Σ w raw → Σ w y / mass − share · y_a / mass, share = Σ w.
void Large::to_shift(const double* sums, const float* anchor, double share, double mass, float* out) const {
  const double scale = unit_ / mass, part = share / mass,
               constant = charges_.bytes ? part * (128.0 / charges_.divisor + charges_.offset) : 0.0;
  for (int64_t k = 0; k < N_; ++k)
    out[k] = static_cast<float>((sums[k] * scale + constant) - part * anchor[k]);
}

}  // namespace pfgm
