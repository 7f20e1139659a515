// The fused steps: out = a x + b v [+ c v'], a, b and c numbers of a row that depend on its ‖v‖ and ‖v'‖, and
// where the charges are known to lie in a ball, on its products with x too (common/ball.h).
//
// Tiling: a row belongs to one warp (8 rows a block) or one block of 256 or 1024 threads, which keeps it in
// registers between the norm and the update, in vectors of 16 bytes where rows are aligned. Longer rows are
// cut into segments: one launch writes each segment's sums, a second one adds them up in a fixed
// order and updates. Cost: reads v, v' and x once, writes out once (long rows: v and v' twice, the second
// time mostly from L2); bound by memory.
#pragma once

#include "../../common/ball.h"
#include "../device.h"

namespace pfgm {

constexpr int kStepThreads = 256;
constexpr int kLongStepThreads = 1024;
constexpr int kStepItems = 4;
constexpr int kStepSegment = 8192;  // elements of a long row that one block handles

/// A tensor of numbers, a row each or one for all rows, float32/float64/bfloat16/float16: the steps' z, z',
/// v_z.
struct PerRow {
  enum class Type : int { kFloat, kDouble, kBFloat16, kHalf };
  const void* data;
  Type type;
  int64_t stride;  // 0: one number for all rows
  __device__ __forceinline__ double at(int64_t row) const {
    const int64_t i = row * stride;
    switch (type) {
      case Type::kFloat: return static_cast<const float*>(data)[i];
      case Type::kDouble: return static_cast<const double*>(data)[i];
      case Type::kBFloat16: return widen(static_cast<const BFloat16*>(data)[i]);
      default: return widen(static_cast<const Half*>(data)[i]);
    }
  }
};

/// The divisor v_z of dx/dz = v_x/v_z: PFGM eq. 6; below z_exp appendix B.2.3 (reference.drift has the
/// words).
template <class T>
__device__ __forceinline__ T drift_divisor(T squares, T vz, T z, int64_t dim, T gamma, T z_exp) {
  if (!(z < z_exp)) return vz;
  const T root = sqrt(static_cast<T>(dim));
  const T limit = T(1) - std::numeric_limits<T>::epsilon();
  T n = sqrt(squares) / root;
  n = n > limit ? limit : n;  // NaN stays NaN
  const T along = gamma * n / (T(1) - n);
  return -root * z / (sqrt(along * along + z * z) + gamma);
}

/// drift: v/v_z.
template <class T>
struct DriftRule {
  static constexpr bool kBase = false, kAdds = false, kSecond = false, kNetwork = true;
  PerRow vz, z;
  T gamma, z_exp, radius;
  __device__ Factors<T> operator()(int64_t row, int64_t dim, const StepSums<T>& sums) const {
    const T now = z.at(row);
    const T scale = T(1) / drift_divisor<T>(sums.vv, vz.at(row), now, dim, gamma, z_exp);
    return euler_factors(sums, scale, now, T(1), radius);
  }
};

/// drift at a known x, in the ball of the charges.
template <class T>
struct BoundedDriftRule : DriftRule<T> {
  static constexpr bool kBase = true;
};

/// euler_step: x + (z' − z) v/v_z.
template <class T>
struct EulerRule {
  static constexpr bool kBase = true, kAdds = true, kSecond = false, kNetwork = true;
  PerRow vz, z, z_next;
  T gamma, z_exp, radius;
  __device__ Factors<T> operator()(int64_t row, int64_t dim, const StepSums<T>& sums) const {
    const T now = z.at(row), h = static_cast<T>(z_next.at(row) - z.at(row));
    const T scale = T(1) / drift_divisor<T>(sums.vv, vz.at(row), now, dim, gamma, z_exp);
    return euler_factors<T>(sums, scale, now, h, radius);
  }
};

/// heun_step: x + (z' − z)/2 (v/v_z + v'/v_z').
template <class T>
struct HeunRule {
  static constexpr bool kBase = true, kAdds = true, kSecond = true, kNetwork = true;
  PerRow vz, z, z_next, vz_next;
  T gamma, z_exp, radius;
  __device__ Factors<T> operator()(int64_t row, int64_t dim, const StepSums<T>& sums) const {
    const double now = z.at(row), then = z_next.at(row);
    const T scale = T(1) / drift_divisor<T>(sums.vv, vz.at(row), now, dim, gamma, z_exp);
    const T scale_next = T(1) / drift_divisor<T>(sums.ww, vz_next.at(row), then, dim, gamma, z_exp);
    return heun_factors<T>(sums, scale, scale_next, now, then, then - now, radius);
  }
};

/// normalize_field: −√N E/(‖E‖ + γ), E = (v, r); also writes v_z. PFGM eq. 5.
template <class T>
struct NormalizeRule {
  static constexpr bool kBase = false, kAdds = false, kSecond = false, kNetwork = false;
  static constexpr T radius = 0;
  const T* r;
  T* vz;
  T gamma;
  __device__ Factors<T> operator()(int64_t row, int64_t dim, const StepSums<T>& sums) const {
    const T depth = r[row];
    const T factor = -sqrt(static_cast<T>(dim)) / (sqrt(sums.vv + depth * depth) + gamma);
    vz[row] = depth * factor;  // every thread of the row writes the same
    return {factor, 0, 0};
  }
};

template <class T, class V>
struct StepCall {
  const T* x;  // (rows, dim), or null
  const V* v;
  const V* second;  // or null
  T* out;           // may be x
  int64_t rows, dim;
};

template <class T, class V, int kCount>
__device__ __forceinline__ Vector<T, kCount> load_as(const V* from) {
  const Vector<V, kCount> raw = load<V, kCount>(from);
  Vector<T, kCount> result;
#pragma unroll
  for (int c = 0; c < kCount; ++c) result.at[c] = static_cast<T>(widen(raw.at[c]));
  return result;
}

struct StepShared {
  double slots[6][kLongStepThreads / kWarp];
};

/// Calls f(sum, index) for each sum that a rule asks for; ball: the charges' ball is known.
template <class Rule, class T, class F>
__device__ __forceinline__ int each_sum(StepSums<T>& sums, bool ball, F f) {
  int count = 0;
  f(sums.vv, count++);
  if constexpr (Rule::kSecond) f(sums.ww, count++);
  if constexpr (Rule::kBase)
    if (ball) {
      f(sums.xx, count++);
      f(sums.xv, count++);
      if constexpr (Rule::kSecond) {
        f(sums.xw, count++);
        f(sums.vw, count++);
      }
    }
  return count;
}

template <class Rule, class T, int kCount>
__device__ __forceinline__ void accumulate(StepSums<T>& sums, bool ball, const Vector<T, kCount>& x,
                                           const Vector<T, kCount>& v, const Vector<T, kCount>& second) {
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    sums.vv += v.at[c] * v.at[c];
    if constexpr (Rule::kSecond) sums.ww += second.at[c] * second.at[c];
    if constexpr (Rule::kBase)
      if (ball) {
        sums.xx += x.at[c] * x.at[c];
        sums.xv += x.at[c] * v.at[c];
        if constexpr (Rule::kSecond) {
          sums.xw += x.at[c] * second.at[c];
          sums.vw += v.at[c] * second.at[c];
        }
      }
  }
}

