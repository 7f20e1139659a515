// From gaps to weights: per query the anchor (nearest charge), log-weights relative to it, unnormalised
// weights, sums, lse.
//
// With a the anchor and g_j = ‖ρ_j‖² − ‖ρ_a‖² ≥ 0, a log-weight is log q_j − p log1p(g_j/d²_a): d² is never
// formed and then logged. The gaps may be squared distances, or any quantity that differs from them by a
// constant a row; in the second case the anchor's distance is computed here by direct differences. Weights
// below exp(−cut) of the largest, cut = 18 + log M (40 + log M in double), become exactly 0: together less
// than 2e-8. Bytes have a kernel of their own, whose weights are digits: byte_weights.cuh.
//
// Tiling: `parts` blocks of 256 threads a query, one sweep over a part of its row each; every block finds the
// anchor anew from the groups' least gaps (gaps.cuh). The last block of a row to end merges the parts, in
// their order. Where charges have weights q the largest log-weight is not the anchor's: a launch before finds
// each part's (kLargest). Cost: reads 8 bytes a pair once, writes a weight (or 3 bytes); a pair costs one
// subtraction in double, the rest in T: one log1p and one exp if it is not beyond the cut.
#pragma once

#include <type_traits>

#include "../device.h"
#include "../field.h"
#include "anchor.cuh"
#include "gaps.cuh"
#include "weight_function.cuh"

