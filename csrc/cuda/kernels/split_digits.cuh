// Numbers as digits (Ozaki's scheme): X = s Q, s one number a row, Q whole numbers of 24 bits in three signed
// digits of 8, Q = 2^16 d1 + 2^8 d2 + d3, so that integer tensor cores multiply them without an error.
//
// split_digits_kernel: one block a query, which reads x once where it fits in the block's registers, else
// twice; writes 3 bytes an element. A long row is cut into segments, a block each, after row_maximum_kernel
// has found what each segment holds at most. Further blocks write the charges' norms in float, which the
// screening would otherwise take a root of for each pair; and what the kernels behind count is set to 0.
// split_charge_digits_kernel: one block a charge; reads 8 bytes an element (the second time from L1), writes
// 3: digit + 128. A thread takes four elements at a time, 16 bytes a load where rows are aligned, 4 bytes a
// store; split_digits_kernel has four such loads in flight.
#pragma once

#include "../device.h"

namespace pfgm {

constexpr int kDigits = 3;  // of 8 bits

constexpr int kDigitThreads = 256;
constexpr int64_t kNormsOfBlock = 4 * kDigitThreads;
constexpr int kDigitBatch = 4;                                       // of a thread, times four elements
constexpr int64_t kDigitsOfBlock = 4 * kDigitBatch * kDigitThreads;  // elements in a block's registers
#if defined(__CUDACC__)
constexpr int64_t kDigitSegment = kDigitsOfBlock;
#else
constexpr int64_t kDigitSegment = 2048;  // tests are small, and shall take several segments
#endif
constexpr double kDigitLargest =
    127.0 * 65536 + 127 * 256 + 127;  // what three signed digits hold with the first below 128

/// δ² ‖y − μ‖², and δ ‖y − μ‖ rounded up.
struct ChargeNorm {
  float square, root;
};

template <class T>
struct DigitCall {
  const T* x;       // (batch, dim)
  const T* center;  // (dim)
  double divisor;
  int64_t batch, dim, stride;  // stride: of a row of digits, zeros behind dim
  int8_t* digits;              // (3, batch, stride), the most significant first
  double* scale;               // (batch): s_i; NaN where x is not finite
  int segments;                // of a row; with `norm` or `sums`: 1
  double* maximum;             // (batch, segments), where there are several: max |X|
  double* residual;        // (batch, segments): ‖X − 2^16 s D‖² with D the first digit: what it leaves out
  double* norm;            // (batch): ‖X‖, or null
  int* sums;               // (3, batch): Σ_k of each digit, or null
  int* counters;           // two,
  int* arrived;            // and (batch): set to 0 for the kernels behind
  const double* sq_norms;  // (count), where norms are wanted
  ChargeNorm* norms;       // (count)
  int64_t count;           // 0: none are
};

struct DigitShared {
  double slots[kDigitThreads / kWarp];
};

struct MaximumOrNaN {
  __device__ double operator()(double a, double b) const { return b > a || b != b ? b : a; }
};

struct Digits24 {
  int8_t high, middle, low;
};
/// The signed digits of a whole number of at most kDigitLargest.
__device__ __forceinline__ Digits24 digits_of(int number) {
  const int8_t low = static_cast<int8_t>(number), middle = static_cast<int8_t>((number - low) / 256);
  return {static_cast<int8_t>(((number - low) / 256 - middle) / 256), middle, low};
}

/// A row less the center, four elements at a time.
template <class T>
struct CenteredRow {
  const T *row, *center;
  int64_t dim;
  bool vectors;  // the same for all threads of a block

  __device__ CenteredRow(const T* matrix, int64_t index, const T* center, int64_t dim)
      : row(matrix + index * dim),
        center(center),
        dim(dim),
        vectors(dim % 4 == 0 &&
                (reinterpret_cast<uintptr_t>(matrix) | reinterpret_cast<uintptr_t>(center)) % 16 == 0) {}

