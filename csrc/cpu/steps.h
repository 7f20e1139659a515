// The sampler's steps, a row at a time: one pass for ‖v_x‖ and what the ball of the charges asks for (only
// where it is needed), one for the update. Rows run in parallel. Cost: v is read once or twice (the second
// time from cache), x once, the result written once.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../common/ball.h"
#include "tensors.h"

namespace pfgm {

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7fff;
  uint32_t bits;
  if (magnitude >= 0x7c00) bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
  else if (magnitude >= 0x400) bits = sign | ((magnitude << 13) + (112u << 23));
  else return (sign ? -1.0f : 1.0f) * static_cast<float>(magnitude) * 0x1p-24f;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float bfloat_to_float(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

/// A tensor of numbers, one a row or one for all rows, read without asking the tensor again: a question to it
/// costs as much as forty elements of a row.
class __attribute__((visibility("hidden"))) PerRow {
 public:
  explicit PerRow(const Tensor& tensor)
      : data_(tensor.const_data_ptr()), type_(tensor.scalar_type()), one_(tensor.numel() == 1) {
    require(type_ == ScalarType::Float || type_ == ScalarType::Double || type_ == ScalarType::BFloat16 ||
                type_ == ScalarType::Half,
            "v_z and z must be float32, float64, bfloat16 or float16");
  }
  double operator()(int64_t row) const {
    const int64_t i = one_ ? 0 : row;
    switch (type_) {
      case ScalarType::Float: return static_cast<const float*>(data_)[i];
      case ScalarType::Double: return static_cast<const double*>(data_)[i];
      case ScalarType::BFloat16: return bfloat_to_float(static_cast<const uint16_t*>(data_)[i]);
      default: return half_to_float(static_cast<const uint16_t*>(data_)[i]);
    }
  }

 private:
  const void* data_;
  ScalarType type_;
  bool one_;
};

/// Rows of v in T, as they are or converted into the thread's buffer.
template <class T>
class __attribute__((visibility("hidden"))) Rows {
 public:
  explicit Rows(const Tensor& v) : data_(v.const_data_ptr()), type_(v.scalar_type()), dim_(v.sizes()[1]) {
    same_ = type_ == (sizeof(T) == 4 ? ScalarType::Float : ScalarType::Double);
    if (!same_) buffer_.resize(dim_);
  }
  const T* operator()(int64_t row) {
    if (same_) return static_cast<const T*>(data_) + row * dim_;
    switch (type_) {
      case ScalarType::BFloat16:
        return convert(static_cast<const uint16_t*>(data_) + row * dim_, bfloat_to_float);
      case ScalarType::Half: return convert(static_cast<const uint16_t*>(data_) + row * dim_, half_to_float);
      case ScalarType::Float:
        return convert(static_cast<const float*>(data_) + row * dim_, [](float value) { return value; });
      case ScalarType::Double:
        return convert(static_cast<const double*>(data_) + row * dim_, [](double value) { return value; });
      default: require(false, "v_x must be float32, float64, bfloat16 or float16"); return nullptr;
    }
  }

 private:
  template <class V, class F>
  const T* convert(const V* from, F f) {
    for (int64_t k = 0; k < dim_; ++k) buffer_[k] = static_cast<T>(f(from[k]));
    return buffer_.data();
  }
  const void* data_;
  ScalarType type_;
  int64_t dim_;
  bool same_;
  std::vector<T> buffer_;
};

/// Σ v². next: as many elements that are read soon after, or null.
double square_sum(const float* v, int64_t count, const float* next = nullptr);
double square_sum(const double* v, int64_t count, const double* next = nullptr);
/// vv, xx and xv of a row.
void sums_with(const float* x, const float* v, int64_t count, StepSums<double>& sums);
void sums_with(const double* x, const double* v, int64_t count, StepSums<double>& sums);
/// ww, xw and vw.
void sums_with(const float* x, const float* v, const float* w, int64_t count, StepSums<double>& sums);
void sums_with(const double* x, const double* v, const double* w, int64_t count, StepSums<double>& sums);
/// out = b v.
void scaled(const float* v, float b, float* out, int64_t count);
void scaled(const double* v, double b, double* out, int64_t count);
/// out = a x + b v + c w; w may be null. out may be x.
void combine(float a, const float* x, float b, const float* v, float c, const float* w, float* out,
             int64_t count);
void combine(double a, const double* x, double b, const double* v, double c, const double* w, double* out,
             int64_t count);

/// 1/v_z with v_z as it is above z_exp, and as ‖v_x‖ implies below (PFGM appendix B.2.3). n ≥ 1 is held below
/// 1: never NaN for it.
template <class T>
double inverse_vz(double squares, int64_t dim, double vz, double z, double gamma, double z_exp) {
  if (!(z < z_exp)) return 1 / vz;
  const double root = std::sqrt(static_cast<double>(dim));
  double n = std::sqrt(squares) / root;
  const double most = 1.0 - static_cast<double>(std::numeric_limits<T>::epsilon());
  if (n > most) n = most;
  const double along = gamma * n / (1 - n);
  return -(std::sqrt(along * along + z * z) + gamma) / (root * z);
}

/// The step's x + factors, into out.
template <class T>
void move(const T* x, const Factors<double>& by, const T* v, const T* w, T* out, int64_t dim) {
  combine(static_cast<T>(1 + by.base), x, static_cast<T>(by.first), v, static_cast<T>(by.second), w, out,
          dim);
}

template <class Body>
void over_rows(int64_t rows, int64_t dim, const Body& body) {
  const int64_t grain = dim >= 32768 ? 1 : 32768 / (dim > 0 ? dim : 1) + 1;
  torch::stable::parallel_for(0, rows, grain, body);
}

inline void require_step(const Tensor& x, const Tensor& vx, const Tensor& vz) {
  require_matrix(vx, "v_x must be (B, N) and contiguous");
  require_rows(vz, vx, "v_z must be (B,) and contiguous");
  require(is_real(x) && x.is_contiguous() && same_shape(x, vx),
          "x must be float32 or float64 and of v_x's shape");
}

}  // namespace pfgm
