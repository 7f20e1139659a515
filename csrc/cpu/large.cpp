// The way of large N in float32. For blocks of rows:
//   1. (bytes, where the processor multiplies bytes) one signed digit of x against the raw bytes, exact integers; with the
//      Cauchy–Schwarz bound on what the digit leaves of x it proves which charges cannot carry weight;
//   2. rows that see one charge, or few, are answered from direct distances in double and a direct sum of differences;
//   3. for the other rows the product of all pairs, in float, or for bytes in three digits, which is as good; again few charges are recomputed directly, and rows whose weights are
//      truly spread take their weights from the product, by log1p of the gap to the nearest charge;
//   4. the second product, for spread rows only.
// Memory: one block of u, at most 32 MiB (twice for the score), 24 MiB of digit sums, and B N sums of the spread rows of a block.
#include <algorithm>
#include <atomic>
#include <vector>

#include "charge_rows.h"
#include "rows.h"

namespace pfgm {
namespace {

constexpr int64_t kBlockFloats = 8 << 20;
constexpr int64_t kDigitFloats = 6 << 20;
constexpr int64_t kMostRows = 256;
constexpr int64_t kDigitDimensions = 66000;  // above, 32 bits do not hold a sum of 255·127
constexpr float kRound = 6e-8f;              // half a unit in the last place
constexpr double kDirectionError = 1e-5;     // what twice the product's error may cost a row before it is recomputed directly

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
      : call_(call), parallel_(parallel), k_(kernels()), charges_(charge_rows(call)), M_(call.count), N_(call.dim),
        u_(kept_block()) {
    stride_ = (M_ + k_.tile_charges - 1) / k_.tile_charges * k_.tile_charges;
    score_ = call.wanted == Wanted::kScore;
    unit_ = charges_.bytes ? 1.0f / charges_.divisor : 1.0f;
    prepare();
  }

  void run() {
    const int64_t rows = std::clamp<int64_t>(kBlockFloats / stride_, 8, kMostRows);
    const size_t wanted = std::min(rows, call_.batch) * stride_;
    if (u_.size() < wanted) u_.resize(wanted);
    if (score_) pulls_.resize(wanted);
    for (int64_t first = 0; first < call_.batch; first += rows) block(first, std::min(first + rows, call_.batch));
  }

 private:
  /// The block stays with its thread from call to call: new pages for 32 MiB cost as much as a tenth of a call.
  static std::vector<float>& kept_block() {
    static thread_local std::vector<float> block;
    return block;
  }
  struct RowFacts {
    int64_t row;
    float norm;   // ‖x − μ‖
    double step;  // value of the last digit
    float slack;  // 2‖e‖, e what the digits leave of x − μ
    float error;  // of u, as a maximum
  };
  /// What a thread needs for one row.
  struct Work {
    explicit Work(const Large& of)
        : index(of.M_), squares(of.M_), weights(of.stride_), pulls(of.stride_), shifts(of.call_.log_weights ? of.stride_ : 0),
          anchor(of.N_), shift(of.N_), pull(of.N_) {}
    std::vector<int32_t> index;
    std::vector<double> squares;
    std::vector<float> weights, pulls, shifts, anchor, shift, pull;
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
  bool proven_by_hint(int64_t row, Work& work) {
    if (!call_.source || call_.log_weights) return false;
    const int64_t j = call_.source[row];
    const double near2 = k_.distance(x(row), charges_, j), near = std::sqrt(near2);
    const double far = static_cast<const float*>(call_.neighbor_distance)[j] - near;
    if (far <= near) return false;
    const Law law(N_, call_.aug_dim, radius(row), near2);
    if (law.log_weight(far * far - near2) > -threshold()) return false;
    finish_one(row, j, near2, work);
    return true;
  }

  double threshold() const { return kNegligible + std::log(static_cast<double>(M_)); }

