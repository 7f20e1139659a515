// Numbers as digits (Ozaki's scheme): X = s Q, s one number a row, Q whole numbers of 24 bits in three signed
// digits of 8, Q = 2^16 d1 + 2^8 d2 + d3, so that integer tensor cores multiply them without an error.
//
// split_digits_kernel: one block a query; reads x three times, writes 3 bytes an element. Further blocks
// write the charges' norms in float, which the screening would otherwise take a root of for each pair; and
// what the kernels behind count is set to 0. split_charge_digits_kernel: one block a charge; reads 8 bytes an
// element (the second time from L1), writes 3: digit + 128. A thread takes four elements at a time: 16 bytes
// a load where rows are aligned, 4 bytes a store.
#pragma once

#include "../device.h"

namespace pfgm {

constexpr int kDigits = 3;  // of 8 bits

constexpr int kDigitThreads = 256;
constexpr int64_t kNormsOfBlock = 4 * kDigitThreads;
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
  double* residual;            // (batch): ‖X − 2^16 s D‖ with D the first digit: what it leaves out
  double* norm;                // (batch): ‖X‖, or null
  int* sums;                   // (3, batch): Σ_k of each digit, or null
  int* counters;               // two,
  int* arrived;                // (batch),
  int* listed;                 // and (batch) or null: set to 0 for the kernels behind
  const double* sq_norms;      // (count), where norms are wanted
  ChargeNorm* norms;           // (count)
  int64_t count;               // 0: none are
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

template <class T>
__global__ void __launch_bounds__(kDigitThreads) split_digits_kernel(DigitCall<T> call) {
  DigitShared& shared = shared_memory<DigitShared>();
  const int64_t row = blockIdx.x;
  if (row >= call.batch) {
    const double unit = call.divisor * call.divisor;
    for (int64_t i = 0; i < kNormsOfBlock; i += kDigitThreads) {
      const int64_t j = (row - call.batch) * kNormsOfBlock + i + threadIdx.x;
      if (j >= call.count) return;
      const double square = unit * call.sq_norms[j];
      call.norms[j] = {static_cast<float>(square), static_cast<float>(sqrt(square) * (1 + 1e-7))};
    }
    return;
  }
  const CenteredRow<T> centered(call.x, row, call.center, call.dim);
  double largest = 0, squares = 0, four[4];
  for (int64_t k = 4 * threadIdx.x; k < call.dim; k += 4 * kDigitThreads) {
    centered(k, four);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double value = four[i] * call.divisor;
      largest = MaximumOrNaN{}(largest, fabs(value));
      squares += value * value;
    }
  }
  largest = block_reduce<kDigitThreads>(largest, MaximumOrNaN{}, shared.slots);
  const bool good = isfinite(largest);
  const double scale = largest > 0 ? largest / kDigitLargest : 1.0, inverse = good ? 1.0 / scale : 0.0;
  const int64_t digit_pitch = call.batch * call.stride;
  double residual = 0;
  int sums[kDigits] = {};  // of a thread: small
  int8_t* digits = call.digits + row * call.stride;
  for (int64_t k = 4 * threadIdx.x; k < call.stride; k += 4 * kDigitThreads) {
    centered(k, four);
    Vector<int8_t, 4> high, middle, low;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double value = four[i] * call.divisor;
      const Digits24 number = digits_of(good ? static_cast<int>(rint(value * inverse)) : 0);
      const double left = value - scale * 65536 * number.high;
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
  residual = block_reduce<kDigitThreads>(residual, Sum{}, shared.slots);
  if (call.norm) {
    squares = block_reduce<kDigitThreads>(squares, Sum{}, shared.slots);
    if (threadIdx.x == 0) call.norm[row] = sqrt(squares);
  }
  if (call.sums)
    for (int digit = 0; digit < kDigits; ++digit) {
      const double sum = block_reduce<kDigitThreads>(static_cast<double>(sums[digit]), Sum{},
                                                     shared.slots);  // whole numbers: exact
      if (threadIdx.x == 0) call.sums[digit * call.batch + row] = static_cast<int>(sum);
    }
  if (threadIdx.x == 0) {
    call.scale[row] = good ? scale : std::numeric_limits<double>::quiet_NaN();
    call.residual[row] = sqrt(residual);
    if (row == 0) call.counters[0] = call.counters[1] = 0;
    call.arrived[row] = 0;
    if (call.listed) call.listed[row] = 0;
  }
}

template <class T>
void launch_split_digits(const DigitCall<T>& call, Stream stream) {
  launch<split_digits_kernel<T>>(call.batch + ceil_div<int64_t>(call.count, kNormsOfBlock), kDigitThreads,
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
