// The first product for byte charges on integer tensor cores: gaps[split][i][j] = δ² ‖y_j − μ‖² − 2 s_i Σ_k
// Q_ik b_jk, which is δ² ‖ρ_ij‖² up to a constant a row (δ = divisor, b = byte, X = δ (x − μ) = s Q rounded
// to 24 bits, in three signed digits of 8).
//
// Every product and sum is exact: unsigned byte × signed digit into int32 (up to 65,536 terms; longer rows
// are split), digits combined in int64, and only then scaled in double. So the result depends on no tiling,
// and errs as if x had been rounded to 2^-24 of its row's largest element.
//
// Float charges go the same way (kernels/refine.cuh): a charge's 24 bits are three rows of bytes, each
// multiplied in turn and added to the gaps; the byte of a signed digit is the digit + 128, and 128 times the
// query's digits' sum is taken off again.
//
// distance_gemm_kernel: a tile of charges × queries × digits a block, operands through kStages of 64-byte
// depth by cp.async, ldmatrix from a swizzled layout, mma.m16n8k32; a warp has one digit, and the digits meet
// in shared memory at the end. Cost: 2 integer operations a (pair, element, digit) on tensor cores; a charge
// is read ⌈B/queries⌉ times, a digit ⌈M/charges⌉ times (from L2); writes 8 bytes a pair, or 4 with one digit.
#pragma once

#include "gaps.cuh"
#include "split_digits.cuh"
#include "tensor_core.cuh"

