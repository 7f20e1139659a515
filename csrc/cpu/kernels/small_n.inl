// Few dimensions: one query against all charges, kWidth charges at a time, charges as columns (dim, stride),
// padded; what the padding holds weighs nothing. Two sweeps: squares and their least; weights and the sums of
// differences from the anchor. Cost a pair: 2N + 40 operations.

/// w^(−halves/2) by repeated squaring of 1/√w: what a whole D makes of the weights, without logarithm and
/// exponential.
inline Vector half_power(Vector w, int halves) {
  Vector square = reciprocal_root(w), result = all(1.0f);
  for (; halves > 0; halves >>= 1, square *= square)
    if (halves & 1) result *= square;
  return result;
}

/// N, kHalves = N + D: known when compiled, or 0.
template <int N, int kHalves = 0>
WeightSums small_n_of(const float* x, const float* columns, int64_t dim, int64_t stride, int64_t count,
                      const float* log_q, float power, float total, float radius2, float* squares,
                      int64_t* anchor, float* shift, float* pull) {
  const int64_t n = N > 0 ? N : dim;
  const int64_t padded = (count + kWidth - 1) / kWidth * kWidth;
  Vector best = all(std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < padded;
       j += kWidth) {  // the padding repeats the last charge: it may be the nearest
    Vector sum{};
    for (int64_t k = 0; k < n; ++k) {
      const Vector difference = load(columns + k * stride + j) - x[k];
      sum = fma(difference, difference, sum);
    }
    store(squares + j, sum);
    best = lesser(sum, best);
  }
  float nearest = std::numeric_limits<float>::infinity();
  for (int lane = 0; lane < kWidth; ++lane) nearest = best[lane] < nearest ? best[lane] : nearest;
  const int64_t a = *anchor = first_at_most(squares, nearest, count);
  const float distance2 = squares[a] + radius2;
  FloatWeightFunction function{
      power, power > 0 ? 1.0f / distance2 : 0.5f / radius2, power <= 0, total, distance2, radius2, 0.0f};
  // A weight too small for a float becomes 0, as it should: the largest is 1.
  const int halves = kHalves > 0 ? kHalves
                     : power > 0 && 2 * power == static_cast<int>(2 * power) && !log_q
                         ? static_cast<int>(2 * power)
                         : 0;
  float at[16];
  for (int64_t k = 0; k < n; ++k) at[k] = columns[k * stride + a];

  constexpr int64_t kChunk = 64 * kWidth;
  WeightSums sums{0, 0, 0};
  double shifts[16] = {}, pulls[16] = {};
  for (int64_t start = 0; start < padded; start += kChunk) {
    const int64_t stop = start + kChunk < padded ? start + kChunk : padded;
    Vector mass{}, rate{}, trace{}, moved[N > 0 ? N : 16], pulled[N > 0 ? N : 16];
    for (int64_t k = 0; k < n; ++k) moved[k] = pulled[k] = Vector{};
    for (int64_t j = start; j < stop; j += kWidth) {
      const Vector gap = load(squares + j) - squares[a];
      Vector weight = halves > 0
                          ? half_power(lesser(fma(gap, all(function.per_gap), all(1.0f)), all(1e30f)), halves)
                          : weights_of(gap, log_q ? load(log_q + j) : Vector{}, function);
      if (j + kWidth > count) {
        float lanes[kWidth];
        store(lanes, weight);
        weight = load_part(lanes, count - j, 0.0f);
      }
      mass += weight;
      if (pull) {
        const Vector pull_weight = weight * rates_of(gap, function);
        rate += pull_weight;
        trace += function.gaussian ? pull_weight * load(squares + j)
                                   : fma(all(-radius2), pull_weight, weight * total);
        for (int64_t k = 0; k < n; ++k) {
          const Vector difference = load(columns + k * stride + j) - at[k];
          moved[k] = fma(weight, difference, moved[k]);
          pulled[k] = fma(pull_weight, difference, pulled[k]);
        }
      } else {
        for (int64_t k = 0; k < n; ++k)
          moved[k] = fma(weight, load(columns + k * stride + j) - at[k], moved[k]);
      }
    }
    sums.mass += sum_double(mass);
    sums.rate += sum_double(rate);
    sums.trace += sum_double(trace);
    for (int64_t k = 0; k < n; ++k) {
      shifts[k] += sum_double(moved[k]);
      if (pull) pulls[k] += sum_double(pulled[k]);
    }
  }
  for (int64_t k = 0; k < n; ++k) {
    shift[k] = static_cast<float>(shifts[k] / sums.mass);
    if (pull) pull[k] = static_cast<float>(pulls[k] / sums.mass);
  }
  return sums;
}

WeightSums small_n(const float* x, const float* columns, int64_t dim, int64_t stride, int64_t count,
                   const float* log_q, float power, float total, float radius2, float* squares,
                   int64_t* anchor, float* shift, float* pull) {
  // the toy of most papers, PFGM in the small_n, has a kernel of its own
  const bool pfgm = dim == 2 && power == 1.5f && log_q == nullptr;
  const auto run = pfgm       ? small_n_of<2, 3>
                   : dim == 1 ? small_n_of<1>
                   : dim == 2 ? small_n_of<2>
                   : dim == 3 ? small_n_of<3>
                              : small_n_of<0>;
  return run(x, columns, dim, stride, count, log_q, power, total, radius2, squares, anchor, shift, pull);
}
