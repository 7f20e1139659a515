// Everything of one instruction set; included inside its namespace, after kWidth, Vector, Whole, fma, from_bytes, dot_bytes,
// any_of, store_low_bytes, reciprocal_root.
// Only raw loops and builtins here: an inline function of the standard library compiled for one instruction set must never be
// merged with another's.
namespace {
#include "vectors.inl"
#include "product.inl"
#include "product_few.inl"
#include "digits.inl"
#include "rows.inl"
#include "spread.inl"
#include "plane.inl"

Kernels table_named(const char* name) {
  Kernels table{};
  table.name = name;
  table.tile_rows = kTileRows;
  table.tile_charges = kTileCharges;
  table.has_bytes = kHasBytes;
  table.pack_rows = pack_rows;
  table.product = product;
  table.product_scratch = product_scratch;
  table.product_few = product_few;
  table.pack_digits = pack_digits;
  table.product_digits = product_digits;
  table.product_rounded = product_rounded;
  table.digit_scratch = digit_scratch;
  table.scale_digit = scale_digit;
  table.scale_rounded = scale_rounded;
  table.join_digits = join_digits;
  table.least = least;
  table.select = select_below;
  table.select_above = select_above;
  table.weigh = weigh;
  table.distance = distance;
  table.decode = decode_row;
  table.add_difference = add_difference;
  table.spread = spread;
  table.plane = plane;
  return table;
}
}  // namespace
