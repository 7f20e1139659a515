// The product for few rows: bound by reading the charges, so they are read once, in order, and x comes from
// the first-level cache.
//
// Tiling: kFewGroup rows × 3 charges of sums in registers, lanes along the coordinates; blocks of kFewDepth
// coordinates, in which all rows meet the three charges while these are in the first-level cache. Cost: B M N
// multiply–adds, M N loads.

constexpr int kFewGroup = kWidth == 16 ? 8 : 4, kFewCharges = kWidth == 16 ? 3 : 2;
constexpr int64_t kFewDepth = 1024, kMostFew = 24;

/// sums += x·y over coordinates [k0, k1) of kFewGroup rows (those beyond `rows` repeat the last).
inline void multiply_few(const float* x, int64_t rows, const ChargeView& charges, const int64_t* of,
                         int64_t k0, int64_t k1, Vector* sums) {
  Vector sum[kFewGroup][kFewCharges];
  const float* row[kFewGroup];
  for (int i = 0; i < kFewGroup; ++i) {
    row[i] = x + (i < rows ? i : rows - 1) * charges.dim;
    for (int c = 0; c < kFewCharges; ++c) sum[i][c] = Vector{};
  }
  int64_t k = k0;
  for (; k + kWidth <= k1; k += kWidth) {
    Vector y[kFewCharges];
    for (int c = 0; c < kFewCharges; ++c) y[c] = charge_lanes(charges, of[c], k, kWidth);
    for (int i = 0; i < kFewGroup; ++i) {
      const Vector v = load(row[i] + k);
      for (int c = 0; c < kFewCharges; ++c) sum[i][c] = fma(v, y[c], sum[i][c]);
    }
  }
  if (k < k1)
    for (int i = 0; i < kFewGroup; ++i) {
      const Vector v = load_part(row[i] + k, k1 - k, 0.0f);
      for (int c = 0; c < kFewCharges; ++c)
        sum[i][c] = fma(v, charge_lanes(charges, of[c], k, k1 - k), sum[i][c]);
    }
  for (int i = 0; i < kFewGroup; ++i)
    for (int c = 0; c < kFewCharges; ++c) sums[i * kFewCharges + c] += sum[i][c];
}

void distance_gemm_few(const float* x, int64_t rows, const ChargeView& charges, int64_t count, int64_t first,
                       int64_t last, float scale, const float* norms, float* u, int64_t stride) {
  Vector sums[kMostFew * kFewCharges];
  const int64_t end = last < count ? last : count;
  for (int64_t j0 = first; j0 < end; j0 += kFewCharges) {
    int64_t of[kFewCharges];
    for (int c = 0; c < kFewCharges; ++c) of[c] = j0 + c < end ? j0 + c : end - 1;
    for (Vector& sum : sums) sum = Vector{};
    for (int64_t k0 = 0; k0 < charges.dim; k0 += kFewDepth) {
      const int64_t k1 = k0 + kFewDepth < charges.dim ? k0 + kFewDepth : charges.dim;
      for (int64_t i0 = 0; i0 < rows; i0 += kFewGroup)
        multiply_few(x + i0 * charges.dim, rows - i0, charges, of, k0, k1, sums + i0 * kFewCharges);
    }
    for (int64_t i = 0; i < rows; ++i)
      for (int c = 0; c < kFewCharges; ++c)
        u[i * stride + of[c]] =
            norms[of[c]] - 2.0f * scale * static_cast<float>(sum_double(sums[i * kFewCharges + c]));
  }
}
