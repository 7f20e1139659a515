// From gaps to weights: per query the anchor (nearest charge), log-weights relative to it, unnormalised
// weights, sums, lse.
//
// With a the anchor and g_j = ‖ρ_j‖² − ‖ρ_a‖² ≥ 0, a log-weight is log q_j − p log1p(g_j/d²_a): d² is never
// formed and then logged. The gaps may be squared distances, or any quantity that differs from them by a
// constant a row; in the second case the anchor's distance is computed here by direct differences. Weights
// below exp(−cut) of the largest, cut = 18 + log M (40 + log M in double), become exactly 0: together less
// than 2e-8.
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
#include "gaps.cuh"
#include "weight_function.cuh"

namespace pfgm {

constexpr int kSweep = 4;  // loads of a thread in flight

/// What the last kernel needs to know of a query.
struct RowState {
  int64_t anchor;       // the nearest charge
  double total;         // Σ weights, unnormalised; NaN for a query that must give NaN
  double rate_total;    // Σ coefficient: weights · c (score), weights · c^k (ρ·u) (moment)
  int64_t digit_total;  // kWeightDigits, dense queries: Σ of the fixed-point weights
  int used;             // charges with a weight above 0
};

/// Whether a row's sum of differences around the anchor may be other than 0.
__device__ __forceinline__ bool needs_sum(const RowState& state, bool weighted) {
  return state.used > 1 || weighted;  // with weights q the one charge need not be the anchor
}

/// What one block found in its part of a row.
struct RowPart {
  double total, rate_total, trace, digit_total;
  int used;
};

/// What a query's weights are written as: T; T, and T times c (score); T times c^k (ρ·u) (moment); or digits;
/// or nothing yet, only the largest log-weight.
enum class Coefficients { kWeights, kScore, kSecondMoment, kWeightDigits, kLargest };

constexpr int kLongestSupport = 64;          // a sparse query has at most so many charges with a weight
constexpr double kDigitsOfOne = 16777214.0;  // the fixed-point weight of 1: three unsigned digits of 8 bits

/// Weights for integer tensor cores. A sparse query's are a list; a dense one's are three rows of bytes, in
/// fixed point around the anchor (whose own difference is 0), rounded up or down by a fixed hash so that the
/// error of a sum has no bias.
struct WeightDigits {
  uint8_t* digits;  // (3, batch, stride), the most significant first, zeros behind `count`
  int64_t stride;   // of a query's bytes, a multiple of 64
  int* charge;      // (batch, kLongestSupport)
  float* weight;    // (batch, kLongestSupport)
  int* listed;      // (batch): charges that asked for a place in the list, 0 before the launch
  int* dense;       // the number of dense queries, 0 before the launch
  int* queries;     // (batch): the dense queries, in no order that matters
};

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
  bool relative;               // gaps are distances up to a constant a row
  double gap_unit;             // a gap's unit in squared distance
  T* weights;                  // (batch, count): w, or the moment's coefficient
  T* rates;                    // (batch, count): w c; score
  RowState* state;             // (batch)
  RowPart* part;               // (batch, parts)
  double* largest;             // (batch, parts), where charges have weights
  int* arrived;                // (batch), 0
  double* lse;                 // (batch), or null
  T* rate;                     // (batch), or null: Σ w c; moment: Σ w c^k (ρ·u)
  T* trace;                    // (batch), or null: Σ w c ‖ρ‖²
  WeightDigits weight_digits;  // kWeightDigits
  const int* proven;  // (batch), or null: not 0 where the screening (screen.cuh) has already served a query
};

struct WeightShared {
  int listed[kLongestSupport], sorted[kLongestSupport];
  double squares[kLongestSupport], exponent[kLongestSupport];
  float weight[kLongestSupport];
  int used, begin, last;
  double slots[kRowWarps];
  NearestShared<kRowThreads> nearest;
};

/// What a refined list says of a query.
struct Refined {
  double squares, total;  // the nearest charge's ‖ρ‖²; Σ weights
  double largest;         // log-weight, from which weights are measured
};

