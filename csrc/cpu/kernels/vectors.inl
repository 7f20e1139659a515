// Vectors of kWidth floats: loads, sums, exp, 2^y and log1p. The functions are good to 2 units in the last
// place of their result.

typedef double Double __attribute__((vector_size(8 * kWidth)));
typedef Vector Unaligned __attribute__((aligned(4), may_alias));
typedef Whole UnalignedWhole __attribute__((aligned(4), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
inline Whole load_whole(const int32_t* p) { return *reinterpret_cast<const UnalignedWhole*>(p); }
inline void store_whole(int32_t* p, Whole v) { *reinterpret_cast<UnalignedWhole*>(p) = v; }
/// value − 0 is value for −0 too, so this is one broadcast; 0 + value would be an addition before it.
inline Vector all(float value) { return value - Vector{}; }
inline Whole all_whole(int32_t value) { return Whole{} + value; }
inline Vector lesser(Vector a, Vector b) { return a < b ? a : b; }
inline Vector greater(Vector a, Vector b) { return a > b ? a : b; }

/// The first n of kWidth floats; the others are `fill`.
inline Vector load_part(const float* p, int64_t n, float fill) {
  float lanes[kWidth];
  for (int i = 0; i < kWidth; ++i) lanes[i] = i < n ? p[i] : fill;
  return load(lanes);
}
inline Vector load_some(const float* p, int64_t n) { return n >= kWidth ? load(p) : load_part(p, n, 0.0f); }
inline void store_part(float* p, int64_t n, Vector v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}
inline double sum_double(Vector v) {
  float lanes[kWidth];
  store(lanes, v);
  double total = 0;
  for (int i = 0; i < kWidth; ++i) total += lanes[i];
  return total;
}

/// exp(x) for x ≤ 88; 0 below −87. x = n ln 2 + r, |r| ≤ ½ ln 2, a polynomial of degree 6 in r.
inline Vector exponential(Vector x) {
  x = lesser(x, all(88.0f));
  const Vector shifter = all(12582912.0f);  // 1.5·2²³: adding it rounds to a whole number
  const Vector rounded = fma(x, all(1.44269504f), shifter) - shifter;
  Vector r = fma(rounded, all(-0.693359375f), x);
  r = fma(rounded, all(2.12194440e-4f), r);
  Vector p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
  const Vector safe = greater(rounded, all(-126.0f));
  const Whole power = (__builtin_convertvector(safe, Whole) + 127) << 23;
  return x < -87.0f ? Vector{} : p * (Vector)power;
}

/// 2^y for y < 127, 0 far below −126: y = n + f with n whole and |f| ≤ ½, a polynomial of degree 6 in f.
inline Vector power_of_two(Vector y) {
  const Vector shifter = all(12582912.0f);  // 1.5·2²³: adding it rounds to a whole number
  const Vector n = (y + shifter) - shifter, f = y - n;
  Vector p = all(1.534581187e-4f);
  p = fma(p, f, all(1.339993122e-3f));
  p = fma(p, f, all(9.618488958e-3f));
  p = fma(p, f, all(5.550328777e-2f));
  p = fma(p, f, all(2.402264689e-1f));
  p = fma(p, f, all(6.931472057e-1f));
  return scaled(fma(p, f, all(1.0f)), n);
}

/// log(1 + t) for t > −1: w = 1 + t = 2^e m, m in [√½, √2). What rounding took from w is given back, to first
/// order and where it can be seen (w < 2); 1/w is near enough 1 − (w − 1) for that.
inline Vector log1p(Vector t) {
  const Vector w = t + 1.0f;
  const Vector above = w - 1.0f;
  const Vector lost = w < 2.0f ? (t - above) * (1.0f - lesser(above, all(0.5f))) : Vector{};
  const Whole bits = (Whole)w;
  const Whole exponent = (bits - 0x3f3504f3) >> 23;
  const Vector m = (Vector)(bits - (exponent << 23));
  const Vector f = m - 1.0f;
  const Vector e = __builtin_convertvector(exponent, Vector);
  const Vector z = f * f;
  Vector p = all(7.0376836292e-2f);
  p = fma(p, f, all(-1.1514610310e-1f));
  p = fma(p, f, all(1.1676998740e-1f));
  p = fma(p, f, all(-1.2420140846e-1f));
  p = fma(p, f, all(1.4249322787e-1f));
  p = fma(p, f, all(-1.6668057665e-1f));
  p = fma(p, f, all(2.0000714765e-1f));
  p = fma(p, f, all(-2.4999993993e-1f));
  p = fma(p, f, all(3.3333331174e-1f));
  Vector y = p * f * z;
  y = fma(e, all(-2.12194440e-4f), y);
  y = fma(z, all(-0.5f), y);
  y = y + f;
  y = fma(e, all(0.693359375f), y);
  return y + lost;
}