  void block(int64_t first, int64_t last) {
    std::vector<RowFacts> active;
    std::vector<char> keep(last - first);
    share_out(parallel_, last - first, [&] {
      return [&, work = Work(*this)](int64_t i) mutable {
        if (!row_is_good<float>(call_, first + i)) spoil_row<float>(call_, first + i);
        else keep[i] = !proven_by_hint(first + i, work);
      };
    });
    for (int64_t i = 0; i < last - first; ++i)
      if (keep[i]) active.push_back({first + i, 0, 0, 0, 0});
    if (active.empty()) return;
    center_rows(active);
    const bool with_digits = charges_.bytes && k_.has_bytes && N_ <= kDigitDimensions && N_ >= 32 && M_ >= 2 * k_.tile_charges;
    if (with_digits) {
      screen(active);
      if (active.empty()) return;
      center_rows(active);
    }
    settle(active, with_digits);
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
    share_out(parallel_, count, [&] { return [&](int64_t i) { split(rows[i], i, 1, digits.data() + i * N_); }; });
    int32_t* sums = reinterpret_cast<int32_t*>(u_.data());
    multiply_digits(digits, count, sums);
    std::vector<char> open(count);
    share_out(parallel_, count, [&] {
      return [&, work = Work(*this)](int64_t i) mutable {
        const RowFacts& row = rows[i];
        k_.scale_digit(sums + i * stride_, static_cast<float>(2 * row.step * unit_), norms_.data(), stride_);
        const float* u = u_.data() + i * stride_;
        const int64_t a = k_.least(u, M_);
        // what three float roundings of a sum of up to 255 √N (norm + slack) in byte units may have moved
        const float rounding = 4 * kRound * (2 * 255 * unit_ * std::sqrt(static_cast<float>(N_)) * (row.norm + row.slack) + largest_root_ * largest_root_);
        open[i] = !settle_few(row.row, u, a, row.slack, row.slack * roots_[a] + rounding, work, few(2));
      };
    });
    std::vector<RowFacts> left;
    for (int64_t i = 0; i < count; ++i)
      if (open[i]) left.push_back(rows[i]);
    rows.swap(left);
  }

  /// The centred row in fixed point of `digits` signed bytes, scaled by its largest entry; sets step and slack = 2‖e‖.
  void split(RowFacts& row, int64_t i, int digits, int8_t* out) const {
    const float* from = centered_.data() + i * N_;
    float largest = 0;
    for (int64_t k = 0; k < N_; ++k) largest = std::max(largest, std::fabs(from[k]));
    const double most = digits == 1 ? 127.0 : 127.0 * 65536 - 32768;  // lower digits run from −128 to 127
    const double step = row.step = largest / most, inverse = largest > 0 ? most / largest : 0;
    double left = 0;
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
    }
    row.slack = 2 * static_cast<float>(std::sqrt(left)) * (1 + 1e-6f);
  }

  void multiply_digits(const std::vector<int8_t>& digits, int64_t count, int32_t* sums) {
    const int64_t padded = padded_rows(count);
    std::vector<int32_t> packed(padded * ((N_ + 3) / 4));
    k_.pack_digits(digits.data(), count, N_, packed.data());
    over_tiles([&](int64_t from, int64_t to) {
      std::vector<int32_t> scratch((padded + 256) * k_.tile_charges);
      k_.product_digits(packed.data(), count, charges_, M_, from, to, sums, stride_, scratch.data());
    });
  }

  int64_t padded_rows(int64_t count) const { return (count + k_.tile_rows - 1) / k_.tile_rows * k_.tile_rows; }

  template <class Body>
  void over_tiles(Body body) {
    const int64_t tile = k_.tile_charges;
    parallel_(0, stride_ / tile, 1, [&](int64_t begin, int64_t end) { body(begin * tile, end * tile); });
  }

  /// So few that direct distances and differences (in nanoseconds: 20 + 0.27 N each) cost less than the `products` that are yet to be
  /// made for all (0.02 N a pair, and 1.5 for the weight).
  int64_t few(int products) const {
    const double share = (1.5 + 0.022 * products * N_) / (20 + 0.27 * N_);
    return std::clamp<int64_t>(static_cast<int64_t>(share * M_), 16, M_);
  }

  /// Steps 3 and 4.
  void settle(std::vector<RowFacts>& rows, bool with_digits) {
    const int64_t count = rows.size();
    if (!with_digits) {
      std::vector<float> packed(padded_rows(count) * N_);
      k_.pack_rows(centered_.data(), count, N_, packed.data());
      over_tiles([&](int64_t from, int64_t to) {
        std::vector<float> scratch(k_.product_scratch(count));
        k_.product(packed.data(), count, charges_, M_, from, to, unit_, norms_.data(), u_.data(), stride_, scratch.data());
      });
      for (RowFacts& row : rows) row.step = 0, row.slack = 0, row.error = product_error(row);
      return answer(rows, 0, count);
    }
    std::vector<int8_t> digits(3 * count * N_);
    share_out(parallel_, count, [&] { return [&](int64_t i) { split(rows[i], i, 3, digits.data() + 3 * i * N_); }; });
    const int64_t group = std::clamp<int64_t>(kDigitFloats / (3 * stride_), 1, count);
    sums_.resize(3 * group * stride_);
    for (int64_t first = 0; first < count; first += group) {
      const int64_t last = std::min(first + group, count);
      const std::vector<int8_t> part(digits.begin() + 3 * first * N_, digits.begin() + 3 * last * N_);
      multiply_digits(part, 3 * (last - first), sums_.data());
      share_out(parallel_, last - first, [&] {
        return [&](int64_t i) {
          const int32_t* sums = sums_.data() + 3 * i * stride_;
          RowFacts& row = rows[first + i];
          k_.join_digits(sums, sums + stride_, sums + 2 * stride_, 2 * row.step * unit_, norms_.data(), M_, u_.data() + i * stride_);
          // e is as good as random against the charges: eight deviations of its product with the farthest two of them
          row.error = row.slack * 2 * largest_root_ * std::min(1.0f, 8 / std::sqrt(static_cast<float>(N_))) + 2 * kRound * largest_root_ * largest_root_;
        };
      });
      answer(rows, first, last);
    }
  }

