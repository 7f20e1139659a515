// Large, steps 2 and 3: the answer of a row from what is known of u (large.h).
#include "large.h"

namespace pfgm {
namespace {

constexpr double kDirectionError =
    2e-6;  // what the product's rounding may cost a row's direction, as an expectation
constexpr double kMostMoved =
    5e-5;  // what it would cost if one charge held half the weight: above, all is recomputed
constexpr int64_t kProbes = 16;  // direct distances that tie u to ‖ρ‖²
constexpr double kTypical = 6;   // the largest error of u, as it is bounded, over the typical one

}  // namespace

Large::DenseRow Large::serve_row(const RowFacts& row, Work& work) {
  const DenseRow served{-1, 0, 0, 0, {}};
  float* u = u_.data() + row.at * stride_;
  const int64_t a = k_.least(u, M_);
  const ErrorBound errors{0, 0, 4 * row.error};
  if (serve_sparse(row.row, u, a, errors, work, few(pair_after_product()))) return served;
  const double anchor2 = k_.distance(x(row.row), charges_, a);
  // Close to the charges the mean is a difference of nearly equal vectors: then differences are summed one by
  // one.
  const bool close = anchor2 < 1e-3 * largest_value_ * largest_value_;
  if (close || log_q(a) < -60) {
    serve_sparse(row.row, u, a, errors, work, M_);  // room for all charges: cannot be refused
    return served;
  }
  // An error of u moves a log-weight by p·error/d²; that moves the direction by the spread of the charges
  // over ‖E‖.
  const double reach =
      std::min(1.0, 2.0 * largest_root_ / std::sqrt(anchor2 + radius(row.row) * radius(row.row)));
  const WeightFunction nearest(N_, call_.aug_dim, radius(row.row), anchor2);
  const double moved =
      (nearest.gaussian ? 1.0 : nearest.power) * row.error / kTypical * nearest.per_gap * reach;
  if (moved > kMostMoved) {
    serve_sparse(row.row, u, a, errors, work, M_);
    return served;
  }
  const double share = kDirectionError / moved;
  const WeightFunction function(N_, call_.aug_dim, radius(row.row),
                                share < 1 ? squares_at(u, row.row, a) : anchor2);
  float* pulls = score_ ? pulls_.data() + row.at * stride_ : nullptr;
  WeightSums sums =
      k_.weigh(u, pulls, float_q_.empty() ? nullptr : float_q_.data(), u[a],
               in_float(function, std::exp(-threshold()), M_, call_.log_weights != nullptr), M_);
  // Errors of many charges are independent: with weights w of sum W they move the direction by √(Σ w²)/W ≤
  // √(max w/W) of what one alone would. Charges too heavy for that are recomputed.
  if (share < 1) refine(row.row, u, pulls, function, share * share * sums.mass, sums, work);
  if (call_.op == FieldOp::kLogDensity) {
    call_.lse[row.row] = function.anchor_log_weight() + largest_q_ + std::log(sums.mass);
    return served;
  }
  return {row.row, row.at, a, function.anchor2, sums};
}

/// ‖ρ‖² at u_a: u and ‖ρ‖² differ by a constant of the row, which the direct distances of some charges tell
/// better than one alone. An error of it would be common to all weights from the product.
double Large::squares_at(const float* u, int64_t row, int64_t a) const {
  double total = 0;
  for (int64_t i = 0; i < kProbes; ++i) {
    const int64_t j = i == 0 ? a : (i * M_) / kProbes;
    total += k_.distance(x(row), charges_, j) - (static_cast<double>(u[j]) - u[a]);
  }
  return std::max(0.0, total / kProbes);
}

/// Weights of at least `bound` from direct distances, in place of those that the product gave.
void Large::refine(int64_t row, float* weights, float* pulls, const WeightFunction& function, double bound,
                   WeightSums& sums, Work& work) {
  int32_t* index = work.index.data();
  const int64_t count = k_.select_above(weights, static_cast<float>(bound), M_, index);
  for (int64_t c = 0; c < count; ++c) {
    const int64_t j = index[c];
    const double gap = k_.distance(x(row), charges_, j) - function.anchor2;
    const double weight = std::exp(function.log_weight(gap) + log_q(j)), old = weights[j];
    sums.mass += weight - old;
    weights[j] = static_cast<float>(weight);
    if (pulls == nullptr) continue;
    const double pull = weight * function.rate(gap), old_pull = pulls[j];
    // c‖ρ‖² = N + D − r² c; where D = ∞ the gap that the weight came from is read from the weight
    const double old_trace =
        function.gaussian ? old_pull * (function.anchor2 + (log_q(j) - std::log(old)) / function.per_gap)
                          : function.total * old - function.radius2 * old_pull;
    sums.rate += pull - old_pull;
    sums.trace += pull * (function.anchor2 + gap) - old_trace;
    pulls[j] = static_cast<float>(pull);
  }
}

/// Answers a row from the charges that may carry weight, if they are at most `most`: direct distances, then
/// direct differences.
bool Large::serve_sparse(int64_t row, const float* u, int64_t a, const ErrorBound& errors, Work& work,
                         int64_t most) {
  const double anchor2 = k_.distance(x(row), charges_, a);
  const WeightFunction guess(N_, call_.aug_dim, radius(row), anchor2);
  const double gap = guess.gap_of(threshold() - log_q(a));
  const float bound = static_cast<float>(
      std::min(1e37, (static_cast<double>(u[a]) + errors.margin + gap) + 1e-6 * std::fabs(gap)));
  int32_t* index = work.index.data();
  const int64_t count =
      k_.select(u, roots_.data(), errors.slack, errors.residual_slack > 0 ? residuals_.data() : nullptr,
                errors.residual_slack, bound, M_, index, most);
  if (count > most) return false;
  if (count <= 1) {
    serve_one(row, a, anchor2, work);
    return true;
  }
  double* squares = work.squares.data();
  int64_t near = 0;
  for (int64_t c = 0; c < count; ++c) {
    squares[c] = index[c] == a ? anchor2 : k_.distance(x(row), charges_, index[c]);
    if (squares[c] < squares[near]) near = c;
  }
  const WeightFunction function(N_, call_.aug_dim, radius(row), squares[near]);
  double largest = -std::numeric_limits<double>::infinity();
  if (call_.log_weights)
    for (int64_t c = 0; c < count; ++c)
      largest = std::max(largest, function.log_weight(squares[c] - function.anchor2) + log_q(index[c]));
  else largest = 0;
  float *weights = work.weights.data(), *pulls = work.pulls.data(), *shifts = work.shifts.data();
  for (int64_t c = 0; c < count; ++c) {
    weights[c] = static_cast<float>(squares[c] - function.anchor2);
    if (call_.log_weights) shifts[c] = static_cast<float>(log_q(index[c]) - largest);
  }
  const WeightSums sums =
      k_.weigh(weights, score_ ? pulls : nullptr, call_.log_weights ? shifts : nullptr, 0.0f,
               in_float(function, std::exp(-threshold()), M_, call_.log_weights != nullptr), count);
  const double lse = function.anchor_log_weight() + largest_q_ + largest + std::log(sums.mass);
  k_.decode(charges_, index[near], work.anchor.data());
  if (call_.op != FieldOp::kLogDensity) {
    std::fill(work.shift.begin(), work.shift.end(), 0.0f);
    std::fill(work.pull.begin(), work.pull.end(), 0.0f);
    const float scale = static_cast<float>(1 / sums.mass);
    for (int64_t c = 0; c < count; ++c)
      if (c != near && weights[c] != 0)
        k_.add_difference(charges_, index[c], work.anchor.data(), weights[c] * scale,
                          score_ ? pulls[c] * scale : 0.0f, work.shift.data(),
                          score_ ? work.pull.data() : nullptr);
  }
  finish_row<float, float>(call_, row, work.anchor.data(), work.shift.data(), work.pull.data(),
                           sums.rate / sums.mass, sums.trace / sums.mass, lse);
  return true;
}

void Large::serve_one(int64_t row, int64_t j, double squares, Work& work) {
  const WeightFunction function(N_, call_.aug_dim, radius(row), squares);
  k_.decode(charges_, j, work.anchor.data());
  std::fill(work.shift.begin(), work.shift.end(), 0.0f);
  const double c = function.rate(0);
  finish_row<float, float>(call_, row, work.anchor.data(), work.shift.data(), work.shift.data(), c,
                           c * squares, function.anchor_log_weight() + largest_q_ + log_q(j));
}

}  // namespace pfgm
