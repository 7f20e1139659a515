// The last stage: a row's sums become an operator's outputs.
//
// finish_kernel: after weighted_difference; adds the splits in double. One thread an element; reads (splits ×
// sets) partial sums. byte_finish_kernel: after weighted_sum; dense rows from whole numbers, sparse rows from
// their list by direct differences (a launch of one block for 512 columns; the list's charges are read four
// at a time).
#pragma once

#include "../device.h"
#include "../field.h"
#include "sparse_row.cuh"
#include "weighted_sum.cuh"

namespace pfgm {

template <class T, class C>
struct FinishCall {
  FieldOp op;
  const T* x;             // (batch, dim)
  const T* r;             // (batch)
  const T* r_next;        // (batch), step
  const C* charges;       // (count, dim)
  const RowState* state;  // (batch)
  const T* partial;       // (splits, sets, batch, dim)
  int64_t batch, dim, splits, sets;
  T divisor, offset;
  bool weighted;
  T* out;       // (batch, dim)
  T* gradient;  // (batch, dim), score
};

constexpr int kFinishThreads = 256;

template <class T, class C>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(FinishCall<T, C> call) {
  const int64_t tiles = ceil_div<int64_t>(call.dim, kFinishThreads);
  const int64_t row = blockIdx.x / tiles, column = blockIdx.x % tiles * kFinishThreads + threadIdx.x;
  if (column >= call.dim) return;
  const RowState state = call.state[row];
  const int64_t at = row * call.dim + column, set = call.batch * call.dim;
  const int64_t splits = needs_sum(state, call.weighted) ? call.splits : 0;
  const auto merged = [&](int64_t which) {
    double sum = 0;
#pragma unroll 8
    for (int64_t s = 0; s < splits; ++s)
      sum += static_cast<double>(call.partial[(s * call.sets + which) * set + at]);
    return sum / state.total;
  };
  const Values<T> values(call.divisor, call.offset);
  const T x = call.x[at], y = values(call.charges[state.anchor * call.dim + column]);
  const double sum = merged(0), share = state.rate_total / state.total;
  if (call.op == FieldOp::kSecondMoment) {
    call.out[at] = static_cast<T>(sum + (static_cast<double>(y) - static_cast<double>(x)) * share);
    return;
  }
  const T r = call.r[row], r_next = call.r_next ? call.r_next[row] : T(0);
  call.out[at] = field_output(call.op, x, y, static_cast<T>(sum), r, r_next);
  if (call.gradient)
    call.gradient[at] = static_cast<T>(merged(1) + (static_cast<double>(y) - static_cast<double>(x)) * share);
}

template <class T, class C>
void launch_finish(const FinishCall<T, C>& call, Stream stream) {
  launch<finish_kernel<T, C>>(call.batch * ceil_div<int64_t>(call.dim, kFinishThreads), kFinishThreads, 0,
                              stream, call);
}

struct ByteFinishCall {
  FieldOp op;
  const float* x;             // (batch, dim)
  const float* r;             // (batch)
  const float* r_next;        // (batch), step
  const uint8_t* charges;     // (count, dim)
  const double* log_weights;  // (count) or null
  const RowState* state;      // (batch)
  WeightDigits weight_digits;
  WeightedSumCall sum;  // the dense queries'
  int64_t batch, dim;
  float divisor, offset;
  double aug_dim;
  double* lse;  // (batch), or null: the sparse queries'
  float* out;   // (batch, dim)
};

constexpr int kByteFinishThreads = 128;
constexpr int kByteFinishColumns = 4 * kByteFinishThreads;

/// A dense query's sum is Σ W (b − b_a) in whole numbers; a sparse one's Σ w (y − y_a) by differences.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) byte_finish_kernel(ByteFinishCall call) {
  const int64_t tiles = ceil_div<int64_t>(call.dim, kByteFinishColumns);
  const int64_t row = blockIdx.x / tiles, mine = blockIdx.x % tiles * kByteFinishColumns + 4 * threadIdx.x;
  const bool valid = mine < call.dim;
  const int64_t column = valid ? mine : 0;  // a warp weighs a sparse query's charges together
  const auto x = load<float, 4>(call.x + row * call.dim + column);
  const float r = call.r[row], r_next = call.r_next ? call.r_next[row] : 0.0f;
  const RowState state = call.state[row];
  using Four = Vector<uint8_t, 4>;
  const Four near = load<uint8_t, 4>(call.charges + state.anchor * call.dim + column);
  const Values<float> values(call.divisor, call.offset);
  float anchor[4];
  double sum[4] = {};
#pragma unroll
  for (int c = 0; c < 4; ++c) anchor[c] = values(near.at[c]);
  if (state.listed > kLongestSupport) {
    int64_t whole[4] = {};
    visit_partial_sums(call.sum, *call.weight_digits.dense, state.slot, column, [&](const int64_t* part) {
#pragma unroll
      for (int c = 0; c < 4; ++c) whole[c] += part[c];
    });
    const double unit = 1.0 / (kDigitsOfOne * static_cast<double>(call.divisor) * state.total);
#pragma unroll
    for (int c = 0; c < 4; ++c)
      sum[c] = static_cast<double>(whole[c] - near.at[c] * state.digit_total) * unit;
  } else if (state.listed > 0) {
    const SparseWeights weights(call.weight_digits, call.log_weights, row, state.listed,
                                static_cast<double>(r), static_cast<double>(call.dim) + call.aug_dim);
    const double unit = 1.0 / weights.total;
    float together[4] = {};
#pragma unroll 4
    for (int at = 0; at < state.listed; ++at) {
      const int charge = weights.charge_at(at);
      const float weight = weights.weight_at(at);
      const Four bytes = load<uint8_t, 4>(call.charges + charge * call.dim + column);
#pragma unroll
      for (int c = 0; c < 4; ++c) together[c] += weight * (values(bytes.at[c]) - anchor[c]);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[c] = together[c] * unit;
    if (call.lse && mine == 0) call.lse[row] = weights.lse;
  }
  if (!valid) return;
  Vector<float, 4> out;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    out.at[c] = field_output(call.op, x.at[c], anchor[c], static_cast<float>(sum[c]), r, r_next);
    if (state.total != state.total) out.at[c] = std::numeric_limits<float>::quiet_NaN();
  }
  *reinterpret_cast<Vector<float, 4>*>(call.out + row * call.dim + column) = out;
}

template <int kThreads = kByteFinishThreads>
void launch_byte_finish(const ByteFinishCall& call, Stream stream) {
  launch<byte_finish_kernel<kThreads>>(call.batch * ceil_div<int64_t>(call.dim, kByteFinishColumns),
                                       kByteFinishThreads, 0, stream, call);
}

}  // namespace pfgm
