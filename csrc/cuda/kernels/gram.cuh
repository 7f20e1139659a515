// The first product for byte charges on integer tensor cores: gaps[split][i][j] = δ² ‖y_j − μ‖² − 2 s_i Σ_k Q_ik b_jk, which is
// δ² ‖ρ_ij‖² up to a constant a row (δ = divisor, b = byte, X = δ (x − μ) = s Q rounded to 24 bits, in three signed digits of 8).
//
// Every product and sum is exact: unsigned byte × signed digit into int32 (up to 65,536 terms; longer rows are split), digits
// combined in int64, and only then scaled in double. So the result depends on no tiling, and errs as if x had been rounded to
// 2^-24 of its row's largest element.
//
// digit_kernel: one block a query; reads x three times, writes 3 bytes an element.
// gram_kernel: a tile of charges × queries × digits a block, operands through kStages of 64-byte depth by cp.async, ldmatrix from
// a swizzled layout, mma.m16n8k32; a warp has one digit, and the digits meet in shared memory at the end.
// Cost: 2 integer operations a (pair, element, digit) on tensor cores; a charge is read ⌈B/queries⌉ times, a digit ⌈M/charges⌉
// times (from L2); writes 8 bytes a pair, or 4 with one digit.
#pragma once

#include "tensor_core.cuh"

