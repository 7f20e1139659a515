// What a processor does with numbers below the normal range, for as long as an object lives.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif
#include <cstdint>

namespace pfgm {

/// Results below the normal range (1.2·10⁻³⁸ in float) become 0 in this thread, as weights so far below the
/// largest are anyway: some processors take over a hundred cycles for each, which doubled or tripled the time
/// of fields in few dimensions. Numbers that are read stay what they are.
class SubnormalsToZero {
 public:
#if defined(__SSE2__)
  SubnormalsToZero() : before_(_mm_getcsr()) { _mm_setcsr(static_cast<unsigned>(before_) | kFlush); }
  ~SubnormalsToZero() { _mm_setcsr(static_cast<unsigned>(before_)); }
#elif defined(__aarch64__)
  SubnormalsToZero() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ | kFlush));
  }
  ~SubnormalsToZero() { asm volatile("msr fpcr, %0" ::"r"(before_)); }
#else
  SubnormalsToZero() = default;
  ~SubnormalsToZero() = default;
#endif
  SubnormalsToZero(const SubnormalsToZero&) = delete;
  SubnormalsToZero& operator=(const SubnormalsToZero&) = delete;

 private:
#if defined(__aarch64__)
  static constexpr uint64_t kFlush = uint64_t{1} << 24;
#else
  static constexpr unsigned kFlush = 1u << 15;
#endif
  uint64_t before_ = 0;
};

}  // namespace pfgm
