// How blocks that stay on their multiprocessors share the second product (weighted_sum_hopper.cuh), decided
// on the device by the number of dense queries, and where finish.cuh finds what they summed.
//
// A column tile's charges, in stages, one column tile behind the other, make a line. Groups of blocks cut it
// evenly; a group has a block for each tile of 48 dense queries, which run in step, so that the charges come
// from device memory once. What a group has of one column tile is a piece. Where a group's share would exceed
// what int32 holds, column tiles are cut into parts first. Two groups differ in at most one stage.
#pragma once

#include "../device.h"

namespace pfgm {

constexpr int kSumQueries = 48;
constexpr int kSumColumns = 256;
constexpr int kSumDepth = 128;    // charges of a stage
constexpr int kSumLongest = 256;  // stages of a piece: 255 · 255 · 256 · 128 < 2^31
constexpr int kSumLeast = 4;      // stages of a group, if there are so many

/// Stages, parts and groups: all fit an int, for a stage of a column tile is 32 KB of charges.
struct SumPieces {
  int dense, row_tiles, column_tiles, stages;
  int groups, parts, depth;  // depth: stages of a part; the last part's may lie behind `stages`
  int quota;                 // stages of a group

  __host__ __device__ SumPieces(int dense_queries, int64_t count, int64_t dim, int blocks)
      : dense(dense_queries),
        row_tiles(ceil_div(dense, kSumQueries)),
        column_tiles(static_cast<int>(ceil_div<int64_t>(dim, kSumColumns))),
        stages(static_cast<int>(ceil_div<int64_t>(count, kSumDepth))),
        groups(row_tiles < blocks ? blocks / (row_tiles > 0 ? row_tiles : 1) : 1),
        parts(1),
        depth(stages),
        quota(share()) {
    if (quota <= kSumLongest) return;
    parts = ceil_div(stages, kSumLongest);
    depth = ceil_div(stages, parts);
    quota = share();
  }
  __host__ __device__ int share() const {
    const int even = ceil_div(column_tiles * parts * depth, groups);
    return even > kSumLeast ? even : kSumLeast;
  }
  /// The int64 before a dense query's sums of what group `group` has of the `tile`-th part.
  __host__ __device__ int64_t offset(int tile, int group, int64_t slot) const {
    return (static_cast<int64_t>(tile + group) * dense + slot) * kSumColumns;
  }
};

/// The int64 that all pieces take, whatever number of a batch's queries is dense: each part and each group's
/// first piece have the dense queries' rows, and groups × dense ≤ blocks × 48.
inline int64_t sum_elements(int64_t batch, int64_t count, int64_t dim, int blocks) {
  const int64_t row_tiles = ceil_div<int64_t>(batch, kSumQueries),
                tiles = ceil_div<int64_t>(dim, kSumColumns) *
                        ceil_div<int64_t>(ceil_div<int64_t>(count, kSumDepth), kSumLongest);
  const int64_t rows = batch < kSumQueries ? batch : kSumQueries;
  return (tiles * batch + (row_tiles > blocks ? row_tiles : blocks) * rows) * kSumColumns;
}

}  // namespace pfgm