/// A sparse query's list, in the charges' order (blocks appended as they came), its distances and weights by
/// direct differences: what the products' rounding could do to near-duplicates is gone. For 1 to
/// kLongestSupport charges; a warp a charge.
template <class T, class C>
__device__ Refined refine_list(const WeightCall<T, C>& call, WeightShared& shared, int used, int64_t row,
                               double r, double total_dim) {
  const int mine = static_cast<int>(threadIdx.x), lane = mine % kWarp;
  int* charges = call.weight_digits.charge + row * kLongestSupport;
  if (mine < used) shared.listed[mine] = charges[mine];
  __syncthreads();
  if (mine < used) {
    int place = 0;
    for (int other = 0; other < used; ++other) place += shared.listed[other] < shared.listed[mine] ? 1 : 0;
    shared.sorted[place] = shared.listed[mine];
  }
  __syncthreads();
  const Values<T> values(call.divisor, call.offset);
  const T* x = call.x + row * call.dim;
  for (int at = mine / kWarp; at < used; at += kRowWarps) {
    const double share = distance_share(call.charges + shared.sorted[at] * call.dim, x,
                                        static_cast<int>(call.dim), values, lane, kWarp);
    const double squares = warp_reduce(share, Sum{});
    if (lane == 0) shared.squares[at] = squares;
  }
  __syncthreads();
  double nearest = shared.squares[0];
  for (int at = 1; at < used; ++at) nearest = shared.squares[at] < nearest ? shared.squares[at] : nearest;
  const WeightFunction<T> function(nearest + r * r, r, total_dim);
  if (mine < used) {
    shared.exponent[mine] = static_cast<double>(function.log_weight(shared.squares[mine] - nearest)) +
                            (call.log_weights ? call.log_weights[shared.sorted[mine]] : 0.0);
  }
  __syncthreads();
  double largest = shared.exponent[0], total = 0;
  for (int at = 1; at < used; ++at) largest = shared.exponent[at] > largest ? shared.exponent[at] : largest;
  if (mine < used) {
    shared.weight[mine] = static_cast<float>(exponential(static_cast<T>(shared.exponent[mine] - largest)));
    charges[mine] = shared.sorted[mine];
    call.weight_digits.weight[row * kLongestSupport + mine] = shared.weight[mine];
  }
  __syncthreads();
  for (int at = 0; at < used; ++at) total += static_cast<double>(shared.weight[at]);
  return {nearest, total, largest};
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
    sum.digit_total += one.digit_total;
    sum.used += one.used;
  }
  return sum;
}

/// Blocks that shall share a multiprocessor's registers.
template <class T, Coefficients kWanted>
constexpr int kWeightBlocks =
    sizeof(T) == 8 || kWanted == Coefficients::kWeightDigits || kWanted == Coefficients::kSecondMoment ? 2
                                                                                                       : 3;

