// One call of a field operator as raw pointers, and the four ways to serve it. docs/architecture.md has the contract,
// docs/cuda.md the choice between the ways.
#pragma once

#include <functional>

#include "device.h"

namespace pfgm {

/// What a call wants to know; the outputs that it does not name are null.
enum class Wanted { kMean, kField, kScore, kLogDensity, kMoment, kStep };

/// T is x's dtype; charges are of T or bytes.
struct FieldCall {
  Wanted wanted;
  bool is_double;  // T
  bool bytes;      // charges
  int64_t batch, charges_count, dim;
  const void* x;              // (B, N) T
  const void* r;              // (B,) T
  const void* charges;        // (M, N) T or uint8
  const double* log_weights;  // (M,) or null
  const void* center;         // (N,) T or null
  const double* sq_norms;     // (M,) around center, or null
  double divisor, offset, aug_dim;
  const void* u = nullptr;       // moment: (B, N) T
  int64_t power = 0;             // moment
  const void* r_next = nullptr;  // step: (B,) T
  void* vector = nullptr;        // (B, N) T: mean, x − m, the step's result, or the moment
  void* gradient = nullptr;      // (B, N) T: score's g
  void* rate = nullptr;          // (B,) T: score's s, the moment's projection
  void* trace = nullptr;         // (B,) T: score's t
  double* lse = nullptr;         // (B,)
  Stream stream;
  std::function<void*(int64_t)> scratch;  // bytes → memory for the time of the call

  template <class T>
  T* take(int64_t count) const {
    return static_cast<T*>(scratch(count * static_cast<int64_t>(sizeof(T))));
  }
  /// The same call for `count` of its rows, from `first` on.
  FieldCall rows(int64_t first, int64_t count) const;
};

/// Serves a call: picks the way, cuts the batch so that scratch stays bounded.
void run_field(const FieldCall& call);

/// Small N: one launch, nothing but the answer is written.
bool plane_serves(const FieldCall& call);
void run_plane(const FieldCall& call);

/// Byte charges of large N on integer tensor cores.
bool bytes_serves(const FieldCall& call);
void run_bytes(const FieldCall& call);

/// Float charges of large N and many queries on integer tensor cores.
bool floats_serves(const FieldCall& call);
void run_floats(const FieldCall& call);

/// Everything: direct differences.
void run_direct(const FieldCall& call);

}  // namespace pfgm