namespace pfgm {

struct DistanceGemmCall {
  const uint8_t* charges;  // (count, dim)
  const int8_t* digits;    // (3, batch, dim)
  const double* scale;     // (batch)
  const double* sq_norms;  // (count), around the centre
  double* gaps;            // (splits, batch, count); unused by a tile of one digit
  double*
      least;  // (batch, groups of the row), or null: the least gap of each 32 charges (gaps.cuh); one split
  int64_t batch, count, dim, splits;
  double divisor;
  int32_t* leading;       // (batch, count): products with the first digit, written by kFirst, read by kRest
  const int* open;        // (batch), kRest: the queries that are served,
  const int* open_count;  // and their number
  // Float charges, or null and 0: each charge's scale, each query's sums of digits (3, batch), which of a
  // charge's three digits is multiplied (0 the most significant; from 1 on the gaps are added to), and the
  // row of gaps that `count` is a part of.
  const double* charge_scale;
  const int* digit_sums;
  int charge_digit;
  int64_t row_length;
};

/// Where the other digits of the open query `place` (of the list) lie for a kernel whose tile has both: in
/// rows of `dim` bytes, eight queries' second digits, then the same queries' third.
constexpr int kRestGroup = 8;
__device__ __forceinline__ int64_t rest_row(int64_t place, int digit) {
  return place / kRestGroup * 2 * kRestGroup + (digit - 1) * kRestGroup + place % kRestGroup;
}
__host__ __device__ __forceinline__ int64_t rest_rows(int64_t queries) {
  return ceil_div<int64_t>(queries, kRestGroup) * 2 * kRestGroup;
}

/// What makes a gap of a product and a charge's norm, rounded alike in every kernel.
struct GapScale {
  double product, square;
  __device__ __forceinline__ GapScale(const DistanceGemmCall& call, int64_t query)
      : product(-2.0 * call.scale[query]), square(call.divisor * call.divisor) {}
  __device__ __forceinline__ double gap(double of_digits, double norm) const {
    return fma(square, norm, product * of_digits);
  }
};

/// What a tile makes of its sums: gaps, from all or the first of the digits; products with the first digit as
/// they are; or gaps for a list of queries, from these products and the other digits.
enum class GemmOutput { kGaps, kFirst, kRest };

/// A block's tile. A warp has one digit and a rectangle of the tile, whose sums fit into its registers.
template <GemmOutput kOutputOfTile, int kDigitsOfTile, int kChargesOfTile, int kQueriesOfTile,
          int kWarpsAlongCharges, int kWarpsAlongQueries, int kStagesOfTile>
struct GemmTile {
  static constexpr GemmOutput kOutput = kOutputOfTile;
  static constexpr bool kOfList = kOutput == GemmOutput::kRest;
  static constexpr int kDigitsServed = kDigitsOfTile, kFirstDigit = kOfList ? 1 : 0;
  static constexpr int kCharges = kChargesOfTile, kQueries = kQueriesOfTile, kStages = kStagesOfTile;
  static constexpr int kWarpsC = kWarpsAlongCharges, kWarpsQ = kWarpsAlongQueries,
                       kWarps = kDigitsServed * kWarpsC * kWarpsQ;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kFragmentsC = kCharges / kWarpsC / 16, kFragmentsQ = kQueries / kWarpsQ / 8;
  static constexpr int kRows = kCharges + kDigitsServed * kQueries;  // of 64 bytes, in one stage
  static constexpr int kSlice =
      kQueries / kWarpsQ < 32 ? kQueries / kWarpsQ : 32;       // queries whose digits meet at a time
  static constexpr int kSums = kFragmentsC * kFragmentsQ * 4;  // a thread's
  static constexpr int kBlocks = kSums <= 64 ? 2 : 1;  // that shall share a multiprocessor's registers
  static_assert(kFragmentsQ % 2 == 0 && kCharges % (16 * kWarpsC) == 0 && kCharges % kGroup == 0);
  union Shared {
    uint8_t stage[kStages][kRows * kDepth];
    int32_t meet[kDigitsServed][kSlice][kCharges + 4];
  };
  static_assert(sizeof(Shared) <= 99 * 1024);  // what every device since sm_80 has
};
using WideTile = GemmTile<GemmOutput::kGaps, 3, 128, 128, 4, 1, 3>;
using NarrowTile = GemmTile<GemmOutput::kGaps, 3, 64, 64, 2, 2, 4>;
using SlimTile = GemmTile<GemmOutput::kGaps, 3, 128, 16, 4, 1, 4>;
using TwoDigitTile = GemmTile<GemmOutput::kGaps, 2, 128, 128, 4, 1, 4>;
using OneDigitTile = GemmTile<GemmOutput::kGaps, 1, 128, 128, 4, 2, 4>;
using FirstTile = GemmTile<GemmOutput::kFirst, 1, 128, 128, 4, 2, 4>;
using FirstWideTile = GemmTile<GemmOutput::kFirst, 1, 128, 256, 4, 2, 4>;
using RestTile = GemmTile<GemmOutput::kRest, 2, 128, 64, 4, 1, 4>;

/// Into the gaps: −2 X·b of a query and a charge, or what one digit of a float charge adds to it; the norm
/// with the first.
__device__ __forceinline__ double add_gap(const DistanceGemmCall& call, int64_t split, int64_t query,
                                          int64_t charge, double product) {
  const GapScale scale(call, query);
  if (call.charge_scale)
    product *= call.charge_scale[charge] * (call.charge_digit == 0   ? 65536.0
                                            : call.charge_digit == 1 ? 256.0
                                                                     : 1.0);
  const double norm = split == 0 && call.charge_digit == 0 ? call.sq_norms[charge] : 0.0;
  const double value = scale.gap(product, norm);
  const int64_t length = call.row_length ? call.row_length : call.count;
  double& gap = call.gaps[(split * call.batch + query) * length + charge];
  return gap = call.charge_digit == 0 ? value : gap + value;
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) distance_gemm_kernel(DistanceGemmCall call) {
  typename Tile::Shared& shared = shared_memory<typename Tile::Shared>();
  const int64_t batch = Tile::kOfList ? *call.open_count : call.batch;
  const int64_t query_tiles = ceil_div<int64_t>(call.batch, Tile::kQueries);
  const int64_t charge_tiles = ceil_div<int64_t>(call.count, Tile::kCharges);
  const int64_t query_begin = blockIdx.x % query_tiles * Tile::kQueries;  // neighbours share charges
  if (query_begin >= batch) return;
  const int64_t charge_begin = blockIdx.x / query_tiles % charge_tiles * Tile::kCharges;
  const int64_t split = blockIdx.x / (query_tiles * charge_tiles);
  const int64_t part = ceil_div(ceil_div<int64_t>(call.dim, kDepth), call.splits) * kDepth;
  const int64_t begin = split * part, end = begin + part < call.dim ? begin + part : call.dim;
  const int stages = begin < end ? static_cast<int>(ceil_div<int64_t>(end - begin, kDepth)) : 0;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warp_digit = warp / (Tile::kWarpsC * Tile::kWarpsQ);
  const int warp_charge = warp % Tile::kWarpsC * (Tile::kCharges / Tile::kWarpsC);
  const int warp_query = warp / Tile::kWarpsC % Tile::kWarpsQ * (Tile::kQueries / Tile::kWarpsQ);

  // A thread copies one chunk of every kStep-th row; the rows' swizzle repeats with them. Its two addresses
  // walk along N. What is outside becomes zeros: nothing is read there.
  constexpr int kStep = Tile::kThreads / 4;
  static_assert(kStep % 8 == 0);
  const int my_row = static_cast<int>(threadIdx.x) / 4, my_chunk = threadIdx.x % 4,
            my_place = swizzled(my_row, my_chunk);
  const int charges_left = call.count - charge_begin < Tile::kCharges
                               ? static_cast<int>(call.count - charge_begin)
                               : Tile::kCharges;
  const int queries_left =
      batch - query_begin < Tile::kQueries ? static_cast<int>(batch - query_begin) : Tile::kQueries;
  const int queries_needed = queries_left < Tile::kQueries ? ceil_div(queries_left, 16) * 16
                                                           : Tile::kQueries;  // whole pairs of fragments
  const uint8_t* charges = call.charges + (charge_begin + my_row) * call.dim + begin + my_chunk * kChunk;
  static_assert(!Tile::kOfList || Tile::kQueries <= kStep);  // a thread then has one query of the list
  const int64_t my_query = !Tile::kOfList          ? query_begin + my_row
                           : my_row < queries_left ? call.open[query_begin + my_row]
                                                   : 0;
  const int8_t* digits =
      call.digits + (Tile::kFirstDigit * call.batch + my_query) * call.dim + begin + my_chunk * kChunk;
  int depth_left = static_cast<int>(end - begin) - my_chunk * kChunk;
  const auto fill = [&](int slot) {
    uint8_t* tile = shared.stage[slot] + my_place;
#pragma unroll
    for (int row = 0; row < Tile::kCharges; row += kStep)
      if (row + my_row < Tile::kCharges)
        copy_async(tile + row * kDepth, charges + row * call.dim,
                   depth_left > 0 && row + my_row < charges_left);
#pragma unroll
    for (int digit = 0; digit < Tile::kDigitsServed; ++digit)
#pragma unroll
      for (int row = 0; row < Tile::kQueries; row += kStep)
        if (row + my_row < queries_needed)
          copy_async(tile + (Tile::kCharges + digit * Tile::kQueries + row) * kDepth,
                     digits + (digit * call.batch + row) * call.dim,
                     depth_left > 0 && row + my_row < queries_left);
    charges += kDepth;
    digits += kDepth;
    depth_left -= kDepth;
  };

  const int lane_charge = fragment_lane(), lane_query = fragment_pair_lane();
  int32_t sum[Tile::kFragmentsC][Tile::kFragmentsQ][4] = {};
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
    if (stage < stages) fill(stage);
    commit_copies();
  }
  int slot = 0, free_slot = Tile::kStages - 1;
  for (int stage = 0; stage < stages; ++stage) {
    wait_copies<Tile::kStages - 2>();
    __syncthreads();  // everybody's copies of this stage are there, and nobody reads the one that is filled
                      // next
    if (stage + Tile::kStages - 1 < stages) fill(free_slot);
    commit_copies();
    const uint8_t* tile = shared.stage[slot];
    slot = slot + 1 == Tile::kStages ? 0 : slot + 1;
    free_slot = free_slot + 1 == Tile::kStages ? 0 : free_slot + 1;
#pragma unroll
    for (int step = 0; step < kDepth / 32; ++step) {
      uint32_t charge[Tile::kFragmentsC][4];
#pragma unroll
      for (int c = 0; c < Tile::kFragmentsC; ++c)
        load_matrix(charge[c], tile + (warp_charge + 16 * c) * kDepth + (lane_charge ^ 32 * step));
      const uint8_t* digit = tile + (Tile::kCharges + warp_digit * Tile::kQueries + warp_query) * kDepth;
#pragma unroll
      for (int q = 0; q < Tile::kFragmentsQ; q += 2) {
        if (warp_query + 8 * q >= queries_needed) continue;  // a whole warp: nobody reads these sums
        uint32_t pair[4];
        load_matrix(pair, digit + 8 * q * kDepth + (lane_query ^ 32 * step));
        const uint32_t left[2] = {pair[0], pair[1]}, right[2] = {pair[2], pair[3]};
#pragma unroll
        for (int c = 0; c < Tile::kFragmentsC; ++c) {
          multiply<true>(sum[c][q], charge[c], left);
          multiply<true>(sum[c][q + 1], charge[c], right);
        }
      }
    }
  }
  wait_copies<0>();

