// The first product: u_ij = n_j − 2 x_i·y_j for all pairs.
//
// Tiling: kTileRows × (kVectors·kWidth) sums in registers (AVX-512: 8 × 48). For each tile of charges and
// block of kDepth coordinates the charges are transposed into a panel of the first-level cache, against which
// all rows of x run. Charges are read once from memory; x, packed once, comes from the second-level cache.
// Cost: B M N multiply–adds, M N loads and shuffles.

constexpr int kTileCharges = kVectors * kWidth;
constexpr int64_t kDepth = 128;

inline int64_t rows_padded(int64_t rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

/// kWidth coordinates from k on of charge j, as floats (bytes less 128, which is exact).
inline Vector charge_lanes(const ChargeView& charges, int64_t j, int64_t k, int64_t n) {
  if (!charges.bytes) {
    const float* p = static_cast<const float*>(charges.data) + j * charges.dim + k;
    return n >= kWidth ? load(p) : load_part(p, n, 0.0f);
  }
  const uint8_t* p = static_cast<const uint8_t*>(charges.data) + j * charges.dim + k;
  if (n >= kWidth) return from_bytes(p) - 128.0f;
  uint8_t lanes[kWidth];
  for (int i = 0; i < kWidth; ++i) lanes[i] = i < n ? p[i] : 128;
  return from_bytes(lanes) - 128.0f;
}

/// panel[k][charge] for depth coordinates from k0 on of the tile's charges; charges beyond the last are zero.
inline void pack_charges(const ChargeView& charges, int64_t count, int64_t tile, int64_t k0, int64_t depth,
                         float* panel) {
  for (int vector = 0; vector < kVectors; ++vector)
    for (int64_t k = 0; k < depth; k += kWidth) {
      Vector block[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        const int64_t j = tile + vector * kWidth + i;
        block[i] = j < count ? charge_lanes(charges, j, k0 + k, depth - k) : Vector{};
        if (j < count)  // the next block of coordinates comes while this one is multiplied
          __builtin_prefetch(static_cast<const char*>(charges.data) +
                             (j * charges.dim + k0 + k + kDepth) * (charges.bytes ? 1 : 4));
      }
      transpose(block);
      const int64_t used = depth - k < kWidth ? depth - k : kWidth;
      for (int64_t i = 0; i < used; ++i) store(panel + (k + i) * kTileCharges + vector * kWidth, block[i]);
    }
}

/// Panels [tile of rows][k][row], blocks of kDepth one after the other: x of a register tile is read in
/// order.
void pack_rows(const float* x, int64_t rows, int64_t dim, float* packed) {
  const int64_t padded = rows_padded(rows);
  for (int64_t k0 = 0; k0 < dim; k0 += kDepth) {
    const int64_t depth = dim - k0 < kDepth ? dim - k0 : kDepth;
    for (int64_t i0 = 0; i0 < padded; i0 += kTileRows)
      for (int64_t k = 0; k < depth; ++k)
        for (int i = 0; i < kTileRows; ++i) *packed++ = i0 + i < rows ? x[(i0 + i) * dim + k0 + k] : 0.0f;
  }
}

/// Where the sums of a register tile go: those of further blocks of coordinates are added up in `sums`, at
/// the last block u comes of them.
struct TileOutput {
  float* sums;
  bool begins, ends;
  int64_t rows;  // of u, that the tile has
  float* u;
  int64_t stride;
  float scale;
  const float* norms;
};

/// A register tile over one block of coordinates, from zero: short sums of short sums lose far less than one
/// long one. A function of its own: where it is inlined, GCC 12 keeps one of the sums in memory.
[[gnu::noinline]] void multiply_tile(const float* x, const float* panel, int64_t depth,
                                     const TileOutput& to) {
  Vector sum[kTileRows][kVectors];
  for (int i = 0; i < kTileRows; ++i)
    for (int v = 0; v < kVectors; ++v) sum[i][v] = Vector{};
  for (int64_t k = 0; k < depth; ++k, x += kTileRows, panel += kTileCharges) {
    Vector y[kVectors];
    for (int v = 0; v < kVectors; ++v) y[v] = load(panel + v * kWidth);
    for (int i = 0; i < kTileRows; ++i)
      for (int v = 0; v < kVectors; ++v) sum[i][v] = fma(all(x[i]), y[v], sum[i][v]);
  }
  if (!to.begins)
    for (int i = 0; i < kTileRows; ++i)
      for (int v = 0; v < kVectors; ++v) sum[i][v] += load(to.sums + i * kTileCharges + v * kWidth);
  const auto finish = [&](int i, int v, Vector total) {
    store(to.u + i * to.stride + v * kWidth, fma(all(-2.0f * to.scale), total, load(to.norms + v * kWidth)));
  };
  if (to.ends && to.rows >= kTileRows) {
    for (int i = 0; i < kTileRows; ++i)
      for (int v = 0; v < kVectors; ++v) finish(i, v, sum[i][v]);
    return;
  }
  for (int i = 0; i < kTileRows; ++i)
    for (int v = 0; v < kVectors; ++v) store(to.sums + i * kTileCharges + v * kWidth, sum[i][v]);
  for (int i = 0; to.ends && i < to.rows; ++i)
    for (int v = 0; v < kVectors; ++v) finish(i, v, load(to.sums + i * kTileCharges + v * kWidth));
}

int64_t gemm_scratch(int64_t rows) { return rows_padded(rows) * kTileCharges + kDepth * kTileCharges; }

void distance_gemm(const float* packed, int64_t rows, const ChargeView& charges, int64_t count, int64_t first,
                   int64_t last, float scale, const float* norms, float* u, int64_t stride, float* scratch) {
  const int64_t padded = rows_padded(rows);
  float* sums = scratch;
  float* panel = scratch + padded * kTileCharges;
  for (int64_t tile = first; tile < last; tile += kTileCharges) {
    const float* x = packed;
    for (int64_t k0 = 0; k0 < charges.dim; k0 += kDepth) {
      const int64_t depth = charges.dim - k0 < kDepth ? charges.dim - k0 : kDepth;
      const bool begins = k0 == 0, ends = k0 + depth == charges.dim;
      pack_charges(charges, count, tile, k0, depth, panel);
      for (int64_t i0 = 0; i0 < padded; i0 += kTileRows, x += kTileRows * depth)
        multiply_tile(x, panel, depth,
                      {sums + i0 * kTileCharges, begins, ends, rows - i0, u + i0 * stride + tile, stride,
                       scale, norms + tile});
    }
  }
}
