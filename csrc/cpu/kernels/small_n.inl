// Few dimensions: one query against all charges, kWidth charges at a time, charges as columns (dim, stride),
// padded; the padding repeats the last charge. Two sweeps: squares and their least; weights and the sums of
// differences from the anchor. Cost a pair: 3 N operations, and for vectors of charges that carry weight 3 N
// + 15 to 50 more (3 N in double where precise).

constexpr int kMostSmallN = 16;

/// w^(−halves/2) by repeated squaring of 1/√w: what a whole D makes of the weights, without logarithm and
/// exponential.
inline Vector half_power(Vector w, int halves) {
  Vector square = reciprocal_root(w), result = all(1.0f);
  for (; halves > 0; halves >>= 1, square *= square)
    if (halves & 1) result *= square;
  return result;
}

/// ‖y_j − x‖² of kWidth charges in double.
inline Double exact_squares(const float* x, const float* columns, int64_t n, int64_t stride, int64_t j) {
  Double sum{};
  for (int64_t k = 0; k < n; ++k) {
    const Double difference =
        __builtin_convertvector(load(columns + k * stride + j), Double) - static_cast<double>(x[k]);
    sum += difference * difference;
  }
  return sum;
}

template <int N>
int64_t small_n_nearest_of(const float* x, const float* columns, int64_t dim, int64_t stride, int64_t count,
                           bool precise, float* squares) {
  const int64_t n = N > 0 ? N : dim;
  Vector best = all(std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < count; j += kWidth) {
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
  if (!precise) return first_at_most(squares, nearest, count);
  // Of those that rounding leaves open, the nearest in double.
  const float limit = nearest * (1.0f + 4e-7f * (n + 2));
  double least = std::numeric_limits<double>::infinity();
  int64_t a = 0;
  for (int64_t j = 0; j < count; j += kWidth) {
    if (!any_of(load(squares + j) <= all(limit))) continue;
    const Double exact = exact_squares(x, columns, n, stride, j);
    for (int64_t lane = 0; lane < kWidth && j + lane < count; ++lane)
      if (exact[lane] < least) least = exact[lane], a = j + lane;
  }
  return a;
}

/// kHalves = N + D: known when compiled, or 0.
template <int N, int kHalves = 0>
WeightSums small_n_sums_of(const SmallNRow& row, const FloatWeightFunction& function, float* shift,
                           float* pull) {
  const int64_t n = N > 0 ? N : row.dim, stride = row.stride, count = row.count;
  const float *columns = row.columns, *squares = row.squares, *log_q = row.log_q;
  const float radius2 = function.radius2;
  const int halves = kHalves > 0 ? kHalves : row.halves;
  float at[kMostSmallN];
  float twice[kMostSmallN];  // 2 (y_a − x)
  for (int64_t k = 0; k < n; ++k) {
    at[k] = columns[k * stride + row.anchor];
    twice[k] = static_cast<float>(2.0 * (static_cast<double>(at[k]) - row.x[k]));
  }

  constexpr int64_t kChunk = 64 * kWidth;  // lanes are added up in float for a chunk, then in double
  WeightSums sums{0, 0, 0};
  double shifts[kMostSmallN] = {}, pulls[kMostSmallN] = {};
  for (int64_t start = 0; start < count; start += kChunk) {
    const int64_t stop = start + kChunk < count ? start + kChunk : count;
    Vector mass{}, rate{}, trace{}, moved[N > 0 ? N : kMostSmallN], pulled[N > 0 ? N : kMostSmallN];
    for (int64_t k = 0; k < n; ++k) moved[k] = pulled[k] = Vector{};
    for (int64_t j = start; j < stop; j += kWidth) {
      const Vector square = load(squares + j);
      if (kHalves == 0 && !any_of(square <= all(row.bound))) continue;
      Vector gap{}, difference[N > 0 ? N : kMostSmallN];  // y_j − y_a
      for (int64_t k = 0; k < n; ++k) difference[k] = load(columns + k * stride + j) - at[k];
      if (kHalves > 0) gap = square - squares[row.anchor];
      else
        for (int64_t k = 0; k < n; ++k) gap = fma(difference[k], difference[k] + twice[k], gap);
      if (kHalves == 0 && row.precise)
        gap = __builtin_convertvector(exact_squares(row.x, columns, n, stride, j) - row.anchor2, Vector);
      // A weight too small for a float becomes 0, as it should: the largest is 1.
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
        trace += function.gaussian ? pull_weight * square
                                   : fma(all(-radius2), pull_weight, weight * function.total);
        for (int64_t k = 0; k < n; ++k) pulled[k] = fma(pull_weight, difference[k], pulled[k]);
      }
      for (int64_t k = 0; k < n; ++k) moved[k] = fma(weight, difference[k], moved[k]);
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

int64_t small_n_nearest(const float* x, const float* columns, int64_t dim, int64_t stride, int64_t count,
                        bool precise, float* squares) {
  const auto run = dim == 1   ? small_n_nearest_of<1>
                   : dim == 2 ? small_n_nearest_of<2>
                   : dim == 3 ? small_n_nearest_of<3>
                              : small_n_nearest_of<0>;
  return run(x, columns, dim, stride, count, precise, squares);
}

WeightSums small_n_sums(const SmallNRow& row, const FloatWeightFunction& function, float* shift,
                        float* pull) {
  const bool pfgm = row.dim == 2 && row.halves == 3;  // the toy of most papers, PFGM in the plane
  const auto run = pfgm           ? small_n_sums_of<2, 3>
                   : row.dim == 1 ? small_n_sums_of<1>
                   : row.dim == 2 ? small_n_sums_of<2>
                   : row.dim == 3 ? small_n_sums_of<3>
                                  : small_n_sums_of<0>;
  return run(row, function, shift, pull);
}
