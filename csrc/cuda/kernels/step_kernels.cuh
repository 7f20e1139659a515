// The fused steps: out = [x +] a v [+ b v'], a and b a number a row that depends on the row's norms ‖v‖,
// ‖v'‖.
//
// Tiling: a row belongs to one warp (8 rows a block) or one block of 256 or 1024 threads, which keeps it in
// registers between the norm and the update, in vectors of 16 bytes where rows are aligned. Longer rows are
// cut into segments: one launch writes each segment's sum of squares, a second one adds them up in a fixed
// order and updates. Cost: reads v, v' and x once, writes out once (long rows: v and v' twice, the second
// time mostly from L2); bound by memory.
#pragma once

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

template <class T>
struct Factors {
  T first, second;
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
  static constexpr bool kBase = false, kSecond = false;
  PerRow vz, z;
  T gamma, z_exp;
  __device__ Factors<T> operator()(int64_t row, int64_t dim, T squares, T) const {
    return {T(1) / drift_divisor<T>(squares, vz.at(row), z.at(row), dim, gamma, z_exp), 0};
  }
};

/// euler_step: x + (z' − z) v/v_z.
template <class T>
struct EulerRule {
  static constexpr bool kBase = true, kSecond = false;
  PerRow vz, z, z_next;
  T gamma, z_exp;
  __device__ Factors<T> operator()(int64_t row, int64_t dim, T squares, T) const {
    const T h = static_cast<T>(z_next.at(row) - z.at(row));
    return {h / drift_divisor<T>(squares, vz.at(row), z.at(row), dim, gamma, z_exp), 0};
  }
};

/// heun_step: x + (z' − z)/2 (v/v_z + v'/v_z').
template <class T>
struct HeunRule {
  static constexpr bool kBase = true, kSecond = true;
  PerRow vz, z, z_next, vz_next;
  T gamma, z_exp;
  __device__ Factors<T> operator()(int64_t row, int64_t dim, T squares, T squares_next) const {
    const T h = static_cast<T>(0.5 * (z_next.at(row) - z.at(row)));
    return {h / drift_divisor<T>(squares, vz.at(row), z.at(row), dim, gamma, z_exp),
            h / drift_divisor<T>(squares_next, vz_next.at(row), z_next.at(row), dim, gamma, z_exp)};
  }
};

/// normalize_field: −√N E/(‖E‖ + γ), E = (v, r); also writes v_z. PFGM eq. 5.
template <class T>
struct NormalizeRule {
  static constexpr bool kBase = false, kSecond = false;
  const T* r;
  T* vz;
  T gamma;
  __device__ Factors<T> operator()(int64_t row, int64_t dim, T squares, T) const {
    const T radius = r[row];
    const T factor = -sqrt(static_cast<T>(dim)) / (sqrt(squares + radius * radius) + gamma);
    vz[row] = radius * factor;  // every thread of the row writes the same
    return {factor, 0};
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
  double slots[2][kLongStepThreads / kWarp];
};

template <class T, int kGroup>
__device__ __forceinline__ T group_sum(T value, T* slots) {
  if constexpr (kGroup == kWarp) return warp_reduce(value, Sum{});
  else return block_reduce<kGroup>(value, Sum{}, slots);
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
  T squares = 0, squares_next = 0;
#pragma unroll
  for (int i = 0; i < kStepItems; ++i) {
    const int64_t column = static_cast<int64_t>(i * kGroup + threadIdx.x % kGroup) * kCount;
    if (column >= call.dim) continue;
    v[i] = load_as<T, V, kCount>(call.v + begin + column);
    if constexpr (Rule::kSecond) second[i] = load_as<T, V, kCount>(call.second + begin + column);
    if constexpr (Rule::kBase) x[i] = load<T, kCount>(call.x + begin + column);
  }
#pragma unroll
  for (int i = 0; i < kStepItems; ++i) {
    if (static_cast<int64_t>(i * kGroup + threadIdx.x % kGroup) * kCount >= call.dim) continue;
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      squares += v[i].at[c] * v[i].at[c];
      if constexpr (Rule::kSecond) squares_next += second[i].at[c] * second[i].at[c];
    }
  }
  StepShared& shared = shared_memory<StepShared>();
  squares = group_sum<T, kGroup>(squares, reinterpret_cast<T*>(shared.slots[0]));
  if constexpr (Rule::kSecond)
    squares_next = group_sum<T, kGroup>(squares_next, reinterpret_cast<T*>(shared.slots[1]));
  const Factors<T> factor = rule(row, call.dim, squares, squares_next);
#pragma unroll
  for (int i = 0; i < kStepItems; ++i) {
    const int64_t column = static_cast<int64_t>(i * kGroup + threadIdx.x % kGroup) * kCount;
    if (column >= call.dim) continue;
    Vector<T, kCount> out;
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      T change = factor.first * v[i].at[c];
      if constexpr (Rule::kSecond) change += factor.second * second[i].at[c];
      if constexpr (Rule::kBase) change += x[i].at[c];
      out.at[c] = change;
    }
    *reinterpret_cast<Vector<T, kCount>*>(call.out + begin + column) = out;
  }
}

