// Sixteen lanes of AVX-512 with VNNI: what the kernels are written in (all.inl).
constexpr int kWidth = 16, kTileRows = 8, kVectors = 3;
constexpr int kLargestDigit = 127;
constexpr int kDigitVectors = kVectors;  // of a digit tile
constexpr bool kFuses = true;            // fma rounds once
typedef float Vector __attribute__((vector_size(64)));
typedef int32_t Whole __attribute__((vector_size(64)));
inline Vector fma(Vector a, Vector b, Vector c) {
  return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline Vector from_bytes(const uint8_t* p) {
  return (Vector)_mm512_cvtepi32_ps(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
/// sum += Σ over four: unsigned bytes of a times signed bytes of b.
inline Whole dot_bytes(Whole sum, Whole a, Whole b) {
  return (Whole)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
/// Whether any lane of a comparison holds.
inline bool any_of(Whole mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0; }
/// The lowest byte of each lane.
inline void store_low_bytes(uint8_t* p, Whole v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
}
/// 1/√v: fourteen bits from the processor, one step of Newton.
inline Vector reciprocal_root(Vector v) {
  const Vector y = (Vector)_mm512_rsqrt14_ps((__m512)v);
  return y * fma(v * -0.5f, y * y, Vector{} + 1.5f);
}
/// Four rows of 64 bytes → four vectors whose lanes hold one byte of each row: lane 4 i + e of vector m those
/// of column 16 i + 4 m + e.
inline void interleave_rows(const uint8_t* const (&rows)[4], Whole (&quads)[4]) {
  const __m512i a = _mm512_loadu_si512(rows[0]), b = _mm512_loadu_si512(rows[1]),
                c = _mm512_loadu_si512(rows[2]), d = _mm512_loadu_si512(rows[3]);
  const __m512i ab = _mm512_unpacklo_epi8(a, b), ab2 = _mm512_unpackhi_epi8(a, b),
                cd = _mm512_unpacklo_epi8(c, d), cd2 = _mm512_unpackhi_epi8(c, d);
  quads[0] = (Whole)_mm512_unpacklo_epi16(ab, cd), quads[1] = (Whole)_mm512_unpackhi_epi16(ab, cd);
  quads[2] = (Whole)_mm512_unpacklo_epi16(ab2, cd2), quads[3] = (Whole)_mm512_unpackhi_epi16(ab2, cd2);
}
/// p · 2^n for whole n.
inline Vector scaled(Vector p, Vector n) { return (Vector)_mm512_scalef_ps((__m512)p, (__m512)n); }
