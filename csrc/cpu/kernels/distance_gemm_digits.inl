// Signed digits of x against bytes by the tiles of digit_tile.inl or digit_tile_amx.inl: exact up to 66,000
// coordinates. Float charges are rounded to bytes on the way, each with a scale of its own; they are read
// twice, the second time from cache.

inline Vector quad_lanes(const uint8_t* row, int64_t dim, int64_t q) {
  const int64_t k = 4 * q;
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

void distance_gemm_digits(const int32_t* packed, int64_t rows, const ChargeView& charges, int64_t count,
                          int64_t first, int64_t last, int32_t* out, int64_t stride, int32_t* scratch) {
  [[maybe_unused]] const DigitUnit unit;
  const uint8_t* data = static_cast<const uint8_t*>(charges.data);
  for (int64_t tile = first; tile < last; tile += kDigitCharges)
    multiply_tile_digits(
        packed, rows, charges.dim, tile, out, stride, scratch,
        [&](int charge, int64_t q) {
          const int64_t j = tile + charge;
          return j < count ? quad_lanes(data + j * charges.dim, charges.dim, q) : Vector{};
        },
        charges_ahead(charges, count, tile + kDigitCharges, kDigitCharges));
}

void distance_gemm_rounded(const int32_t* packed, int64_t rows, const ChargeView& charges, int64_t count,
                           int64_t first, int64_t last, const float* center, int32_t* out, int64_t stride,
                           float* scales, float* residuals, int32_t* scratch) {
  [[maybe_unused]] const DigitUnit unit;
  for (int64_t tile = first; tile < last; tile += kDigitCharges) {
    Rounding rounding[kDigitCharges];
    for (int i = 0; i < kDigitCharges; ++i)
      rounding[i] = tile + i < count ? rounding_of(charges, center, tile + i) : Rounding{0, 0, Vector{}};
    multiply_tile_digits(
        packed, rows, charges.dim, tile, out, stride, scratch,
        [&](int charge, int64_t q) {
          const int64_t j = tile + charge;
          return j < count ? rounded_quads(charges, center, j, q, rounding[charge]) : Vector{};
        },
        Ahead{});
    for (int i = 0; i < kDigitCharges; ++i) {
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
