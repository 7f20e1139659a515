// The second product for bytes, on processors that multiply them: weights as whole numbers of two or three
// unsigned bytes against byte − 128, sums of a band in int32, exact.
//
// Tiling: that of digit_tile.inl or digit_tile_amx.inl, with charges for coordinates: four charges a lane and
// panels of kBandDigits charges × kColumns, packed for all columns at once: charges are read in order. Each
// row has a step of its own in each band: a heavy charge costs the precision of its band alone. Numbers are
// rounded up or down by where they stand in the band, so that what rounding takes adds up to nothing. Cost: R
// M N/4 lane operations for R digit rows, M N/4 lanes packed.

constexpr int64_t kBandDigits = 256;
constexpr int64_t kBandQuads = kBandDigits / 4;
constexpr int64_t kColumns = 4 * kWidth, kPanel = kBandQuads * kColumns;
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
        for (int64_t q = 0; q < kWidth / 4; ++q)
          std::memcpy(packed + weight_place(row, b / 4 + q, kBandQuads), bytes + 4 * q, 4);
      }
    }
    double numbers = 0;
    for (int lane = 0; lane < kWidth; ++lane) numbers += sum[lane];
    total += numbers * steps[band];
  }
  return total;
}

/// panels[kColumns coordinates][quad of charges][coordinate] for [first, last): byte − 128 of four charges a
/// lane, in the order of interleave_rows; zeros beyond the last.
inline void pack_band(const ChargeView& charges, int64_t count, int64_t j0, int64_t first, int64_t last,
                      int32_t* panels) {
  const uint8_t* data = static_cast<const uint8_t*>(charges.data);
  const Whole sign = all_whole(static_cast<int32_t>(0x80808080));
  for (int64_t q = 0; q < kBandQuads; ++q, panels += kColumns) {
    const int64_t j = j0 + 4 * q;
    int32_t* panel = panels;
    for (int64_t k = first; k < last; k += kColumns, panel += kPanel) {
      const size_t used = static_cast<size_t>(last - k < kColumns ? last - k : kColumns);
      uint8_t copies[4][kColumns];
      const uint8_t* rows[4];
      for (int b = 0; b < 4; ++b) {
        rows[b] = data + (j + b) * charges.dim + k;
        if (j + b < count && used == kColumns) continue;
        std::memset(copies[b], 0, kColumns);
        if (j + b < count) std::memcpy(copies[b], rows[b], used);
        rows[b] = copies[b];
      }
      Whole quads[4] = {};
      interleave_rows(rows, quads);
      for (int m = 0; m < 4; ++m) store_whole(panel + m * kWidth, quads[m] ^ sign);
    }
  }
}

/// A row's sums of a band, part m of four of kColumns: step · its digits, the highest first.
inline Vector band_part(const int32_t* band, int digits, float step, int m) {
  Vector total = __builtin_convertvector(load_whole(band + m * kWidth), Vector);
  for (int digit = 1; digit < digits; ++digit)
    total = fma(total, all(256.0f),
                __builtin_convertvector(load_whole(band + digit * kColumns + m * kWidth), Vector));
  return total * step;
}

/// Where the sum in `lane` of part m belongs among kColumns (interleave_rows).
inline int column_of(int m, int lane) { return 16 * (lane / 4) + 4 * m + lane % 4; }

/// kColumns `sums` of one row, in the order of the parts, += those of a band.
inline void add_band(const int32_t* band, int digits, float step, double* sums) {
  typedef float Half __attribute__((vector_size(2 * kWidth), aligned(4), may_alias));
  typedef double HalfSums __attribute__((vector_size(4 * kWidth), aligned(8), may_alias));
  for (int m = 0; m < 4; ++m) {
    float lanes[kWidth];
    store(lanes, band_part(band, digits, step, m));
    for (int lane = 0; lane < kWidth; lane += kWidth / 2, sums += kWidth / 2)
      *reinterpret_cast<HalfSums*>(sums) +=
          __builtin_convertvector(*reinterpret_cast<const Half*>(lanes + lane), HalfSums);
  }
}

