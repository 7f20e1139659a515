// The second product for bytes, on processors that multiply them: weights as whole numbers of two or three
// unsigned bytes against byte − 128, sums of a band in int32, exact.
//
// Tiling: that of distance_gemm_digits.inl, with charges for coordinates: four charges a lane, kTileRows
// digit rows × (kVectors·kWidth) coordinates in registers, and a panel of kBandDigits charges in the
// first-level cache. Each row has a step of its own in each band: a heavy charge costs the precision of its
// band alone. Numbers are rounded up or down by where they stand in the band, so that what rounding takes
// adds up to nothing. Cost: R M N/4 lane operations for R digit rows, M N/4 lanes packed.

constexpr int64_t kBandDigits = 256;
constexpr int64_t kBandQuads = kBandDigits / 4;
constexpr int64_t kColumns = 4 * kWidth;
static_assert(255 * 128 * kBandDigits < 1 << 24, "a band's sum is a float exactly");

int64_t weight_bands(int64_t count) { return (count + kBandDigits - 1) / kBandDigits; }

/// The largest weight of each band.
void largest_weights(const float* weights, int64_t count, float* largest) {
  for (int64_t j0 = 0; j0 < count; j0 += kBandDigits) {
    Vector most{};
    for (int64_t j = j0; j < j0 + kBandDigits && j < count; j += kWidth)
      most = greater(most, load_some(weights + j, count - j));
    float of_band = 0;
    for (int lane = 0; lane < kWidth; ++lane) of_band = most[lane] > of_band ? most[lane] : of_band;
    *largest++ = of_band;
  }
}

/// A row's weights as numbers of `digits` bytes into its digit rows, the highest first, `first` of `padded`;
/// in `steps` the largest weights become the values of a step. Returns Σ numbers · step.
double pack_weights(const float* weights, int64_t count, int digits, int64_t first, int64_t padded,
                    int32_t* packed, float* steps) {
  const float most = digits == 2 ? 65534.0f : 16776960.0f;  // rounded up they still are of so many bytes
  Vector dither;
  for (int lane = 0; lane < kWidth; ++lane) dither[lane] = (lane * 7 % kWidth + 0.5f) / kWidth;
  double total = 0;
  for (int64_t band = 0; band < weight_bands(count); ++band, packed += padded * kBandQuads) {
    const float inverse = steps[band] > 0 ? most / steps[band] : 0.0f;
    steps[band] /= most;
    Whole sum{};
    for (int64_t b = 0; b < kBandDigits; b += kWidth) {
      const int64_t j = band * kBandDigits + b, n = count - j;
      Whole number{};
      if (n > 0)
        number = __builtin_convertvector(fma(load_some(weights + j, n), all(inverse), dither), Whole);
      sum += number;
      for (int digit = 0; digit < digits; ++digit) {
        alignas(64) uint8_t bytes[kWidth];
        store_low_bytes(bytes, number >> (8 * (digits - 1 - digit)));
        const int64_t row = first + digit;
        int32_t* to = packed + (row / kTileRows * kBandQuads + b / 4) * kTileRows + row % kTileRows;
        for (int64_t q = 0; q < kWidth / 4; ++q) std::memcpy(to + q * kTileRows, bytes + 4 * q, 4);
      }
    }
    double numbers = 0;
    for (int lane = 0; lane < kWidth; ++lane) numbers += sum[lane];
    total += numbers * steps[band];
  }
  return total;
}

/// panel[quad of charges][coordinate]: byte − 128 of four charges a lane, kColumns coordinates from k on, in
/// the order of interleave_rows; zeros beyond the last.
inline void pack_charge_quads(const ChargeView& charges, int64_t count, int64_t j0, int64_t k,
                              int32_t* panel) {
  const uint8_t* data = static_cast<const uint8_t*>(charges.data) + k;
  const size_t used = static_cast<size_t>(charges.dim - k < kColumns ? charges.dim - k : kColumns);
  const Whole sign = all_whole(static_cast<int32_t>(0x80808080));
  for (int64_t q = 0; q < kBandQuads; ++q, panel += kColumns) {
    uint8_t copies[4][kColumns] = {};
    const uint8_t* rows[4];
    for (int b = 0; b < 4; ++b) {
      const int64_t j = j0 + 4 * q + b;
      rows[b] = data + j * charges.dim;
      __builtin_prefetch(rows[b] + kBandDigits * charges.dim);  // the next band's
      if (j < count && used == kColumns) continue;
      if (j < count) std::memcpy(copies[b], rows[b], used);
      rows[b] = copies[b];
    }
    Whole quads[4] = {};
    interleave_rows(rows, quads);
    for (int m = 0; m < 4; ++m) store_whole(panel + m * kWidth, quads[m] ^ sign);
  }
}

/// `sums` of one row += step · its digits' sums of a band, n of kColumns.
inline void add_band(const int32_t* band, int digits, float step, int64_t n, double* sums) {
  float values[kColumns];
  for (int m = 0; m < 4; ++m) {
    Vector total = __builtin_convertvector(load_whole(band + m * kWidth), Vector);
    for (int digit = 1; digit < digits; ++digit)
      total = fma(total, all(256.0f),
                  __builtin_convertvector(load_whole(band + digit * kColumns + m * kWidth), Vector));
    float lanes[kWidth];
    store(lanes, total * step);
    for (int i = 0; i < kWidth / 4; ++i) std::memcpy(values + 16 * i + 4 * m, lanes + 4 * i, 16);
  }
  for (int64_t k = 0; k < n; ++k) sums[k] += values[k];
}

/// int32 for `padded` digit rows.
int64_t weighted_sum_scratch(int64_t padded) {
  return (kBandQuads + padded) * kColumns + (padded / kTileRows + 3) / 4;
}

void weighted_sum_digits(const int32_t* packed, const WeightDigits* rows, int64_t count_rows, int64_t padded,
                         const ChargeView& charges, int64_t count, int64_t first, int64_t last, double* sums,
                         int32_t* scratch) {
  int32_t *panel = scratch, *found = panel + kBandQuads * kColumns;
  uint8_t* occupied = reinterpret_cast<uint8_t*>(found + padded * kColumns);  // tiles of rows with weights
  for (int64_t band = 0; band < weight_bands(count); ++band, packed += padded * kBandQuads) {
    std::memset(occupied, 0, static_cast<size_t>(padded / kTileRows));
    for (int64_t g = 0; g < count_rows; ++g)
      for (int digit = 0; digit < rows[g].digits; ++digit)
        occupied[(rows[g].first + digit) / kTileRows] |= rows[g].steps[band] > 0;
    for (int64_t k = first; k < last; k += kColumns) {
      pack_charge_quads(charges, count, band * kBandDigits, k, panel);
      for (int64_t tile = 0; tile < padded / kTileRows; ++tile)
        for (int64_t half = 0; occupied[tile] && half < 2; ++half)
          multiply_digits<2, kColumns, true>(packed + tile * kTileRows * kBandQuads,
                                             panel + half * 2 * kWidth, kBandQuads,
                                             found + tile * kTileRows * kColumns + half * 2 * kWidth);
      for (int64_t g = 0; g < count_rows; ++g)
        if (rows[g].steps[band] > 0)
          add_band(found + rows[g].first * kColumns, rows[g].digits, rows[g].steps[band],
                   last - k < kColumns ? last - k : kColumns, sums + g * charges.dim + k);
    }
  }
}
