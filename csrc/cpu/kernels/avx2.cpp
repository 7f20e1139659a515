// The kernels for AVX2 with FMA: eight lanes, sixteen registers.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "table.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace pfgm::avx2 {
namespace {
constexpr int kWidth = 8, kTileRows = 4, kVectors = 3;
constexpr bool kHasBytes = false;
constexpr bool kFuses = true;  // fma rounds once
typedef float Vector __attribute__((vector_size(32)));
typedef int32_t Whole __attribute__((vector_size(32)));
inline Vector fma(Vector a, Vector b, Vector c) {
  return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline Vector from_bytes(const uint8_t* p) {
  return (Vector)_mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// never called: kHasBytes
inline Whole dot_bytes(Whole sum, Whole, Whole) { return sum; }
inline void interleave_rows(const uint8_t* const (&)[4], Whole (&)[4]) {}
/// Whether any lane of a comparison holds.
inline bool any_of(Whole mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
/// The lowest byte of each lane.
inline void store_low_bytes(uint8_t* p, Whole v) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<uint8_t>(v[i]);
}
/// 1/√v: twelve bits from the processor, two steps of Newton.
inline Vector reciprocal_root(Vector v) {
  Vector y = (Vector)_mm256_rsqrt_ps((__m256)v);
  y = y * fma(v * -0.5f, y * y, Vector{} + 1.5f);
  return y * fma(v * -0.5f, y * y, Vector{} + 1.5f);
}
/// p · 2^n for whole n ≤ 127; 0 where n < −126.
inline Vector scaled(Vector p, Vector n) {
  const Whole exponent = __builtin_convertvector(n < -126.0f ? Vector{} - 126.0f : n, Whole);
  return n < -126.0f ? Vector{} : p * (Vector)((exponent + 127) << 23);
}
}  // namespace
#include "all.inl"
Kernels make_table() { return table_named("avx2"); }
}  // namespace pfgm::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
namespace pfgm::avx2 {
Kernels make_table() { return {}; }
}  // namespace pfgm::avx2
#endif
