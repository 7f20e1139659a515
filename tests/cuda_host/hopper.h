// Hopper's barriers, tensor maps and warpgroup matrix instructions on the host (kernels/hopper.cuh), by the
// PTX ISA's sections "mbarrier", "cp.async.bulk.tensor", "Swizzling modes" and "wgmma". A layout misread here
// and there alike would not show.
//
// What it is strict about: a load's target is poison until a barrier's phase ends, and the load happens only
// then; a matrix instruction reads shared memory and registers and writes its sums only when it is waited
// for, so that a stage that is given back too early shows, or a register that is written too early; its sums
// are poison meanwhile; copies of threads that matrix instructions may not see, for want of a fence; a phase
// that is announced too few bytes, a wait that nobody ends (a deadlock), sums without a fence before.
#pragma once

#include "emulator.h"

namespace pfgm::emulate {

inline uint32_t shared_address(const void* pointer) {
  const auto* begin = shared_window();
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - begin);
}
/// Where a byte of a tile with the 128-byte swizzle lies: bits 4 to 6 of its address are crossed with bits 7
/// to 9.
inline uint32_t swizzled_address(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// ---- barriers and tensor maps
// ------------------------------------------------------------------------------------------

struct TensorMap {
  const unsigned char* base;
  int64_t rows, width;  // bytes
  int tile_rows, tile_width;
};
inline TensorMap make_tensor_map(const void* base, int64_t rows, int64_t width, int tile_rows,
                                 int tile_width) {
  if (width % 16 || reinterpret_cast<uintptr_t>(base) % 16)
    throw std::logic_error("a tensor map needs rows of 16 bytes, aligned");
  if (tile_rows > 256 || tile_width != 128)
    throw std::logic_error("a tensor map's tile is too large for the 128-byte swizzle");
  return {static_cast<const unsigned char*>(base), rows, width, tile_rows, tile_width};
}

/// Lies in shared memory; which phase it is in is all that a kernel may know of it.
struct Barrier {
  uint64_t opaque;
};

inline BarrierState& state_of(Barrier* barrier) {
  auto& all = block().barriers;
  const auto found = all.find(barrier);
  if (found == all.end())
    throw std::logic_error("a barrier in shared memory is used before it is initialised");
  return found->second;
}
/// Ends the phase if all have arrived and the announced bytes are those of the loads, which happen now.
inline void end_phase_if_complete(BarrierState& state) {
  if (state.missing > 0) return;
  int64_t bytes = 0;
  for (const auto& load : state.loads) bytes += load.bytes;
  if (bytes > state.announced)
    throw std::logic_error("a barrier's phase gets more bytes than were announced");
  if (bytes < state.announced) return;
  for (const auto& load : state.loads) load.happen();
  state.loads.clear();
  state.announced = 0;
  state.missing = state.arrivals;
  ++state.phase;
  ++block().events;
}
inline void barrier_init(Barrier* barrier, int arrivals) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8) throw std::logic_error("a barrier is misaligned");
  block().barriers[barrier] = BarrierState{arrivals, arrivals, 0, 0, {}};
}
inline void barriers_ready() {}
inline void barrier_expect(Barrier* barrier, int bytes) {
  BarrierState& state = state_of(barrier);
  if (state.missing == 0) throw std::logic_error("more arrive at a barrier than it waits for");
  state.announced += bytes;
  --state.missing;
  ++block().events;
  if (state.announced == 0) end_phase_if_complete(state);
}
inline void barrier_arrive(Barrier* barrier) {
  if (block().current->copied)
    throw std::logic_error("a thread arrives with copies that matrix instructions may not see: no fence");
  barrier_expect(barrier, 0);
}
inline void proxy_fence() { block().current->copied = false; }
inline void barrier_wait(Barrier* barrier, int parity) {
  for (;;) {
    BarrierState& state = state_of(barrier);
    if ((state.phase & 1) == parity) end_phase_if_complete(state);
    if ((state.phase & 1) != parity) return;
    yield();
  }
}
inline void load_tile(void* to, const TensorMap* map, int64_t row, int64_t column, Barrier* barrier) {
  const uint32_t address = shared_address(to);
  if (address % 128) throw std::logic_error("a tensor map's tile is misaligned");
  const size_t bytes = static_cast<size_t>(map->tile_rows) * map->tile_width;
  std::memset(to, 0xff, bytes);
  const TensorMap& from = *map;
  state_of(barrier).loads.push_back(
      {static_cast<int64_t>(bytes), [=] {
         for (int r = 0; r < from.tile_rows; ++r)
           for (int c = 0; c < from.tile_width; c += 16) {
             unsigned char* target = shared_window() + swizzled_address(address + r * from.tile_width + c);
             std::memset(target, 0, 16);
             if (row + r < from.rows && column + c < from.width)
               std::memcpy(target, from.base + (row + r) * from.width + column + c, 16);
           }
       }});
  ++block().events;
}

// ---- matrix instructions of a warpgroup
// ----------------------------------------------------------------------------------