/// Long rows, first launch: partial[which][row][segment] = the sum of squares of one segment of v or v'.
template <class Rule, class T, class V, int kCount>
__global__ void __launch_bounds__(kStepThreads)
    step_squares_kernel(StepCall<T, V> call, int64_t segments, T* partial) {
  const int64_t row = blockIdx.x / segments, segment = blockIdx.x % segments;
  const int64_t begin = segment * kStepSegment,
                end = begin + kStepSegment < call.dim ? begin + kStepSegment : call.dim;
  T squares = 0, squares_next = 0;
#pragma unroll 4
  for (int64_t column = begin + threadIdx.x * kCount; column < end; column += kStepThreads * kCount) {
    const auto v = load_as<T, V, kCount>(call.v + row * call.dim + column);
#pragma unroll
    for (int c = 0; c < kCount; ++c) squares += v.at[c] * v.at[c];
    if constexpr (Rule::kSecond) {
      const auto second = load_as<T, V, kCount>(call.second + row * call.dim + column);
#pragma unroll
      for (int c = 0; c < kCount; ++c) squares_next += second.at[c] * second.at[c];
    }
  }
  StepShared& shared = shared_memory<StepShared>();
  squares = group_sum<T, kStepThreads>(squares, reinterpret_cast<T*>(shared.slots[0]));
  if constexpr (Rule::kSecond)
    squares_next = group_sum<T, kStepThreads>(squares_next, reinterpret_cast<T*>(shared.slots[1]));
  if (threadIdx.x == 0) {
    partial[row * segments + segment] = squares;
    if constexpr (Rule::kSecond) partial[(call.rows + row) * segments + segment] = squares_next;
  }
}

/// Long rows, second launch.
template <class Rule, class T, class V, int kCount>
__global__ void __launch_bounds__(kStepThreads)
    step_update_kernel(Rule rule, StepCall<T, V> call, int64_t segments, const T* partial) {
  const int64_t row = blockIdx.x / segments, segment = blockIdx.x % segments;
  T squares = 0, squares_next = 0;
  for (int64_t s = 0; s < segments; ++s) {
    squares += partial[row * segments + s];
    if constexpr (Rule::kSecond) squares_next += partial[(call.rows + row) * segments + s];
  }
  const Factors<T> factor = rule(row, call.dim, squares, squares_next);
  const int64_t begin = segment * kStepSegment,
                end = begin + kStepSegment < call.dim ? begin + kStepSegment : call.dim;
#pragma unroll 4
  for (int64_t column = begin + threadIdx.x * kCount; column < end; column += kStepThreads * kCount) {
    const int64_t at = row * call.dim + column;
    const auto v = load_as<T, V, kCount>(call.v + at);
    Vector<T, kCount> out;
#pragma unroll
    for (int c = 0; c < kCount; ++c) out.at[c] = factor.first * v.at[c];
    if constexpr (Rule::kSecond) {
      const auto second = load_as<T, V, kCount>(call.second + at);
#pragma unroll
      for (int c = 0; c < kCount; ++c) out.at[c] += factor.second * second.at[c];
    }
    if constexpr (Rule::kBase) {
      const auto x = load<T, kCount>(call.x + at);
#pragma unroll
      for (int c = 0; c < kCount; ++c) out.at[c] += x.at[c];
    }
    *reinterpret_cast<Vector<T, kCount>*>(call.out + at) = out;
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
    T* partial = scratch((Rule::kSecond ? 2 : 1) * call.rows * segments);
    launch<step_squares_kernel<Rule, T, V, kCount>>(call.rows * segments, kStepThreads, sizeof(StepShared),
                                                    stream, call, segments, partial);
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
