// The way of large N in float32. For blocks of rows:
//   1. (bytes, where the processor multiplies bytes) one signed digit of x against the raw bytes, exact integers; with the
//      Cauchy–Schwarz bound on what the digit leaves of x it proves which charges cannot carry weight;
//   2. rows that see one charge, or few, are answered from direct distances in double and a direct sum of differences;
//   3. for the other rows the float product of all pairs; again few charges are recomputed directly, and rows whose weights are
//      truly spread take their weights from the product, by log1p of the gap to the nearest charge;
//   4. the second product, for spread rows only.
// Memory: one block of u, at most 32 MiB (twice for the score), and B N sums of the spread rows of a block.
#include <algorithm>
#include <atomic>
#include <vector>

#include "charge_rows.h"
#include "rows.h"

namespace pfgm {
namespace {

constexpr int64_t kBlockFloats = 8 << 20;
constexpr int64_t kMostRows = 256;
constexpr int64_t kDigitDimensions = 66000;  // above, 32 bits do not hold a sum of 255·127
constexpr float kRound = 6e-8f;              // half a unit in the last place
constexpr double kDirectionError = 2e-6;     // what the product's rounding may cost a row before it is recomputed directly

/// Each index once, to whichever thread is free: rows differ a hundredfold in what they cost.
template <class Body>
void share_out(const Parallel& parallel, int64_t count, Body make_body) {
  std::atomic<int64_t> next{0};
  parallel(0, std::min<int64_t>(count, 64), 1, [&](int64_t, int64_t) {
    if (next.load() >= count) return;
    auto body = make_body();
    for (int64_t i = next++; i < count; i = next++) body(i);
  });
}

class Large {
 public:
  Large(const FieldCall& call, const Parallel& parallel)
      : call_(call), parallel_(parallel), k_(kernels()), charges_(charge_rows(call)), M_(call.count), N_(call.dim) {
    stride_ = (M_ + k_.tile_charges - 1) / k_.tile_charges * k_.tile_charges;
    score_ = call.wanted == Wanted::kScore;
    unit_ = charges_.bytes ? 1.0f / charges_.divisor : 1.0f;
    prepare();
  }

  void run() {
    const int64_t rows = std::clamp<int64_t>(kBlockFloats / stride_, 8, kMostRows);
    u_.resize(std::min(rows, call_.batch) * stride_);
    if (score_) pulls_.resize(u_.size());
    for (int64_t first = 0; first < call_.batch; first += rows) block(first, std::min(first + rows, call_.batch));
  }

 private:
  struct RowFacts {
    int64_t row;
    float norm;   // ‖x − μ‖
    float slack;  // 2‖e‖, e what the digit leaves of x − μ
  };
  struct SpreadRow {
    int64_t row, at, anchor;  // row of the call, row of u
    double anchor2;
    WeightSums sums;
  };

  const float* x(int64_t row) const { return static_cast<const float*>(call_.x) + row * N_; }
  double radius(int64_t row) const { return static_cast<const float*>(call_.r)[row]; }
  double log_q(int64_t j) const { return call_.log_weights ? call_.log_weights[j] - largest_q_ : 0.0; }

  void prepare() {
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

  /// The field at x is that of charge `source` alone: every other charge is at least neighbor_distance − ‖x − y‖ away.
  bool proven_by_hint(int64_t row) {
    if (!call_.source || call_.log_weights) return false;
    const int64_t j = call_.source[row];
    const double near2 = k_.distance(x(row), charges_, j), near = std::sqrt(near2);
    const double far = static_cast<const float*>(call_.neighbor_distance)[j] - near;
    if (far <= near) return false;
    const Law law(N_, call_.aug_dim, radius(row), near2);
    if (law.log_weight(far * far - near2) > -threshold()) return false;
    finish_one(row, j, near2);
    return true;
  }

  double threshold() const { return kNegligible + std::log(static_cast<double>(M_)); }

  void block(int64_t first, int64_t last) {
    std::vector<RowFacts> active;
    std::vector<char> keep(last - first);
    share_out(parallel_, last - first, [&] {
      return [&](int64_t i) {
        if (!row_is_good<float>(call_, first + i)) spoil_row<float>(call_, first + i);
        else keep[i] = !proven_by_hint(first + i);
      };
    });
    for (int64_t i = 0; i < last - first; ++i)
      if (keep[i]) active.push_back({first + i, 0, 0});
    if (active.empty()) return;
    center_rows(active);
    if (charges_.bytes && k_.has_bytes && N_ <= kDigitDimensions && N_ >= 32 && M_ >= 2 * k_.tile_charges) {
      screen(active);
      if (active.empty()) return;
      center_rows(active);
    }
    settle(active);
  }

  /// x − μ of the rows, one after the other, and its norm.
  void center_rows(std::vector<RowFacts>& rows) {
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
        rows[i].norm = static_cast<float>(std::sqrt(norm));
      };
    });
  }