  // The digits meet in shared memory, a slice of queries at a time; a warp then writes consecutive charges.
  constexpr int kSlicesOfWarp = Tile::kQueries / Tile::kWarpsQ / Tile::kSlice,
                kFragmentsOfSlice = Tile::kSlice / 8;
#pragma unroll
  for (int slice = 0; slice < Tile::kWarpsQ * kSlicesOfWarp; ++slice) {
    const int slice_begin = slice * Tile::kSlice;
    __syncthreads();
    if (warp_query == slice / kSlicesOfWarp * (Tile::kQueries / Tile::kWarpsQ)) {
#pragma unroll
      for (int c = 0; c < Tile::kFragmentsC; ++c)
#pragma unroll
        for (int f = 0; f < kFragmentsOfSlice; ++f)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            shared.meet[warp_digit][8 * f + lane % 4 * 2 + i % 2]
                       [warp_charge + 16 * c + lane / 4 + (i >= 2 ? 8 : 0)] =
                sum[c][slice % kSlicesOfWarp * kFragmentsOfSlice + f][i];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < Tile::kSlice * Tile::kCharges; at += Tile::kThreads) {
      const int q = at / Tile::kCharges, c = at % Tile::kCharges;
      const int64_t place = query_begin + slice_begin + q, charge = charge_begin + c;
      if (place >= batch || charge - c % kGroup >= call.count) continue;  // a whole warp
      const bool inside = charge < call.count;
      const int64_t query = Tile::kOfList ? call.open[place] : place;
      if constexpr (Tile::kOutput == GemmOutput::kFirst) {
        if (inside) call.leading[query * call.count + charge] = shared.meet[0][q][c];
      } else {
        double gap = std::numeric_limits<double>::infinity();
        if (inside) {
          int64_t product = Tile::kOfList ? call.leading[query * call.count + charge] : 0;
#pragma unroll
          for (int digit = 0; digit < Tile::kDigitsServed; ++digit) {
            int64_t sum = shared.meet[digit][q][c];
            if constexpr (!Tile::kOfList)
              if (call.digit_sums)
                sum -= 128 * static_cast<int64_t>(call.digit_sums[digit * call.batch + query]);
            product = product * 256 + sum;
          }
          constexpr double kUnit = Tile::kOfList || Tile::kDigitsServed == 3 ? 1
                                   : Tile::kDigitsServed == 2                ? 256
                                                                             : 65536;
          gap = add_gap(call, split, query, charge, static_cast<double>(product) * kUnit);
        }
        const int64_t groups = groups_of(call.row_length ? call.row_length : call.count);
        if (call.least) write_least(gap, call.least + query * groups + charge / kGroup);
      }
    }
  }
}

