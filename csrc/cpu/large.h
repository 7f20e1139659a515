// The path of large N in float32 (docs/cpu.md). For blocks of rows:
//   1. (where the processor multiplies bytes) one signed digit of x against the bytes of the charges, or
//   against floats rounded to
//      bytes on the way; with the Cauchy–Schwarz bound on what was rounded off it proves which charges cannot
//      carry weight;
//   2. rows that see one charge, or few, are answered from direct distances in double and a direct sum of
//   differences;
//   3. for the other rows the product of all pairs, in float, or for bytes in three digits, which is as good;
//   few charges are again
//      recomputed directly; rows whose weights are spread take them from the product, by log1p of the gap to
//      the nearest charge, and only the heaviest are recomputed;
//   4. the second product, for dense rows only.
// Memory: one block of u, at most 32 MiB (twice for the score), 24 MiB of digit sums, B N sums of the dense
// rows of a block, and 256 packed bytes for each of a thread's columns of them.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <vector>

#include "aligned.h"
#include "charge_view.h"
#include "finish.h"
#include "weight_function.h"

namespace pfgm {

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

/// So few rows that reading the charges is the cost: floats are not transposed, digits are multiplied
/// together.
constexpr int64_t kFewRows = 24;
constexpr float kRound = 6e-8f;  // half a unit in the last place

/// One call. The methods lie where their step does: large.cpp (blocks, the product), large_digits.cpp (1),
/// large_rows.cpp (2, 3), large_dense.cpp (4).
class Large {
 public:
  Large(const FieldCall& call, const Parallel& parallel);
  void run();

 private:
  struct RowFacts {
    int64_t row, at;    // row of the call, row of u
    int64_t centred;    // row of centered_
    float norm;         // ‖x − μ‖
    double step;        // value of the last digit
    float slack;        // 2‖e‖, e what the first digit leaves of x − μ
    float error;        // of u, as a maximum; before the product 2‖e‖ of all digits
    int32_t digit_sum;  // Σ of the first digit: what an offset of the bytes adds to their product
  };
  /// What is known of u: u_j is within slack·‖y_j − μ‖ + residual_slack·‖f_j‖ of the truth, f_j what rounding
  /// left of y_j.
  struct ErrorBound {
    float slack, residual_slack, margin;  // margin: the same at the anchor, and what float rounding adds
  };
  /// What a thread needs for one row.
  struct Work {
    explicit Work(const Large& of);
    Array<int32_t> index;
    Array<double> squares;
    Array<float> weights, pulls, shifts, anchor, shift, pull;
  };
  struct DenseRow {
    int64_t row, at, anchor;  // row of the call, row of u
    double anchor2;
    WeightSums sums;
  };

  // ---- large.cpp ----
  void prepare();
  void block(int64_t first, int64_t last);
  void center_rows(std::vector<RowFacts>& rows);
  void serve_by_floats(std::vector<RowFacts>& rows);
  void answer(const std::vector<RowFacts>& rows, int64_t first, int64_t last);
  float gemm_error(const RowFacts& row) const;

  // ---- large_digits.cpp ----
  bool digits_serve(int64_t rows) const;
  /// Whether numbers of several digits are multiplied, or only the one that screens.
  bool numbers_serve() const { return k_.largest_digit == 127; }
  void screen(std::vector<RowFacts>& rows);
  bool beyond_screening(const RowFacts& row) const;
  float largest_byte_product(const RowFacts& row) const;
  void split(RowFacts& row, int digits, int8_t* out) const;
  bool screened(const RowFacts& row, const float* u, ErrorBound errors, float largest_product, Work& work);
  void multiply_digits(const std::vector<const int8_t*>& rows, int32_t* sums);
  void serve_by_digits(std::vector<RowFacts>& rows);

  // ---- large_rows.cpp ----
  bool serve_sparse(int64_t row, const float* u, int64_t a, const ErrorBound& errors, Work& work,
                    int64_t most);
  DenseRow serve_row(const RowFacts& row, Work& work);
  double squares_at(const float* u, int64_t row, int64_t a) const;
  void refine(int64_t row, float* weights, float* pulls, const WeightFunction& function, double bound,
              WeightSums& sums, Work& work);
  void serve_one(int64_t row, int64_t j, double squares, Work& work);

  // ---- large_dense.cpp ----
  void sum_dense(const std::vector<DenseRow>& rows);
  template <class Body>
  void over_pieces(int64_t count, int64_t rows, int64_t width, Body body) const;
  void sum_by_floats(const std::vector<DenseRow>& rows, Array<float>& matrix, double WeightSums::* total,
                     double* sums, double* shares);
  void sum_by_digits(const std::vector<DenseRow>& rows, Array<float>& matrix, double WeightSums::* total,
                     double* sums, double* shares);
  void to_shift(const double* sums, const float* anchor, double share, double mass, float* out) const;

  const float* x(int64_t row) const { return static_cast<const float*>(call_.x) + row * N_; }
  const float* centered(const RowFacts& row) const { return centered_.data() + row.centred * N_; }
  double radius(int64_t row) const { return static_cast<const float*>(call_.r)[row]; }
  double log_q(int64_t j) const { return call_.log_weights ? call_.log_weights[j] - largest_q_ : 0.0; }
  double threshold() const { return kNegligible + std::log(static_cast<double>(M_)); }
  int64_t padded_rows(int64_t count) const {
    return (count + k_.tile_rows - 1) / k_.tile_rows * k_.tile_rows;
  }
  template <class Body>
  void over_tiles(Body body) const {
    const int64_t tile = k_.tile_charges;
    parallel_(0, stride_ / tile, 1, [&](int64_t begin, int64_t end) { body(begin * tile, end * tile); });
  }
  /// So few that direct distances and differences (20 + 0.27 N nanoseconds each) cost less than what is yet
  /// to be done for all charges: `pair` nanoseconds for each.
  int64_t few(double pair) const {
    return std::clamp<int64_t>(static_cast<int64_t>(pair / (20 + 0.27 * N_) * M_), 16, M_);
  }
  double pair_after_product() const { return 1.5; }
  double pair_before_product() const { return 1.5 + 0.012 * N_; }

  const FieldCall& call_;
  const Parallel& parallel_;
  const Kernels& k_;
  const Charges held_;
  const ChargeView& charges_;
  const int64_t M_, N_;
  int64_t stride_;
  bool score_;
  float unit_;  // value of one step of a byte
  Array<float> center_, norms_, roots_, float_q_, centered_, pulls_;
  Array<float> scales_, residuals_;  // of floats rounded to bytes: the value of a step, ‖f_j‖
  Array<float>& u_;                  // the block, (rows, stride)
  Array<int32_t>& sums_;
  float largest_root_ = 0, largest_value_ = 0;
  double largest_q_ = 0;
};

}  // namespace pfgm
