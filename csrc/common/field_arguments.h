// One call of a field operator as raw pointers, the same for every device.
#pragma once

#include <cstdint>

namespace pfgm {

/// The operator that is asked for; the outputs that it does not have are null.
enum class FieldOp { kPosteriorMean, kPoissonField, kScore, kLogDensity, kSecondMoment, kFieldStep };

/// T is x's dtype; charges are of T or bytes.
struct FieldArguments {
  FieldOp op;
  bool is_double;             // T
  bool bytes;                 // charges
  int64_t batch, count, dim;  // B, M, N
  const void* x;              // (B, N) T
  const void* r;              // (B,) T
  const void* charges;        // (M, N) T or uint8
  const double* log_weights;  // (M,) or null
  const void* center;         // (N,) T, or null together with sq_norms
  const double* sq_norms;     // (M,) around center
  double divisor, offset, aug_dim;
  const void* u = nullptr;       // second_moment: (B, N) T
  int64_t power = 0;             // second_moment: 0 to 8
  const void* r_next = nullptr;  // field_step: (B,) T
  void* out = nullptr;           // (B, N) T: mean, x − m, the step's result, or the moment
  void* gradient = nullptr;      // (B, N) T: score's g
  void* rate = nullptr;          // (B,) T: score's s, the moment's projection
  void* trace = nullptr;         // (B,) T: score's t
  double* lse = nullptr;         // (B,)
};

}  // namespace pfgm
