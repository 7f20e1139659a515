// The three paths that serve a call of a field operator (docs/cpu.md says which serves what).
#pragma once

#include <functional>

#include "../common/field_arguments.h"

namespace pfgm {

using FieldCall = FieldArguments;

/// The framework's threads.
struct Parallel {
  using Body = std::function<void(int64_t, int64_t)>;
  int64_t threads;
  std::function<void(int64_t, int64_t, int64_t, const Body&)> loop;
  /// body(begin, end) of parts of the range, each of `grain` or more.
  void operator()(int64_t begin, int64_t end, int64_t grain, const Body& body) const {
    loop(begin, end, grain, body);
  }
};

/// Serves a call by the path that fits it.
void run_field(const FieldCall& call, const Parallel& parallel);

/// Everything, in double: float64, and moments. Direct differences.
void run_direct(const FieldCall& call, const Parallel& parallel);

/// Few dimensions: every difference, vectorised over the charges.
bool small_n_serves(const FieldCall& call);
void run_small_n(const FieldCall& call, const Parallel& parallel);

/// The rest of float32: a product for all pairs, then only what carries weight.
void run_large(const FieldCall& call, const Parallel& parallel);

}  // namespace pfgm
