// Single charges: their values, distances, differences.

/// The values of kWidth bytes, b/divisor + offset as two roundings. With a fused multiply-add the quotient is
/// made by multiplication and one residual, which gives the correctly rounded one for whole numbers up to
/// 255; without, they are looked up.
inline Vector byte_values(const uint8_t* p, const ChargeView& charges) {
  if constexpr (!kFuses) {
    float lanes[kWidth];
    for (int i = 0; i < kWidth; ++i) lanes[i] = charges.values[p[i]];
    return load(lanes);
  }
  const Vector b = from_bytes(p), inverse = all(charges.inverse), divisor = all(charges.divisor);
  const Vector q = b * inverse;
  return fma(fma(-q, divisor, b), inverse, q) + charges.offset;
}

/// Decoded lanes of charge j from k on: real values, as the reference decodes them.
inline Vector value_lanes(const ChargeView& charges, int64_t j, int64_t k) {
  if (!charges.bytes) return load(static_cast<const float*>(charges.data) + j * charges.dim + k);
  return byte_values(static_cast<const uint8_t*>(charges.data) + j * charges.dim + k, charges);
}
inline float value_one(const ChargeView& charges, int64_t j, int64_t k) {
  if (!charges.bytes) return static_cast<const float*>(charges.data)[j * charges.dim + k];
  return charges.values[static_cast<const uint8_t*>(charges.data)[j * charges.dim + k]];
}

inline Double square_of_difference(const float* x, const ChargeView& charges, int64_t j, int64_t k) {
  const Double difference = __builtin_convertvector(value_lanes(charges, j, k), Double) -
                            __builtin_convertvector(load(x + k), Double);
  return difference * difference;
}

double distance(const float* x, const ChargeView& charges, int64_t j) {
  Double sum{}, second{};
  int64_t k = 0;
  for (; k + 2 * kWidth <= charges.dim; k += 2 * kWidth) {
    sum += square_of_difference(x, charges, j, k);
    second += square_of_difference(x, charges, j, k + kWidth);
  }
  if (k + kWidth <= charges.dim) {
    sum += square_of_difference(x, charges, j, k);
    k += kWidth;
  }
  sum += second;
  double total = 0;
  for (; k < charges.dim; ++k) {
    const double difference = static_cast<double>(value_one(charges, j, k)) - x[k];
    total += difference * difference;
  }
  for (int lane = 0; lane < kWidth; ++lane) total += sum[lane];
  return total;
}

void decode_row(const ChargeView& charges, int64_t j, float* out) {
  int64_t k = 0;
  for (; k + kWidth <= charges.dim; k += kWidth) store(out + k, value_lanes(charges, j, k));
  for (; k < charges.dim; ++k) out[k] = value_one(charges, j, k);
}

void add_difference(const ChargeView& charges, int64_t j, const float* anchor, float weight,
                    float pull_weight, float* shift, float* pull) {
  int64_t k = 0;
  for (; k + kWidth <= charges.dim; k += kWidth) {
    const Vector difference = value_lanes(charges, j, k) - load(anchor + k);
    store(shift + k, fma(all(weight), difference, load(shift + k)));
    if (pull) store(pull + k, fma(all(pull_weight), difference, load(pull + k)));
  }
  for (; k < charges.dim; ++k) {
    const float difference = value_one(charges, j, k) - anchor[k];
    shift[k] += weight * difference;
    if (pull) pull[k] += pull_weight * difference;
  }
}