/// The same for the first n of kColumns, in their own order.
inline void add_band_part(const int32_t* band, int digits, float step, int64_t n, double* sums) {
  for (int m = 0; m < 4; ++m) {
    float lanes[kWidth];
    store(lanes, band_part(band, digits, step, m));
    for (int lane = 0; lane < kWidth; ++lane)
      if (column_of(m, lane) < n) sums[column_of(m, lane)] += lanes[lane];
  }
}

/// kColumns sums from the order of the parts into their own.
inline void order_columns(double* sums) {
  double parts[kColumns];
  std::memcpy(parts, sums, sizeof parts);
  for (int m = 0; m < 4; ++m)
    for (int lane = 0; lane < kWidth; ++lane) sums[column_of(m, lane)] = parts[m * kWidth + lane];
}

/// int32 for `padded` digit rows and so many columns.
int64_t weighted_sum_scratch(int64_t padded, int64_t columns) {
  return (columns + kColumns - 1) / kColumns * kPanel + padded * kColumns + (padded / kDigitRows + 3) / 4;
}

void weighted_sum_digits(const int32_t* packed, const WeightDigits* rows, int64_t count_rows, int64_t padded,
                         const ChargeView& charges, int64_t count, int64_t first, int64_t last, double* sums,
                         int32_t* scratch) {
  [[maybe_unused]] const DigitUnit unit;
  int32_t* found = scratch + (last - first + kColumns - 1) / kColumns * kPanel;
  uint8_t* occupied = reinterpret_cast<uint8_t*>(found + padded * kColumns);  // tiles of rows with weights
  for (int64_t band = 0; band < weight_bands(count); ++band, packed += padded * kBandQuads) {
    std::memset(occupied, 0, static_cast<size_t>(padded / kDigitRows));
    for (int64_t g = 0; g < count_rows; ++g)
      for (int digit = 0; digit < rows[g].digits; ++digit)
        occupied[(rows[g].first + digit) / kDigitRows] |= rows[g].steps[band] > 0;
    pack_band(charges, count, band * kBandDigits, first, last, scratch);
    const int32_t* panel = scratch;
    for (int64_t k = first; k < last; k += kColumns, panel += kPanel) {
      for (int64_t tile = 0; tile < padded / kDigitRows; ++tile)
        if (occupied[tile])
          multiply_weights(packed + tile * kDigitRows * kBandQuads, panel, kBandQuads,
                           found + tile * kDigitRows * kColumns);
      for (int64_t g = 0; g < count_rows; ++g)
        if (rows[g].steps[band] > 0) {
          const int32_t* of_row = found + rows[g].first * kColumns;
          double* to = sums + g * charges.dim + k;
          if (last - k >= kColumns) add_band(of_row, rows[g].digits, rows[g].steps[band], to);
          else add_band_part(of_row, rows[g].digits, rows[g].steps[band], last - k, to);
        }
    }
  }
  for (int64_t g = 0; g < count_rows; ++g)
    for (int64_t k = first; k + kColumns <= last; k += kColumns) order_columns(sums + g * charges.dim + k);
}

/// The table's entries that digit tiles serve.
void add_digit_kernels(Kernels& table) {
  table.largest_digit = kLargestDigit;
  table.packed_digits = packed_digits;
  table.pack_digits = pack_digits;
  table.digit_scratch = digit_scratch;
  table.distance_gemm_digits = distance_gemm_digits;
  table.distance_gemm_rounded = distance_gemm_rounded;
  table.scale_digit = scale_digit;
  table.scale_rounded = scale_rounded;
  table.join_digits = join_digits;
  table.band_charges = kBandDigits;
  table.weight_bands = weight_bands;
  table.largest_weights = largest_weights;
  table.pack_weights = pack_weights;
  table.weighted_sum_digits = weighted_sum_digits;
  table.weighted_sum_scratch = weighted_sum_scratch;
}