namespace pfgm {

constexpr int kSweep = 4;  // loads of a thread in flight

/// What the last kernel needs to know of a query.
struct RowState {
  int64_t anchor;       // the nearest charge
  double total;         // Σ weights, unnormalised; NaN for a query that must give NaN
  double rate_total;    // Σ coefficient: weights · c (score), weights · c^k (ρ·u) (moment)
  int64_t digit_total;  // weights as digits, a dense query: Σ of the fixed-point weights
  int listed;           // weights in T: charges with one above 0. As digits: above kLongestSupport for a
                        // dense query, else the charges of its list; 0: the anchor alone
  int slot;             // a dense query's place among them
};

/// Whether a row's sum of differences around the anchor may be other than 0.
__device__ __forceinline__ bool needs_sum(const RowState& state, bool weighted) {
  return state.listed > 1 || weighted;  // with weights q the one charge need not be the anchor
}

/// What one block found in its part of a row.
struct RowPart {
  double total, rate_total, trace;
  int used;
};

/// What a query's weights are written as: T; T, and T times c (score); T times c^k (ρ·u) (moment); or nothing
/// yet, only the largest log-weight. As digits: byte_weights.cuh.
enum class Coefficients { kWeights, kScore, kSecondMoment, kLargest };

template <class T, class C>
struct WeightCall {
  const double* gaps;         // (batch, count)
  const double* least;        // (batch, groups)
  const double* projection;   // (splits, batch, count): ρ·u, moment
  const double* log_weights;  // (count) or null
  const T* x;                 // (batch, dim)
  const T* r;                 // (batch)
  const C* charges;           // (count, dim); bytes with `relative`: aligned to 16, dim a multiple of 16
  int64_t batch, count, dim;
  int64_t splits;  // of the projection
  int parts;       // blocks a row
  T divisor, offset;
  double aug_dim;
  int64_t power;
  bool relative;      // gaps are distances up to a constant a row
  double gap_unit;    // a gap's unit in squared distance
  T* weights;         // (batch, count): w, or the moment's coefficient
  T* rates;           // (batch, count): w c; score
  RowState* state;    // (batch)
  RowPart* part;      // (batch, parts)
  double* largest;    // (batch, parts), where charges have weights
  int* arrived;       // (batch), 0
  double* lse;        // (batch), or null
  T* rate;            // (batch), or null: Σ w c; moment: Σ w c^k (ρ·u)
  T* trace;           // (batch), or null: Σ w c ‖ρ‖²
  const int* proven;  // (batch), or null: not 0 where the screening (screen.cuh) has already served a query
  const AnchorShare* anchor;  // (batch, segments), or null: each block finds the anchor and its distance
  int segments;
};

struct WeightShared {
  int last;
  double slots[kRowWarps];
  NearestShared<kRowThreads> nearest;
};

/// What every block of a row knows before it sweeps its part.
template <class T>
struct RowWeights {
  Nearest nearest;
  double squares, r, base, total_dim;  // ‖ρ_a‖²; ‖ρ_a‖² + r²
  bool good;                           // a query that may have an answer
  WeightFunction<T> function;
  double largest;            // log-weight: the anchor's, unless the charges have weights q
  T cut, gap_cut, to_ratio;  // of log-weights; of gaps; gap · to_ratio is the function's argument
};

template <bool kBeforeLargest, class T, class C, class Shared>
__device__ __forceinline__ RowWeights<T> row_weights(const WeightCall<T, C>& call, int64_t row,
                                                     Shared& shared) {
  const int count = static_cast<int>(call.count);
  const double r = static_cast<double>(call.r[row]);
  Nearest nearest;
  double squares;
  if (call.anchor) {
    const AnchorShare* shares = call.anchor + row * call.segments;
    nearest = shares->nearest;
    squares = merged_squares(shares, call.segments);
  } else {
    nearest = row_nearest<kRowThreads>(call.gaps + row * call.count, call.least + row * groups_of(call.count),
                                       count, shared.nearest);
    const Values<T> values(call.divisor, call.offset);
    squares = !call.relative
                  ? nearest.gap
                  : block_distance<kRowThreads>(call.charges + nearest.charge * call.dim,
                                                call.x + row * call.dim, call.dim, values, shared.slots);
  }
  const double base = squares + r * r;
  const double total_dim = static_cast<double>(call.dim) + call.aug_dim;
  const bool good = r > 0 && isfinite(base) && isfinite(nearest.gap);
  const WeightFunction<T> function(base, r, total_dim);
  double largest = 0;
  if (!kBeforeLargest && call.log_weights) {
    largest = call.largest[row * call.parts];
    for (int p = 1; p < call.parts; ++p) largest = Maximum{}(largest, call.largest[row * call.parts + p]);
  }
  const T cut = weight_cut<T>(call.count), gap_cut = static_cast<T>(function.gap_of(cut) / call.gap_unit);
  const T to_ratio = Minimum{}(static_cast<T>(call.gap_unit * function.inverse_base),
                               std::numeric_limits<T>::max());  // 0 · ∞ is no ratio
  return {nearest, squares, r, base, total_dim, good, function, largest, cut, gap_cut, to_ratio};
}

/// A row's parts, merged in their order.
template <class T, class C>
__device__ __forceinline__ RowPart merge_parts(const WeightCall<T, C>& call, int64_t row) {
  RowPart sum{};
  for (int p = 0; p < call.parts; ++p) {
    const RowPart& one = call.part[row * call.parts + p];
    sum.total += one.total;
    sum.rate_total += one.rate_total;
    sum.trace += one.trace;
    sum.used += one.used;
  }
  return sum;
}

/// Blocks that shall share a multiprocessor's registers.
template <class T, Coefficients kWanted>
constexpr int kWeightBlocks = sizeof(T) == 8 || kWanted == Coefficients::kSecondMoment ? 2 : 3;

template <class T, class C, Coefficients kWanted>
__global__ void __launch_bounds__(kRowThreads, kWeightBlocks<T, kWanted>)
    weights_kernel(WeightCall<T, C> call) {
  WeightShared& shared = shared_memory<WeightShared>();
  const int64_t row = blockIdx.x / call.parts;
  const int my_part = static_cast<int>(blockIdx.x % call.parts);
  if (call.proven && call.proven[row]) return;
  const double* gaps = call.gaps + row * call.count;
  const Part part = part_of(call.count, call.parts, my_part);
  const RowWeights<T> known = row_weights<kWanted == Coefficients::kLargest>(call, row, shared);
  const auto [nearest, squares, r, base, total_dim, good, function, largest, cut, gap_cut, to_ratio] = known;
  LongSum<T> sum;
  double rate_total = 0, trace = 0, my_largest = -std::numeric_limits<double>::infinity();
  int used = 0;

  const auto visit = [&](auto gaussian, auto weighted, int j, double from_zero) {
    const T gap = static_cast<T>(from_zero - nearest.gap);  // ≥ 0
    T exponent = cut - 1;
    // Without weights q the exponent falls with the gap: most charges are beyond the cut, and need no
    // logarithm.
    if (decltype(weighted)::value || !(gap > gap_cut)) {
      exponent = function.template log_weight_of<decltype(gaussian)::value>(gap * to_ratio);
      if constexpr (decltype(weighted)::value) {
        const double all = static_cast<double>(exponent) + call.log_weights[j];
        my_largest = Maximum{}(my_largest, all);
        exponent = static_cast<T>(all - largest);
      }
    }
    if constexpr (kWanted != Coefficients::kLargest) {
      T weight = exponent < cut ? T(0) : exponential(exponent);
      if (!good) weight = std::numeric_limits<T>::quiet_NaN();
      if (weight != T(0)) {
        sum.add(weight);
        ++used;
      }
      if constexpr (kWanted != Coefficients::kWeights) {
        const double farther = call.gap_unit * static_cast<double>(gap);
        const double rate = decltype(gaussian)::value ? 1.0 / (r * r) : total_dim / (base + farther);
        if constexpr (kWanted == Coefficients::kScore) {
          const double coefficient = weight * rate;
          call.rates[row * call.count + j] = static_cast<T>(coefficient);
          rate_total += coefficient;
          trace += coefficient * (squares + farther);
        } else {
          double along = 0;
          for (int64_t s = 0; s < call.splits; ++s)
            along += call.projection[(s * call.batch + row) * call.count + j];
          const double coefficient = weight == T(0) ? 0 : weight * integer_power(rate, call.power) * along;
          weight = static_cast<T>(coefficient);
          rate_total += coefficient;
        }
      }
      if (call.weights) call.weights[row * call.count + j] = weight;
    }
  };
  // kSweep loads of a thread are on their way before the first is used.
  const auto sweep = [&](auto gaussian, auto weighted) {
    for (int first = part.begin + static_cast<int>(threadIdx.x); first < part.end;
         first += kSweep * kRowThreads) {
      double gap[kSweep];
#pragma unroll
      for (int i = 0; i < kSweep; ++i)
        gap[i] = gaps[first + i * kRowThreads < part.end ? first + i * kRowThreads : first];
#pragma unroll
      for (int i = 0; i < kSweep; ++i)
        if (first + i * kRowThreads < part.end) visit(gaussian, weighted, first + i * kRowThreads, gap[i]);
    }
  };
  using Yes = std::true_type;
  using No = std::false_type;
  if (kWanted == Coefficients::kLargest || call.log_weights)
    function.gaussian ? sweep(Yes{}, Yes{}) : sweep(No{}, Yes{});
  else function.gaussian ? sweep(Yes{}, No{}) : sweep(No{}, No{});

  if constexpr (kWanted == Coefficients::kLargest) {
    my_largest = block_reduce<kRowThreads>(my_largest, Maximum{}, shared.slots);
    if (threadIdx.x == 0) call.largest[row * call.parts + my_part] = my_largest;
  } else {
    RowPart mine{};
    mine.total = block_reduce<kRowThreads>(sum.value(), Sum{}, shared.slots);
    mine.used = static_cast<int>(block_reduce<kRowThreads>(static_cast<double>(used), Sum{}, shared.slots));
    if constexpr (kWanted != Coefficients::kWeights) {
      mine.rate_total = block_reduce<kRowThreads>(rate_total, Sum{}, shared.slots);
      mine.trace = block_reduce<kRowThreads>(trace, Sum{}, shared.slots);
    }
    if (threadIdx.x == 0) call.part[row * call.parts + my_part] = mine;
    if (!last_block(call.arrived + row, call.parts, shared.last)) return;
    __syncthreads();

    const RowPart all = call.parts == 1 ? mine : merge_parts(call, row);
    if (threadIdx.x != 0) return;
    call.state[row] = {nearest.charge, all.total, all.rate_total, 0, all.used, 0};
    if (call.rate) call.rate[row] = static_cast<T>(all.rate_total / all.total);
    if (call.trace) call.trace[row] = static_cast<T>(all.trace / all.total);
    if (call.lse)
      call.lse[row] = good ? largest + log(all.total) + anchor_log_weight(squares, r, total_dim)
                           : std::numeric_limits<double>::quiet_NaN();
  }
}

/// Before the weights: each part's largest log-weight, where charges have weights q.
template <class T, class C>
void launch_largest(const WeightCall<T, C>& call, Stream stream) {
  if (call.log_weights)
    launch<weights_kernel<T, C, Coefficients::kLargest>>(call.batch * call.parts, kRowThreads,
                                                         sizeof(WeightShared), stream, call);
}

template <Coefficients kWanted, class T, class C>
void launch_weights(const WeightCall<T, C>& call, Stream stream) {
  launch_largest(call, stream);
  launch<weights_kernel<T, C, kWanted>>(call.batch * call.parts, kRowThreads, sizeof(WeightShared), stream,
                                        call);
}

}  // namespace pfgm