template <class Tile>
int64_t gemm_tiles(int64_t batch, int64_t count) {
  return ceil_div<int64_t>(batch, Tile::kQueries) * ceil_div<int64_t>(count, Tile::kCharges);
}

/// Parts of N: at least what int32 asks for, and so many that the last wave of blocks (two fit on a
/// multiprocessor) is full.
template <class Tile>
int64_t gemm_splits(int64_t batch, int64_t count, int64_t dim) {
  const int64_t least = ceil_div<int64_t>(dim, kLongestSum), tiles = gemm_tiles<Tile>(batch, count),
                slots = 2 * multiprocessors();
  int64_t best = least;
  double fullest = 0;
  for (int64_t splits = least; splits <= least + 3 && (splits == least || dim / splits >= 1024); ++splits) {
    const int64_t blocks = tiles * splits;
    const double full =
        static_cast<double>(blocks) / static_cast<double>(ceil_div<int64_t>(blocks, slots) * slots);
    if (full > fullest + 0.1) {
      fullest = full;
      best = splits;
    }
  }
  return best;
}

template <class Tile>
void launch_distance_gemm(const DistanceGemmCall& call, Stream stream) {
  launch<distance_gemm_kernel<Tile>>(gemm_tiles<Tile>(call.batch, call.count) * call.splits, Tile::kThreads,
                                     sizeof(typename Tile::Shared), stream, call);
}

}  // namespace pfgm
