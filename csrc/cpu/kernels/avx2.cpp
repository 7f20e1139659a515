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
constexpr int kLargestDigit = 64;
static_assert(2 * 255 * kLargestDigit < 1 << 15, "dot_bytes adds two products in 16 bits");
constexpr int kDigitVectors = 2;  // of a digit tile: dot_bytes needs two registers of its own
constexpr bool kFuses = true;     // fma rounds once
typedef float Vector __attribute__((vector_size(32)));
typedef int32_t Whole __attribute__((vector_size(32)));
inline Vector fma(Vector a, Vector b, Vector c) {
  return (Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline Vector from_bytes(const uint8_t* p) {
  return (Vector)_mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
/// sum += Σ over four: unsigned bytes of a times signed bytes of b, at most kLargestDigit.
inline Whole dot_bytes(Whole sum, Whole a, Whole b) {
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)a, (__m256i)b);
  return sum + (Whole)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
// never called: weights are multiplied as floats (kLargestDigit)
inline void interleave_rows(const uint8_t* const (&)[4], Whole (&)[4]) {}
/// Whether any lane of a comparison holds.
inline bool any_of(Whole mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
/// The lowest byte of each lane.
inline void store_low_bytes(uint8_t* p, Whole v) {
  const __m256i low = _mm256_set1_epi32(0x0c080400);
  const __m256i fours = _mm256_shuffle_epi8((__m256i)v, low);  // of each half, in each of its lanes
  const __m256i both = _mm256_permutevar8x32_epi32(fours, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(both));
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