  /// Elements k to k + 3, k a multiple of 4; zeros behind the row's end.
  __device__ __forceinline__ void operator()(int64_t k, double (&out)[4]) const {
    if (vectors && k < dim) {
      const Vector<T, 4> value = load<T, 4>(row + k), middle = load<T, 4>(center + k);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        out[i] = static_cast<double>(value.at[i]) - static_cast<double>(middle.at[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        out[i] = k + i < dim ? static_cast<double>(row[k + i]) - static_cast<double>(center[k + i]) : 0.0;
    }
  }
};

/// Segments of a row: one where a second launch would cost more than it saves.
inline int digit_segments(int64_t dim) {
  return dim <= 2 * kDigitSegment ? 1 : static_cast<int>(ceil_div(dim, kDigitSegment));
}

/// A block's segment of a row of digits: [begin, end), four elements at a time.
struct DigitSegment {
  int64_t row, segment, begin, end;
  template <class T>
  __device__ explicit DigitSegment(const DigitCall<T>& call)
      : row(blockIdx.x / call.segments), segment(blockIdx.x % call.segments) {
    const int64_t length = ceil_div<int64_t>(ceil_div<int64_t>(call.stride, 16), call.segments) * 16;
    begin = segment * length;
    end = begin + length < call.stride ? begin + length : call.stride;
  }
};

/// A thread's next elements times δ, kDigitBatch vectors of four; zeros behind the row's end. All loads are
/// on their way before the first is used.
template <class T>
__device__ __forceinline__ void take_batch(const CenteredRow<T>& centered, int64_t k, double divisor,
                                           double (&value)[kDigitBatch][4]) {
  constexpr int kStep = 4 * kDigitThreads;
  if (centered.vectors) {
    Vector<T, 4> here[kDigitBatch], middle[kDigitBatch];
#pragma unroll
    for (int batch = 0; batch < kDigitBatch; ++batch) {
      const int64_t at = k + batch * kStep < centered.dim ? k + batch * kStep : 0;
      here[batch] = load<T, 4>(centered.row + at);
      middle[batch] = load<T, 4>(centered.center + at);
    }
#pragma unroll
    for (int batch = 0; batch < kDigitBatch; ++batch)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const double one = static_cast<double>(here[batch].at[i]) - static_cast<double>(middle[batch].at[i]);
        value[batch][i] = k + batch * kStep < centered.dim ? one * divisor : 0.0;
      }
  } else {
#pragma unroll
    for (int batch = 0; batch < kDigitBatch; ++batch) {
      centered(k + batch * kStep, value[batch]);
#pragma unroll
      for (int i = 0; i < 4; ++i) value[batch][i] *= divisor;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kDigitThreads) row_maximum_kernel(DigitCall<T> call) {
  DigitShared& shared = shared_memory<DigitShared>();
  const DigitSegment mine(call);
  const CenteredRow<T> centered(call.x, mine.row, call.center, call.dim);
  double largest = 0, value[kDigitBatch][4];
  for (int64_t k = mine.begin + 4 * threadIdx.x; k < mine.end; k += kDigitsOfBlock) {
    take_batch(centered, k, call.divisor, value);
#pragma unroll
    for (int batch = 0; batch < kDigitBatch; ++batch)
#pragma unroll
      for (int i = 0; i < 4; ++i) largest = MaximumOrNaN{}(largest, fabs(value[batch][i]));
  }
  largest = block_reduce<kDigitThreads>(largest, MaximumOrNaN{}, shared.slots);
  if (threadIdx.x == 0) call.maximum[blockIdx.x] = largest;
}

/// δ²‖y − μ‖² and its root in float, of kNormsOfBlock charges.
template <class T>
__device__ __forceinline__ void write_norms(const DigitCall<T>& call, int64_t block) {
  const double unit = call.divisor * call.divisor;
  for (int64_t i = 0; i < kNormsOfBlock; i += kDigitThreads) {
    const int64_t j = block * kNormsOfBlock + i + threadIdx.x;
    if (j >= call.count) return;
    const double square = unit * call.sq_norms[j];
    call.norms[j] = {static_cast<float>(square), static_cast<float>(sqrt(square) * (1 + 1e-7))};
  }
}

template <class T>
__global__ void __launch_bounds__(kDigitThreads) split_digits_kernel(DigitCall<T> call) {
  DigitShared& shared = shared_memory<DigitShared>();
  const int64_t rows = call.batch * call.segments;
  if (blockIdx.x >= rows) return write_norms(call, blockIdx.x - rows);
  const DigitSegment mine(call);
  const CenteredRow<T> centered(call.x, mine.row, call.center, call.dim);
  const int64_t begin = mine.begin + 4 * threadIdx.x;
  const bool fits = mine.end - mine.begin <= kDigitsOfBlock;
  double largest = 0, squares = 0, value[kDigitBatch][4];
  if (fits) take_batch(centered, begin, call.divisor, value);
  if (call.segments > 1) {
    for (int s = static_cast<int>(threadIdx.x) % kWarp; s < call.segments; s += kWarp)
      largest = MaximumOrNaN{}(largest, call.maximum[mine.row * call.segments + s]);
    largest = warp_reduce(largest, MaximumOrNaN{});
  } else {
    for (int64_t k = begin; k < mine.end; k += kDigitsOfBlock) {
      if (!fits) take_batch(centered, k, call.divisor, value);
#pragma unroll
      for (int batch = 0; batch < kDigitBatch; ++batch)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          largest = MaximumOrNaN{}(largest, fabs(value[batch][i]));
          squares += value[batch][i] * value[batch][i];
        }
    }
    largest = block_reduce<kDigitThreads>(largest, MaximumOrNaN{}, shared.slots);
  }
  const bool good = isfinite(largest);
  const double scale = largest > 0 ? largest / kDigitLargest : 1.0, inverse = good ? 1.0 / scale : 0.0;
  const int64_t digit_pitch = call.batch * call.stride;
  double residual = 0;
  int sums[kDigits] = {};  // of a thread: small
  int8_t* digits = call.digits + mine.row * call.stride;
  for (int64_t first = begin; first < mine.end; first += kDigitsOfBlock) {
    if (!fits) take_batch(centered, first, call.divisor, value);
#pragma unroll
    for (int batch = 0; batch < kDigitBatch; ++batch) {
      const int64_t k = first + batch * 4 * kDigitThreads;
      if (k >= mine.end) break;
      Vector<int8_t, 4> high, middle, low;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Digits24 number = digits_of(good ? static_cast<int>(rint(value[batch][i] * inverse)) : 0);
        const double left = value[batch][i] - scale * 65536 * number.high;
        residual += left * left;
        high.at[i] = number.high, middle.at[i] = number.middle, low.at[i] = number.low;
        sums[0] += number.high;
        sums[1] += number.middle;
        sums[2] += number.low;
      }
      *reinterpret_cast<Vector<int8_t, 4>*>(digits + k) = high;
      *reinterpret_cast<Vector<int8_t, 4>*>(digits + digit_pitch + k) = middle;
      *reinterpret_cast<Vector<int8_t, 4>*>(digits + 2 * digit_pitch + k) = low;
    }
  }
  residual = block_reduce<kDigitThreads>(residual, Sum{}, shared.slots);
  if (call.norm) {
    squares = block_reduce<kDigitThreads>(squares, Sum{}, shared.slots);
    if (threadIdx.x == 0) call.norm[mine.row] = sqrt(squares);
  }
  if (call.sums)
    for (int digit = 0; digit < kDigits; ++digit) {
      const double sum = block_reduce<kDigitThreads>(static_cast<double>(sums[digit]), Sum{},
                                                     shared.slots);  // whole numbers: exact
      if (threadIdx.x == 0) call.sums[digit * call.batch + mine.row] = static_cast<int>(sum);
    }
  if (threadIdx.x != 0) return;
  call.residual[blockIdx.x] = residual;
  if (mine.segment > 0) return;
  call.scale[mine.row] = good ? scale : std::numeric_limits<double>::quiet_NaN();
  if (mine.row == 0) call.counters[0] = call.counters[1] = 0;
  call.arrived[mine.row] = 0;
}

template <class T>
void launch_split_digits(const DigitCall<T>& call, Stream stream) {
  const int64_t blocks = call.batch * call.segments;
  if (call.segments > 1)
    launch<row_maximum_kernel<T>>(blocks, kDigitThreads, sizeof(DigitShared), stream, call);
  launch<split_digits_kernel<T>>(blocks + ceil_div<int64_t>(call.count, kNormsOfBlock), kDigitThreads,
                                 sizeof(DigitShared), stream, call);
}

template <class T>
struct ChargeDigitCall {
  const T* charges;  // (count, dim)
  const T* center;   // (dim)
  int64_t count, dim, stride;
  uint8_t* digits;  // (3, count, stride), the most significant first
  double* scale;    // (count)
};

template <class T>
__global__ void __launch_bounds__(kDigitThreads) split_charge_digits_kernel(ChargeDigitCall<T> call) {
  DigitShared& shared = shared_memory<DigitShared>();
  const int64_t row = blockIdx.x;
  const CenteredRow<T> centered(call.charges, row, call.center, call.dim);
  double largest = 0, four[4];
  for (int64_t k = 4 * threadIdx.x; k < call.dim; k += 4 * kDigitThreads) {
    centered(k, four);
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = MaximumOrNaN{}(largest, fabs(four[i]));
  }
  largest = block_reduce<kDigitThreads>(largest, MaximumOrNaN{}, shared.slots);
  const bool good = isfinite(largest);
  const double scale = largest > 0 ? largest / kDigitLargest : 1.0, inverse = good ? 1.0 / scale : 0.0;
  uint8_t* digits = call.digits + row * call.stride;
  const int64_t digit_pitch = call.count * call.stride;
  for (int64_t k = 4 * threadIdx.x; k < call.stride; k += 4 * kDigitThreads) {
    centered(k, four);
    Vector<uint8_t, 4> high, middle, low;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Digits24 number = digits_of(good ? static_cast<int>(rint(four[i] * inverse)) : 0);
      high.at[i] = static_cast<uint8_t>(number.high + 128);
      middle.at[i] = static_cast<uint8_t>(number.middle + 128);
      low.at[i] = static_cast<uint8_t>(number.low + 128);
    }
    *reinterpret_cast<Vector<uint8_t, 4>*>(digits + k) = high;
    *reinterpret_cast<Vector<uint8_t, 4>*>(digits + digit_pitch + k) = middle;
    *reinterpret_cast<Vector<uint8_t, 4>*>(digits + 2 * digit_pitch + k) = low;
  }
  if (threadIdx.x == 0) call.scale[row] = good ? scale : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace pfgm
