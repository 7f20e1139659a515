// One call of a field operator as raw pointers, and the three ways to serve it (docs/cpu.md says which serves what).
#pragma once

#include <cstdint>
#include <functional>

namespace pfgm {

/// What a call wants to know; the outputs that it does not name are null.
enum class Wanted { kMean, kField, kScore, kLogDensity, kMoment, kStep };

/// T is x's dtype; charges are of T or bytes.
struct FieldCall {
  Wanted wanted;
  bool is_double;  // T
  bool bytes;      // charges
  int64_t batch, count, dim;  // B, M, N
  const void* x;              // (B, N) T
  const void* r;              // (B,) T
  const void* charges;        // (M, N) T or uint8
  const double* log_weights;  // (M,) or null
  const void* center;         // (N,) T, or null together with sq_norms
  const double* sq_norms;     // (M,) around center
  double divisor, offset, aug_dim;
  const void* u = nullptr;       // moment: (B, N) T
  int64_t power = 0;             // moment
  const void* r_next = nullptr;  // step: (B,) T
  void* vector = nullptr;        // (B, N) T: mean, x − m, the step's result, or the moment
  void* gradient = nullptr;      // (B, N) T: score's g
  void* rate = nullptr;          // (B,) T: score's s, the moment's projection
  void* trace = nullptr;         // (B,) T: score's t
  double* lse = nullptr;         // (B,)
};

/// parallel_for of the framework: (begin, end, grain, body(begin, end)).
using Parallel = std::function<void(int64_t, int64_t, int64_t, const std::function<void(int64_t, int64_t)>&)>;

/// Serves a call in the way that fits it.
void run_field(const FieldCall& call, const Parallel& parallel);

/// Everything, in double: float64, and moments. Direct differences.
void run_exact(const FieldCall& call, const Parallel& parallel);

/// Few dimensions: every difference, vectorised over the charges.
bool plane_serves(const FieldCall& call);
void run_plane(const FieldCall& call, const Parallel& parallel);

/// The rest of float32: a product for all pairs, then only what carries weight.
void run_large(const FieldCall& call, const Parallel& parallel);

}  // namespace pfgm