/// Row `row`, bytes 0 to 31, of the tile that a descriptor names (K-major, 128-byte swizzle).
inline void tile_row(uint64_t descriptor, int row, unsigned char (&out)[32]) {
  if (descriptor >> 62 != 1) throw std::logic_error("a matrix descriptor without the 128-byte swizzle");
  const uint32_t begin = static_cast<uint32_t>(descriptor & 0x3fff) << 4,
                 step = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  for (int c = 0; c < 32; c += 16)
    std::memcpy(out + c, shared_window() + swizzled_address(begin + row / 8 * step + row % 8 * 128 + c), 16);
}

inline void group_fence() { block().current->fenced = true; }
inline void group_commit() {
  Fiber& fiber = *block().current;
  fiber.products.push_back(std::move(fiber.open_products));
  fiber.open_products.clear();
}
/// The warp's lanes leave it together, as the instruction has them.
inline void group_wait(size_t in_flight) {
  Fiber& fiber = *block().current;
  if (fiber.products.size() > in_flight) {  // others go on meanwhile, and may spoil what is still to be read
    ++block().events;
    yield();
  }
  while (fiber.products.size() > in_flight) {
    for (const auto& product : fiber.products.front()) product();
    fiber.products.erase(fiber.products.begin());
  }
  for (auto at = fiber.held.begin(); at != fiber.held.end();) {
    const auto& [sums, held] = *at;
    if (held.products == 0) std::memcpy(sums, held.values.data(), held.values.size() * sizeof(int32_t));
    at = held.products == 0 ? fiber.held.erase(at) : std::next(at);
  }
  fiber.fenced = false;
  exchange(
      0);  // .sync: a warp's threads wait together, so that none gives back what another has still to read
}

/// Puts a product of this thread in flight: multiply(sums) happens when it is waited for.
template <class Multiply>
void put_in_flight(int32_t* sum, int count, Multiply multiply) {
  Fiber& fiber = *block().current;
  if (!fiber.fenced) throw std::logic_error("a matrix instruction of a warpgroup without a fence before");
  HeldSums& held = fiber.held[sum];
  if (held.products++ == 0) {
    held.values.assign(sum, sum + count);
    std::memset(sum, 0xff, count * sizeof(int32_t));
  }
  fiber.open_products.push_back([&held, multiply] {
    multiply(held.values.data());
    --held.products;
  });
}

/// This thread's part of a product m64nNk32: rows 16 w + lane/4 and 8 more, whose 32 numbers are `left`,
/// columns 8 c + 2 (lane % 4) and the next, unsigned bytes in shared memory.
template <class Left>
void multiply_rows(int32_t* sums, int count, const Left (&left)[2][32], uint64_t b, bool keep, int lane) {
  unsigned char right[32];
  for (int c = 0; c < count / 4; ++c)
    for (int i = 0; i < 2; ++i) {
      tile_row(b, 8 * c + 2 * (lane % 4) + i, right);
      for (int half = 0; half < 2; ++half) {
        int64_t total = keep ? sums[4 * c + 2 * half + i] : 0;
        for (int k = 0; k < 32; ++k) total += static_cast<int64_t>(left[half][k]) * right[k];
        if (total != static_cast<int32_t>(total))
          throw std::logic_error("a tensor core's int32 sum overflows");
        sums[4 * c + 2 * half + i] = static_cast<int32_t>(total);
      }
    }
}
/// A in shared memory, signed bytes.
template <int kSums>
void multiply_group(int32_t (&sum)[kSums], uint64_t a, uint64_t b, bool keep) {
  const int lane = static_cast<int>(thread_index().x % kLanes),
            warp = static_cast<int>(thread_index().x / kLanes % 4);
  put_in_flight(sum, kSums, [=](int32_t* sums) {
    unsigned char bytes[32];
    int8_t left[2][32];
    for (int half = 0; half < 2; ++half) {
      tile_row(a, 16 * warp + lane / 4 + 8 * half, bytes);
      std::memcpy(left[half], bytes, 32);
    }
    multiply_rows(sums, kSums, left, b, keep, lane);
  });
}
/// A in the warp's registers, unsigned bytes, 16 rows a warp in the layout of mma.m16n8k32 (tensor_core.h).
/// They are read when the product is waited for: what has changed them meanwhile shows.
template <int kSums>
void multiply_group(int32_t (&sum)[kSums], const uint32_t (&a)[4], uint64_t b, bool keep) {
  const int lane = static_cast<int>(thread_index().x % kLanes);
  const uint32_t* registers = a;
  put_in_flight(sum, kSums, [=](int32_t* sums) {
    struct Registers {
      uint32_t at[4];
    } mine;
    std::memcpy(&mine, registers, sizeof(mine));
    const auto all = exchange(mine);
    uint8_t left[2][32];
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < 32; ++k)
        left[half][k] = static_cast<uint8_t>(
            lane_value<Registers>(all, lane / 4 * 4 + k % 16 / 4).at[half + 2 * (k >= 16)] >> 8 * (k % 4));
    multiply_rows(sums, kSums, left, b, keep, lane);
  });
}

}  // namespace pfgm::emulate
