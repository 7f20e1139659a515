// Signed digits of x against bytes: four coordinates a lane, sums in int32, exact up to 66,000 coordinates.
// Float charges are rounded to bytes on the way, each with a scale of its own.
//
// Tiling: that of distance_gemm.inl with four coordinates for one; the panel of kQuads fours lies in the
// second-level cache. Cost: B M N/4 lane operations, M N loads and a quarter of the shuffles; floats are read
// twice, the second time from cache.

constexpr int64_t kQuads = 256;  // depth of a panel, in fours of coordinates

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

inline Vector quad_lanes(const uint8_t* row, int64_t dim, int64_t q) {
  const int64_t k = 4 * q;
  __builtin_prefetch(row + k +
                     4 * kQuads);  // the next block of coordinates comes while this one is multiplied
  if (k + 4 * kWidth <= dim) return *reinterpret_cast<const Unaligned*>(row + k);
  uint8_t lanes[4 * kWidth] = {};
  if (k < dim) std::memcpy(lanes, row + k, static_cast<size_t>(dim - k));
  return *reinterpret_cast<const Unaligned*>(lanes);
}

/// y_j − μ, kWidth coordinates from k on; zeros beyond the end.
inline Vector centred_lanes(const ChargeView& charges, const float* center, int64_t j, int64_t k) {
  const float* y = static_cast<const float*>(charges.data) + j * charges.dim + k;
  const int64_t n = charges.dim - k;
  if (n >= kWidth) return load(y) - load(center + k);
  return n > 0 ? load_part(y, n, 0.0f) - load_part(center + k, n, 0.0f) : Vector{};
}

/// What turns the floats of one charge into bytes.
struct Rounding {
  float scale, inverse;
  Vector lost;  // Σ of what rounding took, squared, in steps
};

