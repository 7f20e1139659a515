// Group norm with what follows it, for some channels of one image: the sums over pixels of forward and
// backward, and the two maps. With x̂ = (x + shift) rstd, z = gain x̂ + bias, everything of a channel's own:
// out = z, or z sigmoid(z). Channels lie in lanes where they are innermost, else pixels do. Bound by memory:
// forward reads x twice and writes once, backward reads x and its gradient twice; about 30 operations an
// element, 20 of them the sigmoid's. Sums are kept in float for kFlush pixels a lane, then in double.

constexpr int64_t kFlush = 256;
typedef uint16_t Half __attribute__((vector_size(2 * kWidth)));
typedef Half UnalignedHalf __attribute__((aligned(2), may_alias));

// Elements in memory: float, or bfloat16, which is the upper half of a float.
inline Vector read(const float* p) { return load(p); }
inline Vector read(const uint16_t* p) {
  return (Vector)(__builtin_convertvector(*reinterpret_cast<const UnalignedHalf*>(p), Whole) << 16);
}
inline void write(float* p, Vector v) { store(p, v); }
/// To the nearest, ties to even; NaN stays NaN.
inline void write(uint16_t* p, Vector v) {
  const Whole bits = (Whole)v;
  const Whole rounded = ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) & 0xffff;
  *reinterpret_cast<UnalignedHalf*>(p) = __builtin_convertvector(v == v ? rounded : all_whole(0x7fc0), Half);
}
inline float number(float v) { return v; }
inline float number(uint16_t v) {
  const uint32_t bits = static_cast<uint32_t>(v) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

/// kWidth elements from p, of which the first n are there (others: `fill`) and are written.
template <class T>
inline Vector read_some(const T* p, int64_t n, float fill) {
  if (n >= kWidth) return read(p);
  float lanes[kWidth];
  for (int64_t i = 0; i < kWidth; ++i) lanes[i] = i < n ? number(p[i]) : fill;
  return load(lanes);
}
template <class T>
inline void write_some(T* p, int64_t n, Vector v) {
  if (n >= kWidth) return write(p, v);
  T lanes[kWidth];
  write(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

inline Vector sigmoid(Vector z) { return 1.0f / (1.0f + exponential(-z)); }

/// What a map needs of the channels in a vector's lanes, or of one channel in all lanes.
struct Channel {
  Vector shift, rstd, gain, bias, first, second;
};
inline Channel channels_at(const NormChannels& of, int64_t c, int64_t n) {
  const auto part = [&](const float* p) { return p == nullptr ? Vector{} : read_some(p + c, n, 0.0f); };
  return {part(of.shift), part(of.rstd), part(of.gain), part(of.bias), part(of.first), part(of.second)};
}
inline Channel channel_at(const NormChannels& of, int64_t c) {
  const auto same = [&](const float* p) { return p == nullptr ? Vector{} : all(p[c]); };
  return {same(of.shift), same(of.rstd), same(of.gain), same(of.bias), same(of.first), same(of.second)};
}

/// dz of the gradient dy, at x̂.
template <bool kSilu>
inline Vector before(Vector dy, Vector normed, const Channel& of) {
  if (!kSilu) return dy;
  const Vector z = fma(normed, of.gain, of.bias), s = sigmoid(z);
  return dy * s * fma(z, 1.0f - s, all(1.0f));
}

// ---- sums over pixels: kSums of them a channel

/// Σ (x − x_0) and its squares, x_0 the channel's first pixel, which is `shift` negated.
template <class T>
struct Moments {
  static constexpr int kSums = 2;
  const T* x;
  void add(int64_t at, int64_t n, const Channel& of, Vector* sums) const {
    const Vector v = read_some(x + at, n, 0.0f) + of.shift;
    const Vector inside = n >= kWidth ? v : masked(v, n);
    sums[0] += inside;
    sums[1] = fma(inside, inside, sums[1]);
  }
  static Vector masked(Vector v, int64_t n) {
    float lanes[kWidth];
    store(lanes, v);
    return load_part(lanes, n, 0.0f);
  }
};

/// Σ dz, Σ dz x̂, Σ x̂.
template <class T, bool kSilu>
struct Gradients {
  static constexpr int kSums = 3;
  const T *x, *dy;
  void add(int64_t at, int64_t n, const Channel& of, Vector* sums) const {
    Vector normed = (read_some(x + at, n, 0.0f) + of.shift) * of.rstd;
    if (n < kWidth) normed = Moments<T>::masked(normed, n);
    const Vector dz = before<kSilu>(read_some(dy + at, n, 0.0f), normed, of);
    sums[0] += dz;
    sums[1] = fma(dz, normed, sums[1]);
    sums[2] += normed;
  }
};

/// totals (kSums, channels).
template <class Term>
void sum_pixels(const NormView& view, const NormChannels& of, const Term& term, double* totals) {
  constexpr int kSums = Term::kSums;
  const int64_t channels = view.channels, pixels = view.pixels, stride = view.stride;
  for (int64_t k = 0; k < kSums * channels; ++k) totals[k] = 0;
  if (view.channels_last) {
    constexpr int kSide = 2;  // vectors of channels side by side: their lines of memory are the same
    for (int64_t c = 0; c < channels; c += kSide * kWidth) {
      Channel here[kSide];
      for (int side = 0; side < kSide; ++side)
        here[side] = channels_at(of, c + side * kWidth, channels - c - side * kWidth);
      for (int64_t start = 0; start < pixels; start += kFlush) {
        const int64_t stop = start + kFlush < pixels ? start + kFlush : pixels;
        Vector sums[kSide][kSums] = {};
        for (int64_t pixel = start; pixel < stop; ++pixel)
          for (int side = 0; side < kSide; ++side)
            if (channels - c - side * kWidth > 0)
              term.add(pixel * stride + c + side * kWidth, channels - c - side * kWidth, here[side],
                       sums[side]);
        for (int side = 0; side < kSide; ++side)
          for (int k = 0; k < kSums; ++k) {
            float lanes[kWidth];
            store(lanes, sums[side][k]);
            for (int64_t i = 0; i < kWidth && c + side * kWidth + i < channels; ++i)
              totals[k * channels + c + side * kWidth + i] += lanes[i];
          }
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const Channel here = channel_at(of, c);
    for (int64_t start = 0; start < pixels; start += kFlush * kWidth) {
      const int64_t stop = start + kFlush * kWidth < pixels ? start + kFlush * kWidth : pixels;
      Vector sums[kSums] = {};
      for (int64_t pixel = start; pixel < stop; pixel += kWidth)
        term.add(c * stride + pixel, stop - pixel, here, sums);
      for (int k = 0; k < kSums; ++k) totals[k * channels + c] += sum_double(sums[k]);
    }
  }
}

// ---- maps of elements

template <class T, bool kSilu>
struct Forward {
  const T* x;
  T* out;
  void run(int64_t at, int64_t n, const Channel& of) const {
    const Vector normed = (read_some(x + at, n, 0.0f) + of.shift) * of.rstd;
    const Vector z = fma(normed, of.gain, of.bias);
    write_some(out + at, n, kSilu ? z / (1.0f + exponential(-z)) : z);
  }
};

/// dx = rstd gain dz − (first + second x̂).
template <class T, bool kSilu>
struct Backward {
  const T *x, *dy;
  T* out;
  void run(int64_t at, int64_t n, const Channel& of) const {
    const Vector normed = (read_some(x + at, n, 0.0f) + of.shift) * of.rstd;
    const Vector dz = before<kSilu>(read_some(dy + at, n, 0.0f), normed, of);
    write_some(out + at, n, of.rstd * of.gain * dz - fma(of.second, normed, of.first));
  }
};

template <class Map>
void over_pixels(const NormView& view, const NormChannels& of, const Map& map) {
  if (view.channels_last) {
    for (int64_t c = 0; c < view.channels; c += kWidth) {
      const int64_t n = view.channels - c;
      const Channel here = channels_at(of, c, n);
      if (n >= kWidth)
        for (int64_t pixel = 0; pixel < view.pixels; ++pixel) map.run(pixel * view.stride + c, kWidth, here);
      else
        for (int64_t pixel = 0; pixel < view.pixels; ++pixel) map.run(pixel * view.stride + c, n, here);
    }
    return;
  }
  for (int64_t c = 0; c < view.channels; ++c) {
    const Channel here = channel_at(of, c);
    for (int64_t pixel = 0; pixel < view.pixels; pixel += kWidth)
      map.run(c * view.stride + pixel, view.pixels - pixel, here);
  }
}

template <class T>
void norm_moments_of(const NormView& view, const void* x, float* first, double* totals) {
  const T* from = static_cast<const T*>(x);
  for (int64_t c = 0; c < view.channels; ++c)
    first[c] = -number(from[view.channels_last ? c : c * view.stride]);
  const NormChannels of{first, nullptr, nullptr, nullptr, nullptr, nullptr};
  sum_pixels(view, of, Moments<T>{from}, totals);
}
void norm_moments(const NormView& view, const void* x, float* first, double* totals) {
  (view.bfloat ? norm_moments_of<uint16_t> : norm_moments_of<float>)(view, x, first, totals);
}

template <class T>
void norm_forward_of(const NormView& view, const NormChannels& of, const void* x, void* out) {
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(out);
  if (view.silu) over_pixels(view, of, Forward<T, true>{from, to});
  else over_pixels(view, of, Forward<T, false>{from, to});
}
void norm_forward(const NormView& view, const NormChannels& of, const void* x, void* out) {
  (view.bfloat ? norm_forward_of<uint16_t> : norm_forward_of<float>)(view, of, x, out);
}

template <class T>
void norm_gradients_of(const NormView& view, const NormChannels& of, const void* x, const void* dy,
                       double* totals) {
  const T *from = static_cast<const T*>(x), *by = static_cast<const T*>(dy);
  if (view.silu) sum_pixels(view, of, Gradients<T, true>{from, by}, totals);
  else sum_pixels(view, of, Gradients<T, false>{from, by}, totals);
}
void norm_gradients(const NormView& view, const NormChannels& of, const void* x, const void* dy,
                    double* totals) {
  (view.bfloat ? norm_gradients_of<uint16_t> : norm_gradients_of<float>)(view, of, x, dy, totals);
}

template <class T>
void norm_backward_of(const NormView& view, const NormChannels& of, const void* x, const void* dy,
                      void* out) {
  const T *from = static_cast<const T*>(x), *by = static_cast<const T*>(dy);
  T* to = static_cast<T*>(out);
  if (view.silu) over_pixels(view, of, Backward<T, true>{from, by, to});
  else over_pixels(view, of, Backward<T, false>{from, by, to});
}
void norm_backward(const NormView& view, const NormChannels& of, const void* x, const void* dy, void* out) {
  (view.bfloat ? norm_backward_of<uint16_t> : norm_backward_of<float>)(view, of, x, dy, out);
}