/// Each sum over the kGroup threads of a row, in every one of them; one barrier for all sums. Once a block.
template <class Rule, int kGroup, class T>
__device__ __forceinline__ void reduce(StepSums<T>& sums, bool ball) {
  each_sum<Rule>(sums, ball, [](T& sum, int) { sum = warp_reduce(sum, Sum{}); });
  if constexpr (kGroup > kWarp) {
    StepShared& shared = shared_memory<StepShared>();
    const auto slots = [&](int which) { return reinterpret_cast<T*>(shared.slots[which]); };
    if (threadIdx.x % kWarp == 0)
      each_sum<Rule>(sums, ball, [&](T& sum, int which) { slots(which)[threadIdx.x / kWarp] = sum; });
    __syncthreads();
    each_sum<Rule>(sums, ball, [&](T& sum, int which) {
      sum = slots(which)[0];
#pragma unroll 4
      for (int warp = 1; warp < kGroup / kWarp; ++warp) sum += slots(which)[warp];
    });
  }
}

/// [x +] base x + first v [+ second v'].
template <class Rule, class T, int kCount>
__device__ __forceinline__ Vector<T, kCount> moved(const Factors<T>& by, const Vector<T, kCount>& x,
                                                   const Vector<T, kCount>& v,
                                                   const Vector<T, kCount>& second) {
  Vector<T, kCount> out;
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    T change = by.first * v.at[c];
    if constexpr (Rule::kSecond) change += by.second * second.at[c];
    if constexpr (Rule::kBase) change += ((Rule::kAdds ? T(1) : T(0)) + by.base) * x.at[c];
    out.at[c] = change;
  }
  return out;
}