template <class T, class C, Coefficients kWanted>
__global__ void __launch_bounds__(kRowThreads, kWeightBlocks<T, kWanted>)
    weights_kernel(WeightCall<T, C> call) {
  WeightShared& shared = shared_memory<WeightShared>();
  const int64_t row = blockIdx.x / call.parts;
  const int my_part = static_cast<int>(blockIdx.x % call.parts), count = static_cast<int>(call.count);
  if (call.proven && call.proven[row]) return;
  const double* gaps = call.gaps + row * call.count;
  const Part part = part_of(call.count, call.parts, my_part);
  const Nearest nearest =
      row_nearest<kRowThreads>(gaps, call.least + row * groups_of(call.count), count, shared.nearest);
  const Values<T> values(call.divisor, call.offset);
  double squares = !call.relative
                       ? nearest.gap
                       : block_distance<kRowThreads>(call.charges + nearest.charge * call.dim,
                                                     call.x + row * call.dim, call.dim, values, shared.slots);
  const double r = static_cast<double>(call.r[row]);
  const double base = squares + r * r;
  const double total_dim = static_cast<double>(call.dim) + call.aug_dim;
  const bool good = r > 0 && isfinite(base) && isfinite(nearest.gap);
  const WeightFunction<T> function(base, r, total_dim);

  double largest = 0;  // log-weight: the anchor's, unless the charges have weights q
  if (kWanted != Coefficients::kLargest && call.log_weights) {
    largest = call.largest[row * call.parts];
    for (int p = 1; p < call.parts; ++p) largest = Maximum{}(largest, call.largest[row * call.parts + p]);
  }
  const T cut = weight_cut<T>(call.count), gap_cut = static_cast<T>(function.gap_of(cut) / call.gap_unit);
  const T to_ratio = Minimum{}(static_cast<T>(call.gap_unit * function.inverse_base),
                               std::numeric_limits<T>::max());  // 0 · ∞ is no ratio
  LongSum<T> sum;
  double rate_total = 0, trace = 0, my_largest = -std::numeric_limits<double>::infinity();
  int64_t digit_total = 0;
  int used = 0;
  if constexpr (kWanted == Coefficients::kWeightDigits) {
    if (threadIdx.x == 0) shared.used = 0;
    __syncthreads();
  }

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
      if constexpr (kWanted == Coefficients::kWeightDigits) {
        uint32_t number = 0;
        if (weight != T(0)) {
          const float product = static_cast<float>(weight) * static_cast<float>(kDigitsOfOne),
                      whole = floorf(product);
          if (j != nearest.charge && good)
            number = static_cast<uint32_t>(whole) + (product - whole > dither(row, j) ? 1 : 0);
          const int at = used <= kLongestSupport + 1 ? atomicAdd(&shared.used, 1)
                                                     : kLongestSupport;  // else the query is dense anyhow
          if (at < kLongestSupport) shared.listed[at] = j;
        }
        digit_total += number;
        uint8_t* digits = call.weight_digits.digits + row * call.weight_digits.stride + j;
        const int64_t digit_pitch = call.batch * call.weight_digits.stride;
        digits[0] = static_cast<uint8_t>(number >> 16);
        digits[digit_pitch] = static_cast<uint8_t>(number >> 8);
        digits[2 * digit_pitch] = static_cast<uint8_t>(number);
      } else if constexpr (kWanted != Coefficients::kWeights) {
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
      if (kWanted != Coefficients::kWeightDigits && call.weights) call.weights[row * call.count + j] = weight;
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
    if constexpr (kWanted == Coefficients::kWeightDigits) {
      mine.digit_total = block_reduce<kRowThreads>(static_cast<double>(digit_total), Sum{},
                                                   shared.slots);  // whole numbers below 2^53: exact
      if (my_part == call.parts - 1)
        for (int64_t j = count + threadIdx.x; j < call.weight_digits.stride; j += kRowThreads)
          for (int digit = 0; digit < 3; ++digit)
            call.weight_digits.digits[(digit * call.batch + row) * call.weight_digits.stride + j] = 0;
      const int found = shared.used < kLongestSupport ? shared.used : kLongestSupport;
      if (threadIdx.x == 0) shared.begin = atomicAdd(call.weight_digits.listed + row, found);
      __syncthreads();
      const int place = shared.begin + static_cast<int>(threadIdx.x);
      if (static_cast<int>(threadIdx.x) < found && place < kLongestSupport)
        call.weight_digits.charge[row * kLongestSupport + place] = shared.listed[threadIdx.x];
    } else if constexpr (kWanted != Coefficients::kWeights) {
      mine.rate_total = block_reduce<kRowThreads>(rate_total, Sum{}, shared.slots);
      mine.trace = block_reduce<kRowThreads>(trace, Sum{}, shared.slots);
    }
    if (threadIdx.x == 0) call.part[row * call.parts + my_part] = mine;
    if (!last_block(call.arrived + row, call.parts, shared.last)) return;
    __syncthreads();

    RowPart all = call.parts == 1 ? mine : merge_parts(call, row);
    if constexpr (kWanted == Coefficients::kWeightDigits) {
      if (all.used > kLongestSupport) {
        if (threadIdx.x == 0)
          call.weight_digits.queries[atomicAdd(call.weight_digits.dense, 1)] = static_cast<int>(row);
      } else {
        const Refined refined = refine_list(call, shared, all.used, row, r, total_dim);
        squares = refined.squares;
        largest = refined.largest;
        all.total = good ? refined.total : all.total;
      }
    }
    if (threadIdx.x != 0) return;
    call.state[row] = {nearest.charge, all.total, all.rate_total, static_cast<int64_t>(all.digit_total),
                       all.used};
    if (call.rate) call.rate[row] = static_cast<T>(all.rate_total / all.total);
    if (call.trace) call.trace[row] = static_cast<T>(all.trace / all.total);
    if (call.lse)
      call.lse[row] = good ? largest + log(all.total) + anchor_log_weight(squares, r, total_dim)
                           : std::numeric_limits<double>::quiet_NaN();
  }
}

template <Coefficients kWanted, class T, class C>
void launch_weights(const WeightCall<T, C>& call, Stream stream) {
  if (call.log_weights)
    launch<weights_kernel<T, C, Coefficients::kLargest>>(call.batch * call.parts, kRowThreads,
                                                         sizeof(WeightShared), stream, call);
  launch<weights_kernel<T, C, kWanted>>(call.batch * call.parts, kRowThreads, sizeof(WeightShared), stream,
                                        call);
}

}  // namespace pfgm
