// The vectorised kernels as one table of functions, built once for each instruction set from the same source
// (kernels/all.inl) and chosen when the library is first used.
#pragma once

#include <cstdint>

namespace pfgm {

/// Charges as a kernel sees them: floats, or bytes with value byte/divisor + offset (two roundings).
struct ChargeView {
  const void* data;
  bool bytes;
  int64_t dim;
  float divisor, offset;
  float inverse;        // 1/divisor, rounded: what the exact division by multiplication starts from
  const float* values;  // bytes: the value of each of the 256; null for floats
};

/// How far gap·per_gap goes where a charge may carry weight: to 1/32, to 5/4, or anywhere. The shorter, the
/// shorter the polynomial that log1p is there.
enum class LogRange { kShort, kMiddle, kAny };

/// How gaps become weights, in float: weight = exp(−power·log1p(gap·per_gap)), or exp(−gap·per_gap) where
/// gaussian.
struct FloatWeightFunction {
  float power, per_gap;
  bool gaussian;
  float total, distance2, radius2;  // c = total/(distance2 + gap) or 1/radius2
  float cut;                        // weights below are zero: they would not be seen in the sums
  LogRange range;
};

struct WeightSums {
  double mass, rate, trace;
};

/// One query of few dimensions.
struct SmallNRow {
  const float *x, *columns, *squares, *log_q;  // (dim), (dim, stride), (stride), (stride) or null
  int64_t dim, stride, count, anchor;
  double anchor2;  // ‖ρ_a‖²
  float bound;     // squares above carry no weight
  int halves;      // N + D where weights are a product of so many 1/√, else 0
  bool precise;    // gaps in double: the exponent multiplies what float would lose
};

/// A row in digits: x = step · number + e.
struct DigitSplit {
  double step, left, first_left;  // ‖e‖, and what the first digit alone leaves
  int32_t first_sum;              // Σ of the first digits
};

/// The weights of one row in digits: where its digit rows begin, and the value of a step in each band.
struct WeightDigits {
  int64_t first;
  int digits;
  const float* steps;
};

/// Some channels of one image, (channels, pixels) or, channels last, (pixels, channels), and what is done to
/// them.
struct NormView {
  bool bfloat, channels_last, silu;
  int64_t channels, pixels, stride;  // stride: of the outer of the two
};

/// Numbers of each channel, (channels): x̂ = (x + shift) rstd, z = gain x̂ + bias; first, second: of the
/// backward.
struct NormChannels {
  const float *shift, *rstd, *gain, *bias, *first, *second;
};

struct Kernels {
  const char* name;
  int tile_rows;     // rows of x in a register tile
  int tile_charges;  // charges in a register tile: products are made for whole tiles
  /// The largest digit that a byte may be multiplied with: 0 (bytes are not multiplied), 64 (one digit of
  /// seven bits, which serves the screening) or 127 (numbers in several digits).
  int largest_digit;

  // ---- kernels/distance_gemm.inl
  // ------------------------------------------------------------------------------------------
  /// x rows (rows, dim) → packed panels of tile_rows; `packed` has room for (rows rounded up)·dim floats.
  void (*pack_rows)(const float* x, int64_t rows, int64_t dim, float* packed);
  /// u[i·stride + j] = norms[j] − 2 scale x_i·(y_j or byte_j − 128), j from `first` (a multiple of
  /// tile_charges) up to `last`.
  void (*distance_gemm)(const float* packed, int64_t rows, const ChargeView& charges, int64_t count,
                        int64_t first, int64_t last, float scale, const float* norms, float* u,
                        int64_t stride, float* scratch);
  int64_t (*gemm_scratch)(int64_t rows);  // floats
  /// The same for at most 24 rows of x as they lie, (rows, dim): charges are read in order, nothing is
  /// transposed.
  void (*distance_gemm_few)(const float* x, int64_t rows, const ChargeView& charges, int64_t count,
                            int64_t first, int64_t last, float scale, const float* norms, float* u,
                            int64_t stride);
  /// x as fixed point in `digits` signed bytes, into `out` (digits, dim), the highest first; several only
  /// where the largest digit is 127.
  DigitSplit (*split_digits)(const float* x, int64_t dim, int digits, int8_t* out);
  /// Rows of signed digits (dim) with raw bytes: out[i·stride + j] = Σ byte·digit, exact.
  int64_t (*packed_digits)(int64_t rows, int64_t dim);  // int32
  void (*pack_digits)(const int8_t* const* x, int64_t rows, int64_t dim, int32_t* packed);
  void (*distance_gemm_digits)(const int32_t* packed, int64_t rows, const ChargeView& charges, int64_t count,
                               int64_t first, int64_t last, int32_t* out, int64_t stride, int32_t* scratch);
  /// The same with float charges less `center` rounded to bytes on the way: y_j − μ = scales[j]·(byte − 128)
  /// + f_j, residuals[j] ≥ ‖f_j‖.
  void (*distance_gemm_rounded)(const int32_t* packed, int64_t rows, const ChargeView& charges, int64_t count,
                                int64_t first, int64_t last, const float* center, int32_t* out,
                                int64_t stride, float* scales, float* residuals, int32_t* scratch);
  int64_t (*digit_scratch)(int64_t rows, int64_t dim);  // int32
  /// One row of such sums → u; three rows, of three digits → u from the least on, which may lie where the
  /// first is.
  void (*scale_digit)(const int32_t* sums, float scale, const float* norms, int64_t count, float* u);
  /// One row of rounded floats, in place: norms[j] − scale·scales[j]·(sum − offset).
  void (*scale_rounded)(int32_t* sums, float scale, int32_t offset, const float* scales, const float* norms,
                        int64_t count);
  void (*join_digits)(const int32_t* first, const int32_t* second, const int32_t* third, double scale,
                      const float* norms, int64_t count, float* u);