namespace pfgm {

constexpr int kDigitThreads = 256;
constexpr double kDigitLargest = 127.0 * 65536 + 127 * 256 + 127;  // what three signed digits hold with the first below 128

template <class T>
struct DigitCall {
  const T* x;       // (batch, dim)
  const T* center;  // (dim)
  double divisor;
  int64_t batch, dim;
  int8_t* digits;  // (3, batch, dim), the most significant first
  double* scale;   // (batch): s_i; NaN where x is not finite
  double* residual;  // (batch): ‖X − 2^16 s D‖ with D the first digit: what it leaves out
  int* counters;     // two, set to 0 for the kernels behind
};

struct DigitShared {
  double slots[kDigitThreads / kWarp];
};

struct MaximumOrNaN {
  __device__ double operator()(double a, double b) const { return b > a || b != b ? b : a; }
};

template <class T>
__global__ void __launch_bounds__(kDigitThreads) digit_kernel(DigitCall<T> call) {
  DigitShared& shared = shared_memory<DigitShared>();
  const int64_t row = blockIdx.x;
  const T* x = call.x + row * call.dim;
  const auto unit = [&](int64_t k) { return (static_cast<double>(x[k]) - static_cast<double>(call.center[k])) * call.divisor; };
  double largest = 0;
  for (int64_t k = threadIdx.x; k < call.dim; k += kDigitThreads) largest = MaximumOrNaN{}(largest, fabs(unit(k)));
  largest = block_reduce<kDigitThreads>(largest, MaximumOrNaN{}, shared.slots);
  const bool good = isfinite(largest);
  const double scale = largest > 0 ? largest / kDigitLargest : 1.0, inverse = good ? 1.0 / scale : 0.0;
  const int64_t plane = call.batch * call.dim;
  double residual = 0;
  int8_t* digits = call.digits + row * call.dim;
  for (int64_t k = threadIdx.x; k < call.dim; k += kDigitThreads) {
    const int number = good ? static_cast<int>(rint(unit(k) * inverse)) : 0;
    const int low = static_cast<int8_t>(number), rest = (number - low) / 256;
    const int middle = static_cast<int8_t>(rest);
    const int high = (rest - middle) / 256;
    const double left = unit(k) - scale * 65536 * high;
    residual += left * left;
    digits[k] = static_cast<int8_t>(high);
    digits[plane + k] = static_cast<int8_t>(middle);
    digits[2 * plane + k] = static_cast<int8_t>(low);
  }
  residual = block_reduce<kDigitThreads>(residual, Sum{}, shared.slots);
  if (threadIdx.x == 0) {
    call.scale[row] = good ? scale : std::numeric_limits<double>::quiet_NaN();
    call.residual[row] = sqrt(residual);
    if (row == 0) call.counters[0] = call.counters[1] = 0;
  }
}

struct GramCall {
  const uint8_t* charges;  // (count, dim)
  const int8_t* digits;    // (3, batch, dim)
  const double* scale;     // (batch)
  const double* sq_norms;  // (count), around the centre
  double* gaps;            // (splits, batch, count); unused by a tile of one digit
  int64_t batch, count, dim, splits;
  double divisor;
  int32_t* leading;            // (batch, count): products with the first digit, written by a tile of one digit, read by one of two
  const int* open;             // (batch), a tile of two digits: the queries that are served,
  const int* open_count;       // and their number
};

/// A block's tile. A warp has one digit and a rectangle of the tile, whose sums fit into its registers. With three digits the tile
/// writes gaps; with one, the first, its products as they are; with two, the others, it completes these for a list of queries.
template <int kDigitsOfTile, int kChargesOfTile, int kQueriesOfTile, int kWarpsAlongCharges, int kWarpsAlongQueries, int kStagesOfTile>
struct GramTile {
  static constexpr int kDigitsServed = kDigitsOfTile, kFirstDigit = kDigitsServed == 2 ? 1 : 0;
  static constexpr bool kOfList = kDigitsServed == 2;
  static constexpr int kCharges = kChargesOfTile, kQueries = kQueriesOfTile, kStages = kStagesOfTile;
  static constexpr int kWarpsC = kWarpsAlongCharges, kWarpsQ = kWarpsAlongQueries, kWarps = kDigitsServed * kWarpsC * kWarpsQ;
  static constexpr int kThreads = kWarp * kWarps;
  static constexpr int kFragmentsC = kCharges / kWarpsC / 16, kFragmentsQ = kQueries / kWarpsQ / 8;
  static constexpr int kRows = kCharges + kDigitsServed * kQueries;  // of 64 bytes, in one stage
  static constexpr int kSlice = kQueries / kWarpsQ < 32 ? kQueries / kWarpsQ : 32;  // queries whose digits meet at a time
  static_assert(kFragmentsQ % 2 == 0 && kCharges % (16 * kWarpsC) == 0);
  union Shared {
    uint8_t stage[kStages][kRows * kDepth];
    int32_t meet[kDigitsServed][kSlice][kCharges + 4];
  };
  static_assert(sizeof(Shared) <= 99 * 1024);  // what every device since sm_80 has
};
using WideGram = GramTile<3, 128, 128, 4, 1, 3>;
using NarrowGram = GramTile<3, 64, 64, 2, 2, 4>;
using SlimGram = GramTile<3, 128, 16, 4, 1, 4>;
using FirstGram = GramTile<1, 128, 128, 4, 2, 4>;
using FirstWideGram = GramTile<1, 128, 256, 4, 2, 4>;
using RestGram = GramTile<2, 128, 64, 4, 1, 4>;

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) gram_kernel(GramCall call) {
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

  // A thread copies one chunk of every kStep-th row; the rows' swizzle repeats with them. Its two addresses walk along N. What
  // is outside becomes zeros: nothing is read there.
  constexpr int kStep = Tile::kThreads / 4;
  static_assert(kStep % 8 == 0);
  const int my_row = static_cast<int>(threadIdx.x) / 4, my_chunk = threadIdx.x % 4, my_place = swizzled(my_row, my_chunk);
  const int charges_left = call.count - charge_begin < Tile::kCharges ? static_cast<int>(call.count - charge_begin) : Tile::kCharges;
  const int queries_left = batch - query_begin < Tile::kQueries ? static_cast<int>(batch - query_begin) : Tile::kQueries;
  const uint8_t* charges = call.charges + (charge_begin + my_row) * call.dim + begin + my_chunk * kChunk;
  static_assert(!Tile::kOfList || Tile::kQueries <= kStep);  // a thread then has one query of the list
  const int64_t my_query = !Tile::kOfList ? query_begin + my_row : my_row < queries_left ? call.open[query_begin + my_row] : 0;
  const int8_t* digits = call.digits + (Tile::kFirstDigit * call.batch + my_query) * call.dim + begin + my_chunk * kChunk;
  int depth_left = static_cast<int>(end - begin) - my_chunk * kChunk;
  const auto fill = [&](int slot) {
    uint8_t* tile = shared.stage[slot] + my_place;
#pragma unroll
    for (int row = 0; row < Tile::kCharges; row += kStep)
      if (row + my_row < Tile::kCharges)
        copy_async(tile + row * kDepth, charges + row * call.dim, depth_left > 0 && row + my_row < charges_left);
#pragma unroll
    for (int digit = 0; digit < Tile::kDigitsServed; ++digit)
#pragma unroll
      for (int row = 0; row < Tile::kQueries; row += kStep)
        if (row + my_row < Tile::kQueries)
          copy_async(tile + (Tile::kCharges + digit * Tile::kQueries + row) * kDepth,
                     digits + (digit * call.batch + row) * call.dim, depth_left > 0 && row + my_row < queries_left);
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
    __syncthreads();  // everybody's copies of this stage are there, and nobody reads the one that is filled next
    if (stage + Tile::kStages - 1 < stages) fill(free_slot);
    commit_copies();
    const uint8_t* tile = shared.stage[slot];
    slot = slot + 1 == Tile::kStages ? 0 : slot + 1;
    free_slot = free_slot + 1 == Tile::kStages ? 0 : free_slot + 1;
#pragma unroll
    for (int step = 0; step < kDepth / 32; ++step) {
      uint32_t charge[Tile::kFragmentsC][4];
#pragma unroll
      for (int c = 0; c < Tile::kFragmentsC; ++c) load_matrix(charge[c], tile + (warp_charge + 16 * c) * kDepth + (lane_charge ^ 32 * step));
      const uint8_t* digit = tile + (Tile::kCharges + warp_digit * Tile::kQueries + warp_query) * kDepth;
#pragma unroll
      for (int q = 0; q < Tile::kFragmentsQ; q += 2) {
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
  constexpr int kSlicesOfWarp = Tile::kQueries / Tile::kWarpsQ / Tile::kSlice, kFragmentsOfSlice = Tile::kSlice / 8;
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
            shared.meet[warp_digit][8 * f + lane % 4 * 2 + i % 2][warp_charge + 16 * c + lane / 4 + (i >= 2 ? 8 : 0)] =
                sum[c][slice % kSlicesOfWarp * kFragmentsOfSlice + f][i];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < Tile::kSlice * Tile::kCharges; at += Tile::kThreads) {
      const int q = at / Tile::kCharges, c = at % Tile::kCharges;
      const int64_t place = query_begin + slice_begin + q, charge = charge_begin + c;
      if (place >= batch || charge >= call.count) continue;
      const int64_t query = Tile::kOfList ? call.open[place] : place;
      if constexpr (Tile::kDigitsServed == 1) {
        call.leading[query * call.count + charge] = shared.meet[0][q][c];
        continue;
      }
      const int64_t first = Tile::kOfList ? call.leading[query * call.count + charge] : shared.meet[0][q][c];
      constexpr int kNext = Tile::kDigitsServed - 2;
      const int64_t product = (first * 256 + shared.meet[kNext < 0 ? 0 : kNext][q][c]) * 256 + shared.meet[kNext + 1][q][c];
      const double norm = split == 0 ? call.divisor * call.divisor * call.sq_norms[charge] : 0.0;
      call.gaps[(split * call.batch + query) * call.count + charge] = norm - 2.0 * call.scale[query] * static_cast<double>(product);
    }
  }
}

template <class Tile>
int64_t gram_tiles(int64_t batch, int64_t count) {
  return ceil_div<int64_t>(batch, Tile::kQueries) * ceil_div<int64_t>(count, Tile::kCharges);
}

/// Parts of N: at least what int32 asks for, and so many that the last wave of blocks (two fit on a multiprocessor) is full.
template <class Tile>
int64_t gram_splits(int64_t batch, int64_t count, int64_t dim) {
  const int64_t least = ceil_div<int64_t>(dim, kLongestSum), tiles = gram_tiles<Tile>(batch, count), slots = 2 * multiprocessors();
  int64_t best = least;
  double fullest = 0;
  for (int64_t splits = least; splits <= least + 3 && (splits == least || dim / splits >= 1024); ++splits) {
    const int64_t blocks = tiles * splits;
    const double full = static_cast<double>(blocks) / static_cast<double>(ceil_div<int64_t>(blocks, slots) * slots);
    if (full > fullest + 0.1) {
      fullest = full;
      best = splits;
    }
  }
  return best;
}

template <class Tile>
void launch_gram(const GramCall& call, Stream stream) {
  launch(gram_kernel<Tile>, gram_tiles<Tile>(call.batch, call.count) * call.splits, Tile::kThreads, sizeof(typename Tile::Shared),
         stream, call);
}

}  // namespace pfgm
