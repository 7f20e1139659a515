// Products of signed digits and bytes by AMX: tiles of 16 × 16 sums in int32, 64 coordinates an instruction,
// exact. Signed digits are packed as the unit takes its second operand, fours of coordinates side by side.
//
// Tiling: 2 × 2 tiles of sums, 32 charges × 32 rows. The bytes of 32 charges, kQuads fours deep, are copied
// into a panel of the first-level cache (rows of charges would share its sets where N is a multiple of 4096);
// sums wait in the second-level cache from panel to panel. Cost: B M N/16384 instructions of 16 cycles, M N
// bytes copied, B M/256 blocks of sums transposed on their way out.

constexpr int64_t kQuads = 256;  // depth of a panel, in fours of coordinates
constexpr int kDigitRows = 16, kDigitCharges = 32;
constexpr int64_t kTileQuads = 16, kTileNumbers = 256;  // of a tile: 16 rows of 64 bytes
constexpr int kTilePitch = 64;                          // bytes

/// All eight tiles as 16 rows of 64 bytes while this lives, in this thread.
struct DigitUnit {
  DigitUnit() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {kTilePitch, kTilePitch, kTilePitch, kTilePitch,
                                kTilePitch, kTilePitch, kTilePitch, kTilePitch};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    static_assert(sizeof configuration == 64);
    _tile_loadconfig(&configuration);
  }
  ~DigitUnit() { _tile_release(); }
  DigitUnit(const DigitUnit&) = delete;
  DigitUnit& operator=(const DigitUnit&) = delete;
};

inline int64_t digit_groups(int64_t rows) { return (rows + kDigitRows - 1) / kDigitRows; }
inline int64_t digit_steps(int64_t dim) { return (dim + 4 * kTileQuads - 1) / (4 * kTileQuads); }

int64_t packed_digits(int64_t rows, int64_t dim) {
  return digit_groups(rows) * digit_steps(dim) * kTileNumbers;
}
int64_t digit_scratch(int64_t rows, int64_t) {
  return digit_groups(rows) * 2 * kTileNumbers + kQuads * kDigitCharges;
}

/// packed[step of 64 coordinates][group of 16 rows][four of coordinates][row]
void pack_digits(const int8_t* const* x, int64_t rows, int64_t dim, int32_t* packed) {
  for (int64_t step = 0; step < digit_steps(dim); ++step)
    for (int64_t group = 0; group < digit_groups(rows); ++group, packed += kTileNumbers) {
      Vector block[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        const int64_t row = group * kDigitRows + i, k = step * 4 * kTileQuads;
        int8_t lanes[4 * kWidth] = {};
        const int64_t left = dim - k < 4 * kWidth ? dim - k : 4 * kWidth;
        if (row < rows) std::memcpy(lanes, x[row] + k, static_cast<size_t>(left));
        block[i] = *reinterpret_cast<const Unaligned*>(lanes);
      }
      transpose(block);
      for (int q = 0; q < kWidth; ++q) store(reinterpret_cast<float*>(packed) + q * kWidth, block[q]);
    }
}

/// 32 charges (panel [step][charge][64 bytes]) times 32 rows, added to `sums` (2 groups, 2 tiles of charges)
/// or, `fresh`, from zero. Steps of x lie `pitch` apart.
inline void multiply_pair(const int32_t* x, int64_t pitch, const uint8_t* panel, int64_t steps, bool fresh,
                          int32_t* sums, Ahead& ahead, int64_t lines) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kTilePitch);
    _tile_loadd(1, sums + kTileNumbers, kTilePitch);
    _tile_loadd(2, sums + 2 * kTileNumbers, kTilePitch);
    _tile_loadd(3, sums + 3 * kTileNumbers, kTilePitch);
  }
  for (int64_t step = 0; step < steps; ++step, x += pitch, panel += 8 * kTileNumbers) {
    ahead.fetch(lines);
    _tile_loadd(4, panel, kTilePitch);
    _tile_loadd(6, x, kTilePitch);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(5, panel + 4 * kTileNumbers, kTilePitch);
    _tile_dpbusd(1, 5, 6);
    _tile_loadd(7, x + kTileNumbers, kTilePitch);
    _tile_dpbusd(2, 4, 7);
    _tile_dpbusd(3, 5, 7);
  }
  _tile_stored(0, sums, kTilePitch);
  _tile_stored(1, sums + kTileNumbers, kTilePitch);
  _tile_stored(2, sums + 2 * kTileNumbers, kTilePitch);
  _tile_stored(3, sums + 3 * kTileNumbers, kTilePitch);
}