/// Threads of a block whose groups of kGroup threads have a row each, and the blocks that should fit on a
/// multiprocessor.
template <int kGroup>
constexpr int kStepBlock = kGroup < kStepThreads ? kStepThreads : kGroup;
template <class Rule, int kGroup>
constexpr int kStepBlocks = kStepBlock<kGroup> > kStepThreads ? 1
                            : Rule::kSecond                   ? 2
                                                              : 4;

/// A row in the registers of kGroup threads: dim ≤ kGroup · kStepItems · kCount, a multiple of kCount.
template <class Rule, class T, class V, int kGroup, int kCount>
__global__ void __launch_bounds__(kStepBlock<kGroup>, kStepBlocks<Rule, kGroup>)
    step_kernel(Rule rule, StepCall<T, V> call) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kStepBlock<kGroup> / kGroup) + threadIdx.x / kGroup;
  if (row >= call.rows) return;  // a whole warp, or nobody
  const int64_t begin = row * call.dim;
  Vector<T, kCount> x[kStepItems], v[kStepItems], second[kStepItems];
#pragma unroll
  for (int i = 0; i < kStepItems; ++i) {
    const int64_t column = static_cast<int64_t>(i * kGroup + threadIdx.x % kGroup) * kCount;
    if (column >= call.dim) continue;
    v[i] = load_as<T, V, kCount>(call.v + begin + column);
    if constexpr (Rule::kSecond) second[i] = load_as<T, V, kCount>(call.second + begin + column);
    if constexpr (Rule::kBase) x[i] = load<T, kCount>(call.x + begin + column);
  }
  const bool ball = rule.radius > 0;
  StepSums<T> sums{};
#pragma unroll
  for (int i = 0; i < kStepItems; ++i) {
    if (static_cast<int64_t>(i * kGroup + threadIdx.x % kGroup) * kCount >= call.dim) continue;
    accumulate<Rule>(sums, ball, x[i], v[i], second[i]);
  }
  reduce<Rule, kGroup>(sums, ball);
  const Factors<T> factors = rule(row, call.dim, sums);
#pragma unroll
  for (int i = 0; i < kStepItems; ++i) {
    const int64_t column = static_cast<int64_t>(i * kGroup + threadIdx.x % kGroup) * kCount;
    if (column >= call.dim) continue;
    *reinterpret_cast<Vector<T, kCount>*>(call.out + begin + column) =
        moved<Rule>(factors, x[i], v[i], second[i]);
  }
}

/// Long rows, first launch: partial[which][row][segment] = a sum over one segment, in the order of
/// `each_sum`.
template <class Rule, class T, class V, int kCount>
__global__ void __launch_bounds__(kStepThreads)
    step_squares_kernel(StepCall<T, V> call, bool ball, int64_t segments, T* partial) {
  const int64_t row = blockIdx.x / segments, segment = blockIdx.x % segments;
  const int64_t begin = segment * kStepSegment,
                end = begin + kStepSegment < call.dim ? begin + kStepSegment : call.dim;
  StepSums<T> sums{};
  [[maybe_unused]] constexpr int kUnroll = Rule::kSecond ? 2 : 4;  // six sums' loads spill at four
#pragma unroll kUnroll
  for (int64_t column = begin + threadIdx.x * kCount; column < end; column += kStepThreads * kCount) {
    const int64_t at = row * call.dim + column;
    Vector<T, kCount> x{}, second{};
    const auto v = load_as<T, V, kCount>(call.v + at);
    if constexpr (Rule::kSecond) second = load_as<T, V, kCount>(call.second + at);
    if constexpr (Rule::kBase)
      if (ball) x = load<T, kCount>(call.x + at);
    accumulate<Rule>(sums, ball, x, v, second);
  }
  reduce<Rule, kStepThreads>(sums, ball);
  if (threadIdx.x == 0)
    each_sum<Rule>(sums, ball,
                   [&](T& sum, int which) { partial[(which * call.rows + row) * segments + segment] = sum; });
}