  /// Answers rows [first, last), whose u are the first rows of u_.
  void answer(const std::vector<RowFacts>& rows, int64_t first, int64_t last) {
    std::vector<SpreadRow> spread(last - first);
    share_out(parallel_, last - first, [&] {
      return [&, work = Work(*this)](int64_t i) mutable { spread[i] = settle_row(rows[first + i], i, work); };
    });
    spread.erase(std::remove_if(spread.begin(), spread.end(), [](const SpreadRow& row) { return row.row < 0; }), spread.end());
    if (!spread.empty()) sum_spread(spread);
  }

  /// What rounding may make of u in the float product: about twice the largest error that is seen. Sums of 128 from zero, added up.
  float product_error(const RowFacts& row) const {
    const float n = static_cast<float>(N_);
    return 2 * kRound * (row.norm * largest_value_ * 2 * (8 + std::sqrt(n) / 11) / std::sqrt(n) + row.norm * largest_root_ / std::sqrt(n) + largest_root_ * largest_root_);
  }

  SpreadRow settle_row(const RowFacts& row, int64_t at, Work& work) {
    float* u = u_.data() + at * stride_;
    const int64_t a = k_.least(u, M_);
    const float margin = 4 * row.error;
    if (settle_few(row.row, u, a, 0, margin, work, few(1))) return {-1, 0, 0, 0, {}};
    const double anchor2 = k_.distance(x(row.row), charges_, a);
    const Law law(N_, call_.aug_dim, radius(row.row), anchor2);
    // An error of u moves a log-weight by p·error/d²; that moves the direction by the spread of the charges over ‖E‖.
    const double reach = std::min(1.0, 2.0 * largest_root_ / std::sqrt(anchor2 + law.radius2));
    const double moved = (law.gaussian ? 1.0 : law.power) * row.error * law.per_gap;
    const bool coarse = moved * reach > kDirectionError || moved > 1e-3;
    // Close to the charges the mean is a difference of nearly equal vectors: then differences are summed one by one.
    const bool close = anchor2 < 1e-3 * largest_value_ * largest_value_;
    if (coarse || close || log_q(a) < -60) {
      if (!settle_few(row.row, u, a, 0, margin, work, M_)) throw_unsettled();
      return {-1, 0, 0, 0, {}};
    }
    const WeightSums sums = k_.weigh(u, score_ ? pulls_.data() + at * stride_ : nullptr, float_q_.empty() ? nullptr : float_q_.data(),
                                     u[a], float_law(law), M_);
    if (call_.wanted == Wanted::kLogDensity) {
      call_.lse[row.row] = law.relative() + largest_q_ + std::log(sums.mass);
      return {-1, 0, 0, 0, {}};
    }
    return {row.row, at, a, anchor2, sums};
  }

  [[noreturn]] static void throw_unsettled() { __builtin_trap(); }  // room for all charges: cannot be

