// A row of x as fixed point in signed digits of 8 bits: x = step · number + e. Cost: 2 N loads, about 20
// operations in double a number.

/// `out` (digits, dim), the highest digit first; lower digits run from −128 to 127.
DigitSplit split_digits(const float* x, int64_t dim, int digits, int8_t* out) {
  Vector most{};
  for (int64_t k = 0; k < dim; k += kWidth) {
    const Vector v = load_some(x + k, dim - k);
    most = greater(most, greater(v, -v));
  }
  float largest = 0;
  for (int lane = 0; lane < kWidth; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  const double range =
      digits == 1 ? kLargestDigit : 127.0 * 65536 - 32768;  // a carry into the first digit is at most 1
  const double step = largest / range, inverse = largest > 0 ? range / largest : 0;
  const double shifter = 6755399441055744.0;  // 1.5·2⁵²: adding it rounds to a whole number
  Double left{}, first_left{};
  Whole sum{};
  for (int64_t k = 0; k < dim; k += kWidth) {
    const int64_t n = dim - k < kWidth ? dim - k : kWidth;
    const Double v = __builtin_convertvector(load_some(x + k, n), Double);
    const Double q = (v * inverse + shifter) - shifter, e = v - q * step;
    left += e * e;
    Whole number = __builtin_convertvector(q, Whole);
    const auto put = [&](int digit, Whole value) {
      uint8_t bytes[kWidth];
      store_low_bytes(bytes, value);
      std::memcpy(out + digit * dim + k, bytes, static_cast<size_t>(n));
    };
    for (int digit = digits - 1; digit > 0; --digit) {
      const Whole low = ((number + 128) & 255) - 128;
      put(digit, low);
      number = (number - low) >> 8;
    }
    put(0, number);
    sum += number;
    const Double first_e = v - __builtin_convertvector(number, Double) * (digits == 1 ? step : 65536 * step);
    first_left += first_e * first_e;
  }
  DigitSplit split{step, 0, 0, 0};
  for (int lane = 0; lane < kWidth; ++lane)
    split.left += left[lane], split.first_left += first_left[lane], split.first_sum += sum[lane];
  split.left = __builtin_sqrt(split.left), split.first_left = __builtin_sqrt(split.first_left);
  return split;
}
