// The loops of steps.h. The compiler makes one clone of each for an instruction set, and the loader takes the
// best.
#include "steps.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PFGM_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define PFGM_CLONES
#endif

namespace pfgm {
namespace {

constexpr int64_t kLanes = 64;

/// In 64 independent sums: vectorised, and in the same order on every machine. The row of x that the update
/// reads next is asked for meanwhile: the sum leaves the memory idle.
#define PFGM_LOOPS(T)                                                                             \
  PFGM_CLONES double squares(const T* v, const T* next, int64_t count) {                          \
    T lanes[kLanes] = {};                                                                         \
    int64_t k = 0;                                                                                \
    for (; k + kLanes <= count; k += kLanes) {                                                    \
      for (size_t line = 0; line < kLanes * sizeof(T) && next != nullptr; line += 64)             \
        __builtin_prefetch(reinterpret_cast<const char*>(next + k) + line);                       \
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += v[k + lane] * v[k + lane];     \
    }                                                                                             \
    double total = 0;                                                                             \
    for (; k < count; ++k) total += static_cast<double>(v[k]) * v[k];                             \
    for (T lane : lanes) total += lane;                                                           \
    return total;                                                                                 \
  }                                                                                               \
  PFGM_CLONES void scale(const T* v, T b, T* out, int64_t count) {                                \
    for (int64_t k = 0; k < count; ++k) out[k] = b * v[k];                                        \
  }                                                                                               \
  PFGM_CLONES void add(const T* x, const T* v, T b, T* out, int64_t count) {                      \
    for (int64_t k = 0; k < count; ++k) out[k] = x[k] + b * v[k];                                 \
  }                                                                                               \
  PFGM_CLONES void add_two(const T* x, const T* v, T b, const T* w, T c, T* out, int64_t count) { \
    for (int64_t k = 0; k < count; ++k) out[k] = x[k] + (b * v[k] + c * w[k]);                    \
  }

PFGM_LOOPS(float)
PFGM_LOOPS(double)

}  // namespace

double square_sum(const float* v, int64_t count, const float* next) { return squares(v, next, count); }
double square_sum(const double* v, int64_t count, const double* next) { return squares(v, next, count); }

void combine(const float* x, const float* v, float b, float* out, int64_t count) {
  x == nullptr ? scale(v, b, out, count) : add(x, v, b, out, count);
}
void combine(const double* x, const double* v, double b, double* out, int64_t count) {
  x == nullptr ? scale(v, b, out, count) : add(x, v, b, out, count);
}
void combine(const float* x, const float* v, float b, const float* w, float c, float* out, int64_t count) {
  add_two(x, v, b, w, c, out, count);
}
void combine(const double* x, const double* v, double b, const double* w, double c, double* out,
             int64_t count) {
  add_two(x, v, b, w, c, out, count);
}

}  // namespace pfgm
