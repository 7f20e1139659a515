// The second product, for the rows whose weights are spread: sums_gk = Σ_j w_gj y_jk.
//
// Tiling: kGroup rows × kStrip coordinates in registers (AVX-512: 8 × 48); 64 charges at a time stay in the
// second-level cache while all rows run over them. The sums of 64 are added up in double: tens of thousands
// of equal weights would lose a digit in float. Charges that weigh nothing for all rows of a tile are not
// even loaded. Cost: G M N multiply–adds at most.

// with 16 registers 6 × 2 sums: 4 × 3 leave none to decode a byte in
constexpr int kGroup = kWidth == 16 ? 8 : 6, kSumVectors = kWidth == 16 ? 3 : 2;
constexpr int64_t kBand = 64;
constexpr int kStrip = kSumVectors * kWidth;

/// The charges of a band that weigh something for one row of a group at least. Rows that the group lacks are
/// the first one again: their sums are left alone.
struct Picked {
  int64_t count;
  int32_t rows[kBand];
  const float* weights[kGroup];
};

inline void pick(const float* weights, int64_t group, int64_t stride, int64_t j0, int64_t j1,
                 Picked& picked) {
  for (int64_t g = 0; g < kGroup; ++g) picked.weights[g] = weights + (g < group ? g * stride : 0);
  picked.count = 0;
  for (int64_t j = j0; j < j1; j += kWidth) {
    const int64_t n = j1 - j < kWidth ? j1 - j : kWidth;
    Vector largest{};
    for (int64_t g = 0; g < kGroup; ++g) largest = greater(load_some(picked.weights[g] + j, n), largest);
    float lanes[kWidth];
    store(lanes, largest);
    for (int64_t lane = 0; lane < n; ++lane) {
      picked.rows[picked.count] = static_cast<int32_t>(j + lane);
      picked.count += lanes[lane] > 0;
    }
  }
}

/// kPart·kWidth coordinates from k on of the picked charges into the sums of a group of rows. `ahead`: the
/// next band's charges, which are asked for meanwhile, or 0.
template <int kPart, bool kBytes>
[[gnu::noinline]] void add_strip(const Picked& picked, const ChargeView& charges, int64_t group, int64_t k,
                                 int64_t ahead, double* sums) {
  constexpr int64_t kSize = kBytes ? 1 : 4;
  Vector sum[kGroup][kPart];
  const float* weights[kGroup];
  for (int g = 0; g < kGroup; ++g) {
    weights[g] = picked.weights[g];
    for (int v = 0; v < kPart; ++v) sum[g][v] = Vector{};
  }
  for (int64_t c = 0; c < picked.count; ++c) {
    const int64_t j = picked.rows[c];
    Vector y[kPart];
    const int64_t at = j * charges.dim + k;
    const char* soon = static_cast<const char*>(charges.data) + (at + ahead * charges.dim) * kSize;
    for (int64_t byte = 0; ahead > 0 && byte < kPart * kWidth * kSize; byte += 64)
      __builtin_prefetch(soon + byte);
    for (int v = 0; v < kPart; ++v)
      y[v] = kBytes ? from_bytes(static_cast<const uint8_t*>(charges.data) + at + v * kWidth) - 128.0f
                    : load(static_cast<const float*>(charges.data) + at + v * kWidth);
    for (int g = 0; g < kGroup; ++g)
      for (int v = 0; v < kPart; ++v) sum[g][v] = fma(all(weights[g][j]), y[v], sum[g][v]);
  }
  for (int64_t g = 0; g < group; ++g)
    for (int v = 0; v < kPart; ++v) {
      double* place = sums + g * charges.dim + k + v * kWidth;
      for (int lane = 0; lane < kWidth; ++lane) place[lane] += sum[g][v][lane];
    }
}

template <int kPart>
inline void add_strip(const Picked& picked, const ChargeView& charges, int64_t group, int64_t k,
                      int64_t ahead, double* sums) {
  if (charges.bytes) add_strip<kPart, true>(picked, charges, group, k, ahead, sums);
  else add_strip<kPart, false>(picked, charges, group, k, ahead, sums);
}

inline float raw_one(const ChargeView& charges, int64_t at) {
  return charges.bytes ? static_cast<float>(static_cast<const uint8_t*>(charges.data)[at]) - 128.0f
                       : static_cast<const float*>(charges.data)[at];
}

void weighted_sum(const float* weights, int64_t rows, int64_t stride, const ChargeView& charges,
                  int64_t count, int64_t first, int64_t last, double* sums) {
  Picked picked;
  for (int64_t j0 = 0; j0 < count; j0 += kBand) {
    const int64_t j1 = j0 + kBand < count ? j0 + kBand : count;
    for (int64_t g0 = 0; g0 < rows; g0 += kGroup) {
      const int64_t group = rows - g0 < kGroup ? rows - g0 : kGroup;
      pick(weights + g0 * stride, group, stride, j0, j1, picked);
      if (picked.count == 0) continue;
      const int64_t ahead = g0 == 0 && j1 + kBand <= count ? kBand : 0;
      double* to = sums + g0 * charges.dim;
      int64_t k = first;
      for (; k + kStrip <= last; k += kStrip) add_strip<kSumVectors>(picked, charges, group, k, ahead, to);
      for (; k + kWidth <= last; k += kWidth) add_strip<1>(picked, charges, group, k, ahead, to);
      for (; k < last; ++k)
        for (int64_t g = 0; g < group; ++g) {
          double total = to[g * charges.dim + k];
          for (int64_t c = 0; c < picked.count; ++c)
            total += picked.weights[g][picked.rows[c]] * raw_one(charges, picked.rows[c] * charges.dim + k);
          to[g * charges.dim + k] = total;
        }
    }
  }
}