  /// Answers a row from the charges that may carry weight, if they are at most `most`: direct distances, then direct differences.
  bool settle_few(int64_t row, const float* u, int64_t a, float slack, float margin, Work& work, int64_t most) {
    const double anchor2 = k_.distance(x(row), charges_, a);
    const Law guess(N_, call_.aug_dim, radius(row), anchor2);
    const double gap = guess.gap_of(threshold() - log_q(a));
    const float bound = static_cast<float>(std::min(1e37, (static_cast<double>(u[a]) + margin + gap) + 1e-6 * std::fabs(gap)));
    int32_t* index = work.index.data();
    const int64_t count = k_.select(u, roots_.data(), slack, bound, M_, index, most);
    if (count > most) return false;
    if (count <= 1) {
      finish_one(row, a, anchor2, work);
      return true;
    }
    double* squares = work.squares.data();
    int64_t near = 0;
    for (int64_t c = 0; c < count; ++c) {
      squares[c] = index[c] == a ? anchor2 : k_.distance(x(row), charges_, index[c]);
      if (squares[c] < squares[near]) near = c;
    }
    const Law law(N_, call_.aug_dim, radius(row), squares[near]);
    double largest = -std::numeric_limits<double>::infinity();
    if (call_.log_weights)
      for (int64_t c = 0; c < count; ++c) largest = std::max(largest, law.log_weight(squares[c] - law.anchor2) + log_q(index[c]));
    else largest = 0;
    float *weights = work.weights.data(), *pulls = work.pulls.data(), *shifts = work.shifts.data();
    for (int64_t c = 0; c < count; ++c) {
      weights[c] = static_cast<float>(squares[c] - law.anchor2);
      if (call_.log_weights) shifts[c] = static_cast<float>(log_q(index[c]) - largest);
    }
    const WeightSums sums = k_.weigh(weights, score_ ? pulls : nullptr, call_.log_weights ? shifts : nullptr, 0.0f, float_law(law), count);
    const double lse = law.relative() + largest_q_ + largest + std::log(sums.mass);
    k_.decode(charges_, index[near], work.anchor.data());
    if (call_.wanted != Wanted::kLogDensity) {
      std::fill(work.shift.begin(), work.shift.end(), 0.0f);
      std::fill(work.pull.begin(), work.pull.end(), 0.0f);
      const float scale = static_cast<float>(1 / sums.mass);
      for (int64_t c = 0; c < count; ++c)
        if (c != near && weights[c] != 0)
          k_.add_difference(charges_, index[c], work.anchor.data(), weights[c] * scale, score_ ? pulls[c] * scale : 0.0f,
                            work.shift.data(), score_ ? work.pull.data() : nullptr);
    }
    finish_row<float, float>(call_, row, law, work.anchor.data(), work.shift.data(), work.pull.data(), sums.rate / sums.mass,
                             sums.trace / sums.mass, lse);
    return true;
  }

  FloatLaw float_law(const Law& law) const {
    return {static_cast<float>(law.power), static_cast<float>(law.per_gap), law.gaussian, static_cast<float>(law.total),
            static_cast<float>(law.anchor2 + law.radius2), static_cast<float>(law.radius2), static_cast<float>(std::exp(-threshold()))};
  }

  void finish_one(int64_t row, int64_t j, double squares, Work& work) {
    const Law law(N_, call_.aug_dim, radius(row), squares);
    k_.decode(charges_, j, work.anchor.data());
    std::fill(work.shift.begin(), work.shift.end(), 0.0f);
    const double c = law.rate(0);
    finish_row<float, float>(call_, row, law, work.anchor.data(), work.shift.data(), work.shift.data(), c, c * squares,
                             law.relative() + largest_q_ + log_q(j));
  }

  void sum_spread(const std::vector<SpreadRow>& rows) {
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
        k_.spread(u_.data() + top * stride_, some, stride_, charges_, M_, from, to, sums.data() + top * N_);
        if (score_) k_.spread(pulls_.data() + top * stride_, some, stride_, charges_, M_, from, to, pulled.data() + top * N_);
      };
    });
    share_out(parallel_, count, [&] {
      return [&, anchor = std::vector<float>(N_), shift = std::vector<float>(N_), pull = std::vector<float>(N_)](int64_t i) mutable {
        const SpreadRow& row = rows[i];
        const Law law(N_, call_.aug_dim, radius(row.row), row.anchor2);
        k_.decode(charges_, row.anchor, anchor.data());
        const double rate = row.sums.rate / row.sums.mass;
        to_shift(sums.data() + i * N_, anchor.data(), 1.0, row.sums.mass, shift.data());
        if (score_) to_shift(pulled.data() + i * N_, anchor.data(), rate, row.sums.mass, pull.data());
        finish_row<float, float>(call_, row.row, law, anchor.data(), shift.data(), score_ ? pull.data() : nullptr,
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
  void to_shift(const double* sums, const float* anchor, double share, double mass, float* out) const {
    const double scale = unit_ / mass, constant = charges_.bytes ? share * (128.0 / charges_.divisor + charges_.offset) : 0.0;
    for (int64_t k = 0; k < N_; ++k) out[k] = static_cast<float>((sums[k] * scale + constant) - share * anchor[k]);
  }

  const FieldCall& call_;
  const Parallel& parallel_;
  const Kernels& k_;
  const ChargeRows charges_;
  const int64_t M_, N_;
  int64_t stride_;
  bool score_;
  float unit_;  // value of one step of a byte
  std::vector<float> center_, norms_, roots_, float_q_, centered_, pulls_;
  std::vector<float>& u_;  // the block, (rows, stride)
  std::vector<int32_t> sums_;
  float largest_root_ = 0, largest_value_ = 0;
  double largest_q_ = 0;
};

}  // namespace

void run_large(const FieldCall& call, const Parallel& parallel) { Large(call, parallel).run(); }

}  // namespace pfgm