  /// Step 1 and 2: `rows` keeps those that the digit could not settle.
  void screen(std::vector<RowFacts>& rows) {
    const int64_t count = rows.size();
    std::vector<int8_t> digits(count * N_);
    std::vector<float> scales(count);
    share_out(parallel_, count, [&] { return [&](int64_t i) { rows[i].slack = digit(i, digits.data() + i * N_, scales[i]); }; });
    const int64_t padded = (count + k_.tile_rows - 1) / k_.tile_rows * k_.tile_rows;
    std::vector<int32_t> packed(padded * ((N_ + 3) / 4));
    k_.pack_digits(digits.data(), count, N_, packed.data());
    over_tiles([&](int64_t from, int64_t to) {
      std::vector<int32_t> scratch((padded + 256) * k_.tile_charges);
      k_.product_digits(packed.data(), count, charges_, M_, from, to, scales.data(), norms_.data(), u_.data(), stride_, scratch.data());
    });
    std::vector<char> open(count);
    share_out(parallel_, count, [&] {
      return [&, index = std::vector<int32_t>(few())](int64_t i) mutable {
        const RowFacts& row = rows[i];
        const float* u = u_.data() + i * stride_;
        const int64_t a = k_.least(u, M_);
        // what three float roundings of a sum of up to 255 √N (norm + slack) in byte units may have moved
        const float rounding = 4 * kRound * (2 * 255 * unit_ * std::sqrt(static_cast<float>(N_)) * (row.norm + row.slack) + largest_root_ * largest_root_);
        open[i] = !settle_few(row.row, u, a, row.slack, row.slack * roots_[a] + rounding, index, few());
      };
    });
    std::vector<RowFacts> left;
    for (int64_t i = 0; i < count; ++i)
      if (open[i]) left.push_back(rows[i]);
    rows.swap(left);
  }

  /// One signed digit of the centred row: its scale so that u = norm − scale·sum, and 2‖e‖.
  float digit(int64_t i, int8_t* out, float& scale) const {
    const float* from = centered_.data() + i * N_;
    float largest = 0;
    for (int64_t k = 0; k < N_; ++k) largest = std::max(largest, std::fabs(from[k]));
    const float step = largest / 127, inverse = largest > 0 ? 127 / largest : 0;
    double left = 0;
    for (int64_t k = 0; k < N_; ++k) {
      const float q = std::nearbyint(from[k] * inverse);
      out[k] = static_cast<int8_t>(q);
      const double e = static_cast<double>(from[k]) - static_cast<double>(q) * step;
      left += e * e;
    }
    scale = 2 * step * unit_;
    return 2 * static_cast<float>(std::sqrt(left)) * (1 + 1e-6f);
  }

  template <class Body>
  void over_tiles(Body body) {
    const int64_t tile = k_.tile_charges;
    parallel_(0, stride_ / tile, 1, [&](int64_t begin, int64_t end) { body(begin * tile, end * tile); });
  }

  /// Few enough that their direct distances and differences cost less than two products: about a sixth of all.
  int64_t few() const { return std::max<int64_t>(16, M_ / 8); }

  /// Step 3 and 4.
  void settle(std::vector<RowFacts>& rows) {
    const int64_t count = rows.size(), padded = (count + k_.tile_rows - 1) / k_.tile_rows * k_.tile_rows;
    std::vector<float> packed(padded * N_);
    k_.pack_rows(centered_.data(), count, N_, packed.data());
    over_tiles([&](int64_t from, int64_t to) {
      std::vector<float> scratch(k_.product_scratch(count));
      k_.product(packed.data(), count, charges_, M_, from, to, unit_, norms_.data(), u_.data(), stride_, scratch.data());
    });
    std::vector<SpreadRow> spread(count);
    share_out(parallel_, count, [&] {
      return [&, index = std::vector<int32_t>(M_)](int64_t i) mutable { spread[i] = settle_row(rows[i], i, index); };
    });
    spread.erase(std::remove_if(spread.begin(), spread.end(), [](const SpreadRow& row) { return row.row < 0; }), spread.end());
    if (!spread.empty()) sum_spread(spread);
  }

