// What will be read next, fetched into the second-level cache a few lines at a time between products.

struct Ahead {
  const uint8_t *at = nullptr, *end = nullptr;

  /// How many lines each of `calls` calls of fetch has to take.
  int64_t share(int64_t calls) const { return ((end - at + 63) / 64 + calls - 1) / calls; }
  void fetch(int64_t lines) {
    for (; lines > 0 && at < end; --lines, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

/// The bytes of up to `rows` charges from `first` on, those that there are.
inline Ahead charges_ahead(const ChargeView& charges, int64_t count, int64_t first, int64_t rows) {
  if (first >= count) return {};
  const uint8_t* data = static_cast<const uint8_t*>(charges.data);
  const int64_t last = first + rows < count ? first + rows : count;
  return {data + first * charges.dim, data + last * charges.dim};
}