/// Long rows, second launch.
template <class Rule, class T, class V, int kCount>
__global__ void __launch_bounds__(kStepThreads)
    step_update_kernel(Rule rule, StepCall<T, V> call, int64_t segments, const T* partial) {
  const int64_t row = blockIdx.x / segments, segment = blockIdx.x % segments;
  StepSums<T> sums{};
  each_sum<Rule>(sums, rule.radius > 0, [&](T& sum, int which) {
    for (int64_t s = 0; s < segments; ++s) sum += partial[(which * call.rows + row) * segments + s];
  });
  const Factors<T> factors = rule(row, call.dim, sums);
  const int64_t begin = segment * kStepSegment,
                end = begin + kStepSegment < call.dim ? begin + kStepSegment : call.dim;
#pragma unroll 4
  for (int64_t column = begin + threadIdx.x * kCount; column < end; column += kStepThreads * kCount) {
    const int64_t at = row * call.dim + column;
    Vector<T, kCount> x{}, second{};
    const auto v = load_as<T, V, kCount>(call.v + at);
    if constexpr (Rule::kSecond) second = load_as<T, V, kCount>(call.second + at);
    if constexpr (Rule::kBase) x = load<T, kCount>(call.x + at);
    *reinterpret_cast<Vector<T, kCount>*>(call.out + at) = moved<Rule>(factors, x, v, second);
  }
}

/// `scratch(count)` gives memory for count values of T; asked for only where rows are long.
template <class Rule, class T, class V, int kCount, class Allocate>
void launch_step_by(const Rule& rule, const StepCall<T, V>& call, Stream stream, Allocate scratch) {
  constexpr int64_t kPerThread = kStepItems * kCount;
  constexpr int kLargest =
      Rule::kSecond ? kStepThreads : kLongStepThreads;  // two v's and x would not fit into 64 registers
  if (call.dim <= kWarp * kPerThread) {
    launch<step_kernel<Rule, T, V, kWarp, kCount>>(ceil_div<int64_t>(call.rows, kStepThreads / kWarp),
                                                   kStepThreads, sizeof(StepShared), stream, rule, call);
  } else if (call.dim <= kStepThreads * kPerThread) {
    launch<step_kernel<Rule, T, V, kStepThreads, kCount>>(call.rows, kStepThreads, sizeof(StepShared), stream,
                                                          rule, call);
  } else if (call.dim <= kLargest * kPerThread) {
    launch<step_kernel<Rule, T, V, kLargest, kCount>>(call.rows, kLargest, sizeof(StepShared), stream, rule,
                                                      call);
  } else {
    const int64_t segments = ceil_div<int64_t>(call.dim, kStepSegment);
    const bool ball = rule.radius > 0;
    T* partial = scratch((ball && Rule::kBase ? 3 : 1) * (Rule::kSecond ? 2 : 1) * call.rows * segments);
    launch<step_squares_kernel<Rule, T, V, kCount>>(call.rows * segments, kStepThreads, sizeof(StepShared),
                                                    stream, call, ball, segments, partial);
    launch<step_update_kernel<Rule, T, V, kCount>>(call.rows * segments, kStepThreads, sizeof(StepShared),
                                                   stream, rule, call, segments, partial);
  }
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class Rule, class T, class V, class Allocate>
void launch_step(const Rule& rule, const StepCall<T, V>& call, Stream stream, Allocate scratch) {
  if (call.rows == 0) return;
  const bool vectors =
      call.dim % 4 == 0 && aligned(call.v) && aligned(call.out) && aligned(call.x) && aligned(call.second);
  if (sizeof(T) == 4 && vectors)
    launch_step_by<Rule, T, V, sizeof(T) == 4 ? 4 : 1>(rule, call, stream, scratch);
  else launch_step_by<Rule, T, V, 1>(rule, call, stream, scratch);
}

}  // namespace pfgm