  // ---- kernels/weights.inl and charges.inl
  // ---------------------------------------------------------------------------------------------
  int64_t (*least)(const float* u, int64_t count);  // where the least is
  /// Indices of u[j] − slack·roots[j] − residual_slack·residuals[j] ≤ bound, at most `room` of them; returns
  /// how many there are, or some number above `room`. residuals may be null.
  int64_t (*select)(const float* u, const float* roots, float slack, const float* residuals,
                    float residual_slack, float bound, int64_t count, int32_t* index, int64_t room);
  /// Indices of weights[j] ≥ bound; returns how many.
  int64_t (*select_above)(const float* weights, float bound, int64_t count, int32_t* index);
  /// u → weights in place (relative to the anchor's), optionally the weights times c into `pulls`.
  WeightSums (*weigh)(float* u, float* pulls, const float* log_q, float anchor,
                      const FloatWeightFunction& function, int64_t count);
  /// ‖x − y_j‖² in double.
  double (*distance)(const float* x, const ChargeView& charges, int64_t j);
  /// y_j as floats.
  void (*decode)(const ChargeView& charges, int64_t j, float* out);
  /// shift += w (y_j − anchor), and pull += w c (y_j − anchor) where pull is not null.
  void (*add_difference)(const ChargeView& charges, int64_t j, const float* anchor, float weight,
                         float pull_weight, float* shift, float* pull);

  // ---- kernels/weighted_sum.inl
  // -------------------------------------------------------------------------------------------
  /// sums[g·dim + k] += Σ_j weights[g·stride + j] y_jk (bytes: byte − 128) for k in [first, last).
  void (*weighted_sum)(const float* weights, int64_t rows, int64_t stride, const ChargeView& charges,
                       int64_t count, int64_t first, int64_t last, double* sums);

  // ---- kernels/weighted_sum_digits.inl
  int64_t band_charges;                    // charges in a band, whose weights share a step
  int64_t (*weight_bands)(int64_t count);  // how many bands there are
  void (*largest_weights)(const float* weights, int64_t count, float* largest);
  /// Weights of a row as whole numbers of `digits` bytes into the digit rows from `first` on, of `padded`
  /// (whole tiles); `steps`, the largest weights of the bands, become the values of a step. Returns Σ number
  /// · step.
  double (*pack_weights)(const float* weights, int64_t count, int digits, int64_t first, int64_t padded,
                         int32_t* packed, float* steps);
  /// sums[g·dim + k], zero before, = Σ_j number_gj · step · (byte_jk − 128) for k in [first, last).
  void (*weighted_sum_digits)(const int32_t* packed, const WeightDigits* rows, int64_t count_rows,
                              int64_t padded, const ChargeView& charges, int64_t count, int64_t first,
                              int64_t last, double* sums, int32_t* scratch);
  int64_t (*weighted_sum_scratch)(int64_t padded, int64_t columns);  // int32

  // ---- kernels/small_n.inl
  /// The charge nearest to x, charges as columns (dim, stride), padded to whole vectors; `squares` (stride)
  /// gets ‖y_j − x‖². precise: by double where float leaves it open.
  int64_t (*small_n_nearest)(const float* x, const float* columns, int64_t dim, int64_t stride, int64_t count,
                             bool precise, float* squares);
  /// The weights' sums, and into `shift` and `pull` (dim) the weighted means of y_j − y_a; pull may be null.
  WeightSums (*small_n_sums)(const SmallNRow& row, const FloatWeightFunction& function, float* shift,
                             float* pull);

  // ---- kernels/group_norm.inl: arrays are float, or bfloat16 where view.bfloat
  /// totals (2, channels): Σ (x − x_0) and Σ (x − x_0)² over the pixels; first (channels) gets −x_0.
  void (*norm_moments)(const NormView& view, const void* x, float* first, double* totals);
  void (*norm_forward)(const NormView& view, const NormChannels& of, const void* x, void* out);
  /// totals (3, channels): Σ dz, Σ dz x̂, Σ x̂.
  void (*norm_gradients)(const NormView& view, const NormChannels& of, const void* x, const void* dy,
                         double* totals);
  void (*norm_backward)(const NormView& view, const NormChannels& of, const void* x, const void* dy,
                        void* out);
};

/// The best table that this processor runs; PFGM_FAST_CPU_ISA = amx | avx512 | avx2 | portable takes a lower
/// one.
const Kernels& kernels();

// Functions, not constants: nothing compiled for an instruction set may run before the processor was asked
// for it.
namespace portable {
Kernels make_table();
}
namespace avx2 {
Kernels make_table();
}
namespace avx512 {
Kernels make_table();
}
namespace amx {
/// Asks the operating system for the tiles; false where there are none.
bool tiles_serve();
Kernels make_table();
}  // namespace amx

}  // namespace pfgm