  /// The product's rounding in u: sums of 128 from zero, added up; as random as roundings are.
  float product_error(const RowFacts& row) const {
    const float n = static_cast<float>(N_);
    return 2 * kRound * (row.norm * largest_value_ * 2 * (8 + std::sqrt(n) / 11) / std::sqrt(n) + row.norm * largest_root_ / std::sqrt(n) + largest_root_ * largest_root_);
  }

  SpreadRow settle_row(const RowFacts& row, int64_t at, std::vector<int32_t>& index) {
    float* u = u_.data() + at * stride_;
    const int64_t a = k_.least(u, M_);
    const float error = product_error(row), margin = 4 * error;
    if (settle_few(row.row, u, a, 0, margin, index, few())) return {-1, 0, 0, 0, {}};
    const double anchor2 = k_.distance(x(row.row), charges_, a);
    const Law law(N_, call_.aug_dim, radius(row.row), anchor2);
    // An error of u moves a log-weight by p·error/d²; that moves the direction by the spread of the charges over ‖E‖.
    const double reach = std::min(1.0, 2.0 * largest_root_ / std::sqrt(anchor2 + law.radius2));
    const double moved = (law.gaussian ? 1.0 : law.power) * error * law.per_gap;
    const bool coarse = moved * reach > kDirectionError || moved > 1e-3;
    // Close to the charges the mean is a difference of nearly equal vectors: then differences are summed one by one.
    const bool close = anchor2 < 1e-3 * largest_value_ * largest_value_;
    if (coarse || close || log_q(a) < -60) {
      if (!settle_few(row.row, u, a, 0, margin, index, M_)) throw_unsettled();
      return {-1, 0, 0, 0, {}};
    }
    const FloatLaw float_law{static_cast<float>(law.power), static_cast<float>(law.per_gap), law.gaussian,
                             static_cast<float>(law.total), static_cast<float>(anchor2 + law.radius2),
                             static_cast<float>(law.radius2), static_cast<float>(std::exp(-threshold()))};
    const WeightSums sums = k_.weigh(u, score_ ? pulls_.data() + at * stride_ : nullptr, float_q_.empty() ? nullptr : float_q_.data(),
                                     u[a], float_law, M_);
    if (call_.wanted == Wanted::kLogDensity) {
      call_.lse[row.row] = law.relative() + largest_q_ + std::log(sums.mass);
      return {-1, 0, 0, 0, {}};
    }
    return {row.row, at, a, anchor2, sums};
  }

  [[noreturn]] static void throw_unsettled() { __builtin_trap(); }  // room for all charges: cannot be

  /// Answers a row from the charges that may carry weight, if they are at most `most`: direct distances, then direct differences.
  bool settle_few(int64_t row, const float* u, int64_t a, float slack, float margin, std::vector<int32_t>& index, int64_t most) {
    const double anchor2 = k_.distance(x(row), charges_, a);
    const Law guess(N_, call_.aug_dim, radius(row), anchor2);
    const double gap = guess.gap_of(threshold() - log_q(a));
    const float bound = static_cast<float>(std::min(1e37, (static_cast<double>(u[a]) + margin + gap) + 1e-6 * std::fabs(gap)));
    const int64_t count = k_.select(u, roots_.data(), slack, bound, M_, index.data(), most);
    if (count > most) return false;
    if (count <= 1) {
      finish_one(row, a, anchor2);
      return true;
    }
    std::vector<double> squares(count), weights(count);
    int64_t near = 0;
    for (int64_t c = 0; c < count; ++c) {
      squares[c] = index[c] == a ? anchor2 : k_.distance(x(row), charges_, index[c]);
      if (squares[c] < squares[near]) near = c;
    }
    const Law law(N_, call_.aug_dim, radius(row), squares[near]);
    double largest = -std::numeric_limits<double>::infinity();
    for (int64_t c = 0; c < count; ++c) {
      weights[c] = law.log_weight(squares[c] - law.anchor2) + log_q(index[c]);
      largest = std::max(largest, weights[c]);
    }
    double mass = 0, rate = 0, trace = 0;
    const double cut = -threshold();
    for (int64_t c = 0; c < count; ++c) {
      const double fall = weights[c] - largest;
      weights[c] = fall < cut ? 0 : std::exp(fall);
      const double pull = weights[c] * law.rate(squares[c] - law.anchor2);
      mass += weights[c], rate += pull, trace += pull * squares[c];
    }
    const double lse = law.relative() + largest_q_ + largest + std::log(mass);
    std::vector<float> anchor(N_), shift(N_), pull(score_ ? N_ : 0);
    k_.decode(charges_, index[near], anchor.data());
    if (call_.wanted != Wanted::kLogDensity)
      for (int64_t c = 0; c < count; ++c) {
        if (c == near || weights[c] == 0) continue;
        const double weight = weights[c] / mass;
        k_.add_difference(charges_, index[c], anchor.data(), static_cast<float>(weight),
                          static_cast<float>(weight * law.rate(squares[c] - law.anchor2)), shift.data(), score_ ? pull.data() : nullptr);
      }
    finish_row<float, float>(call_, row, law, anchor.data(), shift.data(), pull.data(), rate / mass, trace / mass, lse);
    return true;
  }

