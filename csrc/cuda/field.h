// One call of a field operator as raw pointers, and the four paths that serve it. docs/architecture.md has
// the contract, docs/cuda.md the choice between the paths.
#pragma once

#include <functional>
#include <memory>

#include "../common/field_arguments.h"
#include "device.h"

namespace pfgm {

struct FieldCall : FieldArguments {
  Stream stream;
  std::function<std::shared_ptr<void>(int64_t)> scratch;  // bytes → memory

  /// The same call for `count` of its rows, from `first` on.
  FieldCall rows(int64_t first, int64_t count) const;
};

/// Scratch memory of one part of a call, in one block. A path takes all that it needs before it launches
/// anything: once without memory, to learn how much that is (and launches nothing), then with it. What it
/// takes then may depend on the call and the device alone, not on what it took before: a path that wants
/// more than it said is stopped before it launches anything.
class Arena {
 public:
  Arena() = default;
  Arena(void* memory, int64_t bytes) : memory_(static_cast<char*>(memory)), capacity_(bytes) {
#if !defined(__CUDACC__)
    emulate::poison(memory, static_cast<size_t>(bytes));  // the last part's values are nobody's
#endif
  }
  template <class T>
  T* take(int64_t count) {
    const int64_t at = bytes_;
    bytes_ += ceil_div<int64_t>(count * static_cast<int64_t>(sizeof(T)), kAlignment) * kAlignment;
    if (memory_ && bytes_ > capacity_)
      throw std::logic_error("pfgm_fast CUDA: a path takes more scratch memory than it asked for");
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  bool measures() const { return memory_ == nullptr; }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignment = 256;
  char* memory_ = nullptr;
  int64_t capacity_ = 0, bytes_ = 0;
};

/// Serves a call: picks the path, cuts the batch so that scratch stays bounded.
void run_field(const FieldCall& call);

/// Small N: one launch, nothing but the answer is written.
bool small_n_serves(const FieldCall& call);
void run_small_n(const FieldCall& call);

/// Byte charges of large N on integer tensor cores.
bool bytes_serves(const FieldCall& call);
void run_bytes(const FieldCall& call, Arena& arena);

/// Float charges of large N and many queries on integer tensor cores.
bool floats_serves(const FieldCall& call);
void run_floats(const FieldCall& call, Arena& arena);

/// Everything: direct differences.
void run_direct(const FieldCall& call, Arena& arena);

}  // namespace pfgm
