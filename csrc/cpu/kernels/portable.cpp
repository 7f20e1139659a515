// The kernels for any processor: four lanes, as the compiler maps them.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "table.h"

namespace pfgm::portable {
namespace {
constexpr int kWidth = 4, kTileRows = 4, kVectors = 2;
constexpr int kLargestDigit = 0;  // no products of bytes
constexpr int kDigitVectors = 1;
constexpr bool kFuses = false;  // fma rounds once
typedef float Vector __attribute__((vector_size(16)));
typedef int32_t Whole __attribute__((vector_size(16)));
inline Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
inline Vector from_bytes(const uint8_t* p) {
  return Vector{float(p[0]), float(p[1]), float(p[2]), float(p[3])};
}
// never called: kLargestDigit
inline Whole dot_bytes(Whole sum, Whole, Whole) { return sum; }
inline void interleave_rows(const uint8_t* const (&)[4], Whole (&)[4]) {}
/// Whether any lane of a comparison holds.
inline bool any_of(Whole mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
/// The lowest byte of each lane.
inline void store_low_bytes(uint8_t* p, Whole v) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<uint8_t>(v[i]);
}
inline Vector reciprocal_root(Vector v) {
  Vector out{};
  for (int i = 0; i < kWidth; ++i) out[i] = 1.0f / __builtin_sqrtf(v[i]);
  return out;
}
/// p · 2^n for whole n ≤ 127; 0 where n < −126.
inline Vector scaled(Vector p, Vector n) {
  const Whole exponent = __builtin_convertvector(n < -126.0f ? Vector{} - 126.0f : n, Whole);
  return n < -126.0f ? Vector{} : p * (Vector)((exponent + 127) << 23);
}
}  // namespace
#include "all.inl"
Kernels make_table() { return table_named("portable"); }
}  // namespace pfgm::portable
