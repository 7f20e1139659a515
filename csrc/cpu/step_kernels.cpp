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

constexpr int64_t kLanes = 64, kHalf = 32, kBlock = 4096;

/// In 64 independent sums: vectorised, and in the same order on every machine. The row of x that the update
/// reads next is asked for meanwhile: the sum leaves the memory idle. The three sums of a ball are in 32
/// lanes each, flushed to double every 4096 elements: their differences are what counts.
#define PFGM_LOOPS(T)                                                                              \
  PFGM_CLONES double squares(const T* v, const T* next, int64_t count) {                           \
    T lanes[kLanes] = {};                                                                          \
    int64_t k = 0;                                                                                 \
    for (; k + kLanes <= count; k += kLanes) {                                                     \
      for (size_t line = 0; line < kLanes * sizeof(T) && next != nullptr; line += 64)              \
        __builtin_prefetch(reinterpret_cast<const char*>(next + k) + line);                        \
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += v[k + lane] * v[k + lane];      \
    }                                                                                              \
    double total = 0;                                                                              \
    for (; k < count; ++k) total += static_cast<double>(v[k]) * v[k];                              \
    for (T lane : lanes) total += lane;                                                            \
    return total;                                                                                  \
  }                                                                                                \
  PFGM_CLONES void products(const T* x, const T* v, const T* w, int64_t count, double* totals) {   \
    /* Σ x w, Σ v w, Σ w²; without w: Σ x v, Σ x², Σ v² */                                         \
    totals[0] = totals[1] = totals[2] = 0;                                                         \
    for (int64_t begin = 0; begin < count; begin += kBlock) {                                      \
      T first[kHalf] = {}, second[kHalf] = {}, third[kHalf] = {};                                  \
      const int64_t end = begin + kBlock < count ? begin + kBlock : count;                         \
      int64_t k = begin;                                                                           \
      for (; k + kHalf <= end; k += kHalf)                                                         \
        for (int64_t lane = 0; lane < kHalf; ++lane) {                                             \
          const T at = x[k + lane], by = w == nullptr ? v[k + lane] : w[k + lane];                 \
          const T with = w == nullptr ? at : v[k + lane], of = w == nullptr ? at : by;             \
          first[lane] += at * by;                                                                  \
          second[lane] += with * of;                                                               \
          third[lane] += by * by;                                                                  \
        }                                                                                          \
      for (; k < end; ++k) {                                                                       \
        const double at = x[k], by = w == nullptr ? v[k] : w[k];                                   \
        totals[0] += at * by;                                                                      \
        totals[1] += w == nullptr ? at * at : v[k] * by;                                           \
        totals[2] += by * by;                                                                      \
      }                                                                                            \
      for (int64_t lane = 0; lane < kHalf; ++lane) {                                               \
        totals[0] += first[lane];                                                                  \
        totals[1] += second[lane];                                                                 \
        totals[2] += third[lane];                                                                  \
      }                                                                                            \
    }                                                                                              \
  }                                                                                                \
  PFGM_CLONES void scale(const T* v, T b, T* out, int64_t count) {                                 \
    for (int64_t k = 0; k < count; ++k) out[k] = b * v[k];                                         \
  }                                                                                                \
  PFGM_CLONES void add(const T* x, const T* v, T b, T* out, int64_t count) {                       \
    for (int64_t k = 0; k < count; ++k) out[k] = x[k] + b * v[k];                                  \
  }                                                                                                \
  PFGM_CLONES void add_two(const T* x, const T* v, T b, const T* w, T c, T* out, int64_t count) {  \
    for (int64_t k = 0; k < count; ++k) out[k] = x[k] + (b * v[k] + c * w[k]);                     \
  }                                                                                                \
  PFGM_CLONES void mix(T a, const T* x, T b, const T* v, T c, const T* w, T* out, int64_t count) { \
    for (int64_t k = 0; k < count; ++k) out[k] = a * x[k] + (b * v[k] + c * w[k]);                 \
  }

PFGM_LOOPS(float)
PFGM_LOOPS(double)

template <class T>
void sums_of_v(const T* x, const T* v, int64_t count, StepSums<double>& sums) {
  double totals[3];
  products(x, v, static_cast<const T*>(nullptr), count, totals);
  sums.xv = totals[0], sums.xx = totals[1], sums.vv = totals[2];
}
template <class T>
void sums_of_w(const T* x, const T* v, const T* w, int64_t count, StepSums<double>& sums) {
  double totals[3];
  products(x, v, w, count, totals);
  sums.xw = totals[0], sums.vw = totals[1], sums.ww = totals[2];
}
template <class T>
void combined(T a, const T* x, T b, const T* v, T c, const T* w, T* out, int64_t count) {
  if (a != 1) mix(a, x, b, v, w == nullptr ? 0 : c, w == nullptr ? v : w, out, count);
  else if (w == nullptr) add(x, v, b, out, count);
  else add_two(x, v, b, w, c, out, count);
}

}  // namespace

#define PFGM_ENTRIES(T)                                                                           \
  double square_sum(const T* v, int64_t count, const T* next) { return squares(v, next, count); } \
  void sums_with(const T* x, const T* v, int64_t count, StepSums<double>& sums) {                 \
    sums_of_v(x, v, count, sums);                                                                 \
  }                                                                                               \
  void sums_with(const T* x, const T* v, const T* w, int64_t count, StepSums<double>& sums) {     \
    sums_of_w(x, v, w, count, sums);                                                              \
  }                                                                                               \
  void scaled(const T* v, T b, T* out, int64_t count) { scale(v, b, out, count); }                \
  void combine(T a, const T* x, T b, const T* v, T c, const T* w, T* out, int64_t count) {        \
    combined(a, x, b, v, c, w, out, count);                                                       \
  }

PFGM_ENTRIES(float)
PFGM_ENTRIES(double)

}  // namespace pfgm
