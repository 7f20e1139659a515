// Everything in double, by direct differences: float64, and the second moments. A row at a time, all its
// charges twice: once for the distances, once for the sums. Cost: 2 B M N differences in double; memory O(M +
// N) a thread.
#include <vector>

#include "finish.h"
#include "weight_function.h"

namespace pfgm {
namespace {

template <class T, class C>
struct Decode {
  T divisor, offset;
  double operator()(C value) const {
    if constexpr (std::is_same_v<C, uint8_t>) return static_cast<T>(static_cast<T>(value) / divisor) + offset;
    return value;
  }
};

constexpr int kLanes = 8;

/// Σ f(k) over k in kLanes independent sums: vectorised, and the same on every machine.
template <class Term>
double lanes_sum(int64_t count, Term term) {
  double lanes[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += term(k + lane);
  double total = 0;
  for (; k < count; ++k) total += term(k);
  for (double lane : lanes) total += lane;
  return total;
}

template <class T, class C>
void direct_row(const FieldCall& call, int64_t row, std::vector<double>& gaps, std::vector<double>& sums) {
  const int64_t M = call.count, N = call.dim;
  const T* x = static_cast<const T*>(call.x) + row * N;
  const C* charges = static_cast<const C*>(call.charges);
  const Decode<T, C> decode{static_cast<T>(call.divisor), static_cast<T>(call.offset)};
  const auto log_q = [&](int64_t j) { return call.log_weights ? call.log_weights[j] : 0.0; };

  int64_t anchor = 0;
  for (int64_t j = 0; j < M; ++j) {
    const C* y = charges + j * N;
    gaps[j] = lanes_sum(N, [&](int64_t k) {
      const double difference = decode(y[k]) - x[k];
      return difference * difference;
    });
    if (gaps[j] < gaps[anchor]) anchor = j;
  }
  const WeightFunction function(N, call.aug_dim, static_cast<const T*>(call.r)[row], gaps[anchor]);
  double largest = -std::numeric_limits<double>::infinity();
  for (int64_t j = 0; j < M; ++j)
    largest = std::fmax(largest, function.log_weight(gaps[j] - function.anchor2) + log_q(j));

  double mass = 0, rate = 0, trace = 0;
  double *shift = sums.data(), *pull = shift + N;
  std::fill(sums.begin(), sums.end(), 0.0);
  const C* near = charges + anchor * N;
  const T* u = static_cast<const T*>(call.u) + (call.u ? row * N : 0);
  for (int64_t j = 0; j < M; ++j) {
    const double gap = gaps[j] - function.anchor2;
    const double weight = std::exp(function.log_weight(gap) + log_q(j) - largest);
    if (weight == 0) continue;
    const C* y = charges + j * N;
    const double c = function.rate(gap);
    mass += weight;
    if (call.op == FieldOp::kSecondMoment) {
      const double along =
          lanes_sum(N, [&](int64_t k) { return (decode(y[k]) - x[k]) * static_cast<double>(u[k]); });
      const double coefficient = weight * std::pow(c, static_cast<double>(call.power)) * along;
      rate += coefficient;
      for (int64_t k = 0; k < N; ++k) shift[k] += coefficient * (decode(y[k]) - x[k]);
      continue;
    }
    rate += weight * c;
    trace += weight * c * gaps[j];
    if (call.op == FieldOp::kLogDensity) continue;
    for (int64_t k = 0; k < N; ++k) shift[k] += weight * (decode(y[k]) - decode(near[k]));
    if (call.op == FieldOp::kScore)
      for (int64_t k = 0; k < N; ++k) pull[k] += weight * c * (decode(y[k]) - decode(near[k]));
  }
  for (double& sum : sums) sum /= mass;
  rate /= mass, trace /= mass;
  if (call.op == FieldOp::kSecondMoment) {
    T* out = static_cast<T*>(call.out) + row * N;
    for (int64_t k = 0; k < N; ++k) out[k] = static_cast<T>(shift[k]);
    static_cast<T*>(call.rate)[row] = static_cast<T>(rate);
    return;
  }
  std::vector<T> y_anchor(N);
  for (int64_t k = 0; k < N; ++k) y_anchor[k] = static_cast<T>(decode(near[k]));
  finish_row<T, double>(call, row, y_anchor.data(), shift, pull, rate, trace,
                        function.anchor_log_weight() + largest + std::log(mass));
}

template <class T, class C>
void run(const FieldCall& call, const Parallel& parallel) {
  parallel(0, call.batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> gaps(call.count), sums(2 * call.dim);
    for (int64_t row = begin; row < end; ++row) {
      if (row_is_good<T>(call, row)) direct_row<T, C>(call, row, gaps, sums);
      else spoil_row<T>(call, row);
    }
  });
}

}  // namespace

void run_direct(const FieldCall& call, const Parallel& parallel) {
  if (call.is_double) call.bytes ? run<double, uint8_t>(call, parallel) : run<double, double>(call, parallel);
  else call.bytes ? run<float, uint8_t>(call, parallel) : run<float, float>(call, parallel);
}

}  // namespace pfgm