  void finish_one(int64_t row, int64_t j, double squares) {
    const Law law(N_, call_.aug_dim, radius(row), squares);
    std::vector<float> anchor(N_), zero(N_);
    k_.decode(charges_, j, anchor.data());
    const double c = law.rate(0);
    finish_row<float, float>(call_, row, law, anchor.data(), zero.data(), zero.data(), c, c * squares, law.relative() + largest_q_ + log_q(j));
  }

  void sum_spread(const std::vector<SpreadRow>& rows) {
    const int64_t count = rows.size();
    compact(rows, u_);
    if (score_) compact(rows, pulls_);
    std::vector<float> sums(count * N_), pulled(score_ ? count * N_ : 0);
    parallel_(0, (N_ + 191) / 192, 1, [&](int64_t begin, int64_t end) {
      const int64_t from = begin * 192, to = std::min(end * 192, N_);
      k_.spread(u_.data(), count, stride_, charges_, M_, from, to, sums.data());
      if (score_) k_.spread(pulls_.data(), count, stride_, charges_, M_, from, to, pulled.data());
    });
    share_out(parallel_, count, [&] {
      return [&, anchor = std::vector<float>(N_)](int64_t i) mutable {
        const SpreadRow& row = rows[i];
        const Law law(N_, call_.aug_dim, radius(row.row), row.anchor2);
        k_.decode(charges_, row.anchor, anchor.data());
        const double rate = row.sums.rate / row.sums.mass;
        to_shift(sums.data() + i * N_, anchor.data(), 1.0, row.sums.mass);
        if (score_) to_shift(pulled.data() + i * N_, anchor.data(), rate, row.sums.mass);
        finish_row<float, float>(call_, row.row, law, anchor.data(), sums.data() + i * N_, score_ ? pulled.data() + i * N_ : nullptr,
                                 rate, row.sums.trace / row.sums.mass, law.relative() + largest_q_ + std::log(row.sums.mass));
      };
    });
  }

  /// Rows of weights that are in use move together to the front.
  void compact(const std::vector<SpreadRow>& rows, std::vector<float>& matrix) const {
    for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i)
      if (rows[i].at != i) std::copy_n(matrix.begin() + rows[i].at * stride_, M_, matrix.begin() + i * stride_);
  }

  /// Σ w raw → Σ w y / mass − share · y_a, share = Σ w / mass.
  void to_shift(float* sums, const float* anchor, double share, double mass) const {
    const float scale = static_cast<float>(unit_ / mass);
    const float constant = charges_.bytes ? static_cast<float>(share * (128.0 / charges_.divisor + charges_.offset)) : 0.0f;
    for (int64_t k = 0; k < N_; ++k) sums[k] = (sums[k] * scale + constant) - static_cast<float>(share) * anchor[k];
  }

  const FieldCall& call_;
  const Parallel& parallel_;
  const Kernels& k_;
  const ChargeRows charges_;
  const int64_t M_, N_;
  int64_t stride_;
  bool score_;
  float unit_;  // value of one step of a byte
  std::vector<float> center_, norms_, roots_, float_q_, centered_, u_, pulls_;
  float largest_root_ = 0, largest_value_ = 0;
  double largest_q_ = 0;
};

}  // namespace

void run_large(const FieldCall& call, const Parallel& parallel) { Large(call, parallel).run(); }

}  // namespace pfgm
