// Products of signed digits and bytes in vectors: four coordinates a lane, sums in int32, exact.
//
// Tiling: that of distance_gemm.inl with four coordinates for one; the panel of kQuads fours lies in the
// second-level cache. Cost for B rows: B M N/4 lane operations, M N loads and a quarter of the shuffles.

constexpr int64_t kQuads = 256;  // depth of a panel, in fours of coordinates
constexpr int kDigitRows = kTileRows, kDigitCharges = kTileCharges;
struct DigitUnit {};  // nothing to be set up

int64_t packed_digits(int64_t rows, int64_t dim) { return rows_padded(rows) * ((dim + 3) / 4); }
int64_t digit_scratch(int64_t rows, int64_t) { return (rows_padded(rows) + kQuads) * kTileCharges; }

void pack_digits(const int8_t* const* x, int64_t rows, int64_t dim, int32_t* packed) {
  const int64_t padded = rows_padded(rows), quads = (dim + 3) / 4;
  for (int64_t q0 = 0; q0 < quads; q0 += kQuads) {
    const int64_t depth = quads - q0 < kQuads ? quads - q0 : kQuads;
    for (int64_t i0 = 0; i0 < padded; i0 += kTileRows)
      for (int64_t q = 0; q < depth; ++q)
        for (int i = 0; i < kTileRows; ++i) {
          int8_t four[4] = {0, 0, 0, 0};
          for (int64_t b = 0; b < 4; ++b) {
            const int64_t k = 4 * (q0 + q) + b;
            if (i0 + i < rows && k < dim) four[b] = x[i0 + i][k];
          }
          std::memcpy(packed++, four, 4);
        }
  }
}

/// A register tile over `depth` quads, panel and sums kPitch apart. Signed digits (x) times bytes (the
/// panel), added to `sums`; or, kWeights, unsigned digits times signed bytes, from zero.
template <int kPart, int kPitch, bool kWeights>
inline void multiply_digits(const int32_t* x, const int32_t* panel, int64_t depth, int32_t* sums) {
  Whole sum[kTileRows][kPart];
  for (int i = 0; i < kTileRows; ++i)
    for (int v = 0; v < kPart; ++v)
      sum[i][v] = kWeights ? Whole{} : load_whole(sums + i * kPitch + v * kWidth);
  for (int64_t q = 0; q < depth; ++q, x += kTileRows, panel += kPitch) {
    Whole y[kPart];
    for (int v = 0; v < kPart; ++v) y[v] = load_whole(panel + v * kWidth);
    for (int i = 0; i < kTileRows; ++i)
      for (int v = 0; v < kPart; ++v)
        sum[i][v] = kWeights ? dot_bytes(sum[i][v], all_whole(x[i]), y[v])
                             : dot_bytes(sum[i][v], y[v], all_whole(x[i]));
  }
  for (int i = 0; i < kTileRows; ++i)
    for (int v = 0; v < kPart; ++v) store_whole(sums + i * kPitch + v * kWidth, sum[i][v]);
}

/// The whole width of a panel, kDigitVectors at a time.
template <int kFirst = 0>
inline void multiply_digit_tile(const int32_t* x, const int32_t* panel, int64_t depth, int32_t* sums) {
  constexpr int kLeft = kVectors - kFirst, kPart = kLeft < kDigitVectors ? kLeft : kDigitVectors;
  multiply_digits<kPart, kTileCharges, false>(x, panel + kFirst * kWidth, depth, sums + kFirst * kWidth);
  if constexpr (kPart < kLeft) multiply_digit_tile<kFirst + kPart>(x, panel, depth, sums);
}

/// A panel of quads, [quad][charge], made of what `quads(charge of the tile, first quad)` gives.
template <class Quads>
inline void pack_quads(int64_t depth, float* panel, Quads quads) {
  for (int vector = 0; vector < kVectors; ++vector)
    for (int64_t q = 0; q < depth; q += kWidth) {
      Vector block[kWidth];
      for (int i = 0; i < kWidth; ++i) block[i] = quads(vector * kWidth + i, q);
      transpose(block);
      const int64_t used = depth - q < kWidth ? depth - q : kWidth;
      for (int64_t i = 0; i < used; ++i) store(panel + (q + i) * kTileCharges + vector * kWidth, block[i]);
    }
}

/// One tile of charges against all rows; `quads(charge of the tile, quad)` are its bytes.
template <class Quads>
inline void multiply_tile_digits(const int32_t* packed, int64_t rows, int64_t dim, int64_t tile, int32_t* out,
                                 int64_t stride, int32_t* scratch, Quads quads, Ahead ahead) {
  const int64_t padded = rows_padded(rows), total = (dim + 3) / 4;
  const int64_t lines = ahead.share(padded / kTileRows * ((total + kQuads - 1) / kQuads));
  int32_t* sums = scratch;
  int32_t* panel = scratch + padded * kTileCharges;
  std::memset(sums, 0, sizeof(int32_t) * padded * kTileCharges);
  const int32_t* x = packed;
  for (int64_t q0 = 0; q0 < total; q0 += kQuads) {
    const int64_t depth = total - q0 < kQuads ? total - q0 : kQuads;
    pack_quads(depth, reinterpret_cast<float*>(panel),
               [&](int charge, int64_t q) { return quads(charge, q0 + q); });
    for (int64_t i0 = 0; i0 < padded; i0 += kTileRows, x += kTileRows * depth) {
      ahead.fetch(lines);
      multiply_digit_tile(x, panel, depth, sums + i0 * kTileCharges);
    }
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int v = 0; v < kVectors; ++v)
      store_whole(out + i * stride + tile + v * kWidth, load_whole(sums + i * kTileCharges + v * kWidth));
}

/// Where four charges' weights of a digit row lie in a band of `quads` fours: [tile][quad][row of the tile].
inline int64_t weight_place(int64_t row, int64_t quad, int64_t quads) {
  return (row / kTileRows * quads + quad) * kTileRows + row % kTileRows;
}

/// A tile of digit rows (as weight_place has them) times a panel [quad][4 kWidth] of signed bytes, into
/// `found` (kDigitRows, 4 kWidth).
inline void multiply_weights(const int32_t* packed, const int32_t* panel, int64_t quads, int32_t* found) {
  for (int half = 0; half < 2; ++half)
    multiply_digits<2, 4 * kWidth, true>(packed, panel + half * 2 * kWidth, quads, found + half * 2 * kWidth);
}
