// Everything of one instruction set; included inside its namespace, after kWidth, kFuses, Vector, Whole, fma,
// from_bytes, dot_bytes, any_of, store_low_bytes, reciprocal_root, scaled. Only raw loops and builtins here:
// an inline function of the standard library compiled for one instruction set must never be merged with
// another's.
namespace {
// clang-format off: in this order, each uses those above it
#include "vectors.inl"
#include "charges.inl"
#include "transpose.inl"
#include "ahead.inl"
#include "distance_gemm.inl"
#include "distance_gemm_few.inl"
#include "digit_tile.inl"
#include "distance_gemm_digits.inl"
#include "weights.inl"
#include "split_digits.inl"
#include "weighted_sum.inl"
#include "weighted_sum_digits.inl"
#include "small_n.inl"
#include "group_norm.inl"
// clang-format on

Kernels table_named(const char* name) {
  Kernels table{};
  table.name = name;
  table.tile_rows = kTileRows;
  table.tile_charges = kTileCharges;
  add_digit_kernels(table);
  table.pack_rows = pack_rows;
  table.distance_gemm = distance_gemm;
  table.gemm_scratch = gemm_scratch;
  table.distance_gemm_few = distance_gemm_few;
  table.split_digits = split_digits;
  table.least = least;
  table.select = select_below;
  table.select_above = select_above;
  table.weigh = weigh;
  table.distance = distance;
  table.decode = decode_row;
  table.add_difference = add_difference;
  table.weighted_sum = weighted_sum;
  table.small_n_nearest = small_n_nearest;
  table.small_n_sums = small_n_sums;
  table.norm_moments = norm_moments;
  table.norm_forward = norm_forward;
  table.norm_gradients = norm_gradients;
  table.norm_backward = norm_backward;
  return table;
}
}  // namespace