/// The same for a last group of 16 rows.
inline void multiply_one(const int32_t* x, int64_t pitch, const uint8_t* panel, int64_t steps, bool fresh,
                         int32_t* sums, Ahead& ahead, int64_t lines) {
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
  } else {
    _tile_loadd(0, sums, kTilePitch);
    _tile_loadd(1, sums + kTileNumbers, kTilePitch);
  }
  for (int64_t step = 0; step < steps; ++step, x += pitch, panel += 8 * kTileNumbers) {
    ahead.fetch(lines);
    _tile_loadd(6, x, kTilePitch);
    _tile_loadd(4, panel, kTilePitch);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(5, panel + 4 * kTileNumbers, kTilePitch);
    _tile_dpbusd(1, 5, 6);
  }
  _tile_stored(0, sums, kTilePitch);
  _tile_stored(1, sums + kTileNumbers, kTilePitch);
}

/// One tile of charges against all rows; `quads(charge of the tile, quad)` are its bytes.
template <class Quads>
inline void multiply_tile_digits(const int32_t* packed, int64_t rows, int64_t dim, int64_t tile, int32_t* out,
                                 int64_t stride, int32_t* scratch, Quads quads, Ahead ahead) {
  const int64_t lines = ahead.share((digit_groups(rows) + 1) / 2 * digit_steps(dim));
  const int64_t groups = digit_groups(rows), total = digit_steps(dim), pitch = groups * kTileNumbers;
  int32_t* sums = scratch;
  float* panel = reinterpret_cast<float*>(scratch + groups * 2 * kTileNumbers);
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(panel);
  for (int64_t step = 0; step < total; step += kQuads / kTileQuads) {
    const int64_t depth = total - step < kQuads / kTileQuads ? total - step : kQuads / kTileQuads;
    for (int charge = 0; charge < kDigitCharges; ++charge)
      for (int64_t s = 0; s < depth; ++s)
        store(panel + (s * kDigitCharges + charge) * kWidth, quads(charge, (step + s) * kTileQuads));
    const int32_t* x = packed + step * pitch;
    int64_t group = 0;
    for (; group + 2 <= groups; group += 2)
      multiply_pair(x + group * kTileNumbers, pitch, bytes, depth, step == 0, sums + group * 2 * kTileNumbers,
                    ahead, lines);
    if (group < groups)
      multiply_one(x + group * kTileNumbers, pitch, bytes, depth, step == 0, sums + group * 2 * kTileNumbers,
                   ahead, lines);
  }
  for (int64_t group = 0; group < groups; ++group)
    for (int half = 0; half < 2; ++half) {
      Vector block[kWidth];
      for (int i = 0; i < kWidth; ++i)
        block[i] =
            load(reinterpret_cast<const float*>(sums) + (2 * group + half) * kTileNumbers + i * kWidth);
      transpose(block);
      const int64_t left = rows - group * kDigitRows;
      for (int i = 0; i < kWidth && i < left; ++i)
        store(reinterpret_cast<float*>(out + (group * kDigitRows + i) * stride + tile + half * kWidth),
              block[i]);
    }
}

/// Where four charges' weights of a digit row lie in a band of `quads` fours: [tile][64 charges][row][four].
inline int64_t weight_place(int64_t row, int64_t quad, int64_t quads) {
  return (row / kDigitRows * quads + quad / kTileQuads * kTileQuads) * kDigitRows +
         row % kDigitRows * kTileQuads + quad % kTileQuads;
}

/// A tile of digit rows (as weight_place has them) times a panel [quad][64] of signed bytes, into `found`
/// (kDigitRows, 64).
inline void multiply_weights(const int32_t* packed, const int32_t* panel, int64_t quads, int32_t* found) {
  constexpr int kPitch = 4 * kTilePitch;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t q = 0; q < quads; q += kTileQuads, packed += kTileNumbers, panel += 4 * kTileNumbers) {
    _tile_loadd(4, packed, kTilePitch);
    _tile_loadd(5, panel, kPitch);
    _tile_dpbusd(0, 4, 5);
    _tile_loadd(6, panel + 16, kPitch);
    _tile_dpbusd(1, 4, 6);
    _tile_loadd(7, panel + 32, kPitch);
    _tile_dpbusd(2, 4, 7);
    _tile_loadd(5, panel + 48, kPitch);
    _tile_dpbusd(3, 4, 5);
  }
  _tile_stored(0, found, kPitch);
  _tile_stored(1, found + 16, kPitch);
  _tile_stored(2, found + 32, kPitch);
  _tile_stored(3, found + 48, kPitch);
}