inline Rounding rounding_of(const ChargeView& charges, const float* center, int64_t j) {
  Vector most{};
  for (int64_t k = 0; k < charges.dim; k += kWidth) {
    const Vector v = centred_lanes(charges, center, j, k);
    most = greater(most, greater(v, -v));
  }
  float largest = 0;
  for (int lane = 0; lane < kWidth; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  return {largest / 127.0f, largest > 0 ? 127.0f / largest : 0.0f, Vector{}};
}

/// kWidth quads from q on of charge j as bytes, 128 for zero.
inline Vector rounded_quads(const ChargeView& charges, const float* center, int64_t j, int64_t q,
                            Rounding& rounding) {
  alignas(64) uint8_t bytes[4 * kWidth];
  const Vector shifter =
      all(12582912.0f);  // 1.5·2²³: adding it rounds to a whole number, which its low bits then hold
  for (int part = 0; part < 4; ++part) {
    const Vector v = centred_lanes(charges, center, j, 4 * q + part * kWidth) * rounding.inverse;
    const Vector shifted = v + shifter;
    const Vector lost = v - (shifted - shifter);
    rounding.lost = fma(lost, lost, rounding.lost);
    store_low_bytes(bytes + part * kWidth, (Whole)shifted + 128);
  }
  return *reinterpret_cast<const Unaligned*>(bytes);
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

int64_t digit_scratch(int64_t rows) { return (rows_padded(rows) + kQuads) * kTileCharges; }

/// One tile of charges against all rows; `quads(charge of the tile, quad)` are its bytes.
template <class Quads>
inline void multiply_tile_digits(const int32_t* packed, int64_t rows, int64_t dim, int64_t tile, int32_t* out,
                                 int64_t stride, int32_t* scratch, Quads quads) {
  const int64_t padded = rows_padded(rows), total = (dim + 3) / 4;
  int32_t* sums = scratch;
  int32_t* panel = scratch + padded * kTileCharges;
  std::memset(sums, 0, sizeof(int32_t) * padded * kTileCharges);
  const int32_t* x = packed;
  for (int64_t q0 = 0; q0 < total; q0 += kQuads) {
    const int64_t depth = total - q0 < kQuads ? total - q0 : kQuads;
    pack_quads(depth, reinterpret_cast<float*>(panel),
               [&](int charge, int64_t q) { return quads(charge, q0 + q); });
    for (int64_t i0 = 0; i0 < padded; i0 += kTileRows, x += kTileRows * depth)
      multiply_digit_tile(x, panel, depth, sums + i0 * kTileCharges);
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int v = 0; v < kVectors; ++v)
      store_whole(out + i * stride + tile + v * kWidth, load_whole(sums + i * kTileCharges + v * kWidth));
}

void distance_gemm_digits(const int32_t* packed, int64_t rows, const ChargeView& charges, int64_t count,
                          int64_t first, int64_t last, int32_t* out, int64_t stride, int32_t* scratch) {
  const uint8_t* data = static_cast<const uint8_t*>(charges.data);
  for (int64_t tile = first; tile < last; tile += kTileCharges)
    multiply_tile_digits(packed, rows, charges.dim, tile, out, stride, scratch, [&](int charge, int64_t q) {
      const int64_t j = tile + charge;
      return j < count ? quad_lanes(data + j * charges.dim, charges.dim, q) : Vector{};
    });
}

void distance_gemm_rounded(const int32_t* packed, int64_t rows, const ChargeView& charges, int64_t count,
                           int64_t first, int64_t last, const float* center, int32_t* out, int64_t stride,
                           float* scales, float* residuals, int32_t* scratch) {
  for (int64_t tile = first; tile < last; tile += kTileCharges) {
    Rounding rounding[kTileCharges];
    for (int i = 0; i < kTileCharges; ++i)
      rounding[i] = tile + i < count ? rounding_of(charges, center, tile + i) : Rounding{0, 0, Vector{}};
    multiply_tile_digits(packed, rows, charges.dim, tile, out, stride, scratch, [&](int charge, int64_t q) {
      const int64_t j = tile + charge;
      return j < count ? rounded_quads(charges, center, j, q, rounding[charge]) : Vector{};
    });
    for (int i = 0; i < kTileCharges; ++i) {
      scales[tile + i] = rounding[i].scale;
      // a little more than was found: the values themselves were rounded on their way
      residuals[tile + i] =
          rounding[i].scale *
          (static_cast<float>(__builtin_sqrt(sum_double(rounding[i].lost))) * 1.0001f + 1e-3f);
    }
  }
}

/// One digit's sums → u: norms[j] − scale·sum.
void scale_digit(const int32_t* sums, float scale, const float* norms, int64_t count, float* u) {
  for (int64_t j = 0; j < count; j += kWidth) {  // rows are padded to whole tiles
    const Vector sum = __builtin_convertvector(load_whole(sums + j), Vector);
    store(u + j, fma(all(-scale), sum, load(norms + j)));
  }
}

/// The same of rounded floats, in place.
void scale_rounded(int32_t* sums, float scale, int32_t offset, const float* scales, const float* norms,
                   int64_t count) {
  float* u = reinterpret_cast<float*>(sums);
  for (int64_t j = 0; j < count; j += kWidth) {
    const Vector sum = __builtin_convertvector(load_whole(sums + j) - offset, Vector);
    store(u + j, fma(sum * -scale, load(scales + j), load(norms + j)));
  }
}

/// Three digits: u_j less a constant near the least, the whole sums 2¹⁶ d₁ + 2⁸ d₂ + d₃ exact in double
/// before anything is subtracted. The constant is the least that the first digit gives.
void join_digits(const int32_t* first, const int32_t* second, const int32_t* third, double scale,
                 const float* norms, int64_t count, float* u) {
  const Vector coarse = all(static_cast<float>(-65536.0 * scale));
  Vector best = all(std::numeric_limits<float>::infinity());
  const auto first_digit = [&](int64_t j) {
    return fma(coarse, __builtin_convertvector(load_whole(first + j), Vector), load(norms + j));
  };
  for (int64_t j = 0; j + kWidth <= count; j += kWidth) best = lesser(first_digit(j), best);
  if (count % kWidth != 0) {  // rows are padded to whole tiles
    float lanes[kWidth];
    store(lanes, first_digit(count / kWidth * kWidth));
    best = lesser(load_part(lanes, count % kWidth, lanes[0]), best);
  }
  float least = best[0];
  for (int lane = 1; lane < kWidth; ++lane) least = best[lane] < least ? best[lane] : least;
  const auto exact = [](const int32_t* sums) { return __builtin_convertvector(load_whole(sums), Double); };
  for (int64_t j = 0; j < count; j += kWidth) {
    const Double sum = exact(first + j) * 65536.0 + (exact(second + j) * 256.0 + exact(third + j));
    const Double value = __builtin_convertvector(load(norms + j), Double) - static_cast<double>(least);
    store(u + j, __builtin_convertvector(value - sum * scale, Vector));
  }
}
