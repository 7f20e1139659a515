// The second product, for the rows whose weights are spread: sums_gk = Σ_j w_gj y_jk.
//
// Tiling: 8 rows × (kVectors·kWidth) coordinates in registers; 64 charges at a time stay in the second-level cache while all rows
// run over them. Charges that weigh nothing for all 8 rows of a tile are not even loaded. Cost: G M N multiply–adds at most.

constexpr int kGroup = kWidth == 16 ? 8 : 4;
constexpr int64_t kBand = 64;
constexpr int kStrip = kVectors * kWidth;

struct Picked {
  int64_t count;
  int32_t rows[kBand];
  float weights[kBand][kGroup];
};

inline void pick(const float* weights, int64_t group, int64_t stride, int64_t j0, int64_t j1, Picked& picked) {
  picked.count = 0;
  for (int64_t j = j0; j < j1; ++j) {
    float largest = 0;
    float* out = picked.weights[picked.count];
    for (int64_t g = 0; g < kGroup; ++g) {
      out[g] = g < group ? weights[g * stride + j] : 0.0f;
      largest = out[g] > largest ? out[g] : largest;
    }
    if (largest > 0) picked.rows[picked.count++] = static_cast<int32_t>(j);
  }
}

/// Coordinates [k, k + kStrip) of the picked charges into the sums of a group of rows.
inline void add_strip(const Picked& picked, const ChargeRows& charges, int64_t k, float* sums) {
  Vector sum[kGroup][kVectors];
  for (int g = 0; g < kGroup; ++g)
    for (int v = 0; v < kVectors; ++v) sum[g][v] = load(sums + g * kStrip + v * kWidth);
  for (int64_t c = 0; c < picked.count; ++c) {
    Vector y[kVectors];
    const int64_t at = picked.rows[c] * charges.dim + k;
    for (int v = 0; v < kVectors; ++v)
      y[v] = charges.bytes ? from_bytes(static_cast<const uint8_t*>(charges.data) + at + v * kWidth) - 128.0f
                           : load(static_cast<const float*>(charges.data) + at + v * kWidth);
    for (int g = 0; g < kGroup; ++g)
      for (int v = 0; v < kVectors; ++v) sum[g][v] = fma(all(picked.weights[c][g]), y[v], sum[g][v]);
  }
  for (int g = 0; g < kGroup; ++g)
    for (int v = 0; v < kVectors; ++v) store(sums + g * kStrip + v * kWidth, sum[g][v]);
}

inline float raw_one(const ChargeRows& charges, int64_t at) {
  return charges.bytes ? static_cast<float>(static_cast<const uint8_t*>(charges.data)[at]) - 128.0f
                       : static_cast<const float*>(charges.data)[at];
}

void spread(const float* weights, int64_t rows, int64_t stride, const ChargeRows& charges, int64_t count, int64_t first,
            int64_t last, float* sums) {
  Picked picked;
  float tile[kGroup * kStrip];
  for (int64_t j0 = 0; j0 < count; j0 += kBand) {
    const int64_t j1 = j0 + kBand < count ? j0 + kBand : count;
    for (int64_t g0 = 0; g0 < rows; g0 += kGroup) {
      const int64_t group = rows - g0 < kGroup ? rows - g0 : kGroup;
      pick(weights + g0 * stride, group, stride, j0, j1, picked);
      if (picked.count == 0) continue;
      int64_t k = first;
      for (; k + kStrip <= last; k += kStrip) {
        for (int64_t g = 0; g < group; ++g) std::memcpy(tile + g * kStrip, sums + (g0 + g) * charges.dim + k, sizeof(float) * kStrip);
        if (group < kGroup) std::memset(tile + group * kStrip, 0, sizeof(float) * (kGroup - group) * kStrip);
        add_strip(picked, charges, k, tile);
        for (int64_t g = 0; g < group; ++g) std::memcpy(sums + (g0 + g) * charges.dim + k, tile + g * kStrip, sizeof(float) * kStrip);
      }
      for (; k < last; ++k)
        for (int64_t g = 0; g < group; ++g) {
          float total = sums[(g0 + g) * charges.dim + k];
          for (int64_t c = 0; c < picked.count; ++c) total += picked.weights[c][g] * raw_one(charges, picked.rows[c] * charges.dim + k);
          sums[(g0 + g) * charges.dim + k] = total;
        }
    }
  }
}
