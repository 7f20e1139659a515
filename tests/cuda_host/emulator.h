// Executes CUDA kernels on the host, for tests: blocks one after another, the threads of a block as fibers
// that really hold their own registers and stop at real barriers. What it checks and cannot check is written
// in docs/cuda.md.
//
// - __syncthreads waits for all living threads of the block and fails where they stand at different source
// lines;
//   a warp's exchange (shuffle, ballot, matrix instruction) waits for its 32 lanes; no runnable thread left
//   is a deadlock.
// - The order in which threads run between barriers is chosen by PFGM_FAST_EMULATOR_ORDER: "forward",
// "backward" or a number,
//   the seed of a shuffle. A result that depends on it shows a missing barrier.
// - Shared memory is filled with 0xff (NaN) before each block and followed by a canary.
// - An asynchronous copy poisons its destination and happens only when it is waited for: the last moment that
// is allowed.
#pragma once

#include <math.h>  // not cmath: the overloads in the global namespace, as in CUDA
#include <ucontext.h>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

namespace pfgm::emulate {

constexpr size_t kStack = 256 * 1024;
constexpr size_t kCanary = 256;
constexpr int kLanes = 32;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct Copy {
  void* to;
  const void* from;
  size_t size, valid;  // bytes, of which the rest is zero
};

/// Sums that products in flight will change; their own memory is poison meanwhile.
struct HeldSums {
  std::vector<int32_t> values;
  int products = 0;
};

struct Fiber {
  ucontext_t start;
  jmp_buf env;
  std::unique_ptr<char[]> stack;
  bool started = false, done = false;
  Index index;
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> pending;
  // tests/cuda_host/hopper.h: matrix instructions of a warpgroup
  bool fenced = false;
  bool copied = false;  // copies were waited for, and no fence has shown them to matrix instructions yet
  std::map<int32_t*, HeldSums> held;  // sums of products in flight
  std::vector<std::function<void()>> open_products;
  std::vector<std::vector<std::function<void()>>> products;  // committed, oldest first
};

/// A barrier in shared memory that counts arrivals and bytes (tests/cuda_host/hopper.h).
struct BarrierState {
  struct Load {
    int64_t bytes;
    std::function<void()> happen;
  };
  int arrivals, missing, phase;
  int64_t announced;
  std::vector<Load> loads;
};

/// Threads that meet: the last to arrive opens the gate for all. Two sets of slots, because a fast thread may
/// write its next value while a slow one still reads the last.
struct Meeting {
  int arrived = 0;
  unsigned generation = 0;
  alignas(16) unsigned char slots[2][kLanes][32];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  std::vector<unsigned char> memory;
  std::function<void()> body;
  jmp_buf scheduler;
  Fiber* current = nullptr;
  Index block_index, block_size, grid_size;
  size_t shared_size = 0;
  int alive = 0, waiting = 0, line = 0;
  unsigned barrier_generation = 0;
  std::exception_ptr failure;
  std::map<const void*, BarrierState> barriers;
  uint64_t events = 0;  // of barriers in shared memory, to tell progress from a deadlock
};

inline Block& block() {
  static Block instance;
  return instance;
}
/// Where addresses in shared memory count from. What a kernel gets begins 128 bytes later: it may rely on no
/// more alignment.
inline unsigned char* shared_window() {
  constexpr uintptr_t kWindow = 1024;
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(block().memory.data()) + kWindow - 1) /
                                          kWindow * kWindow);
}
inline unsigned char* shared_begin() { return shared_window() + 128; }
inline const Index& thread_index() { return block().current->index; }

[[gnu::noinline]] inline void yield() {
  Block& b = block();
  if (_setjmp(b.current->env) == 0) _longjmp(b.scheduler, 1);
}

inline void open_barrier_if_complete(Block& b) {
  if (b.waiting > 0 && b.waiting == b.alive) {
    b.waiting = 0;
    ++b.barrier_generation;
  }
}

inline void barrier(int line) {
  Block& b = block();
  if (b.waiting > 0 && b.line != line)
    throw std::logic_error("threads of a block wait at different barriers: lines " + std::to_string(b.line) +
                           " and " + std::to_string(line));
  b.line = line;
  const unsigned generation = b.barrier_generation;
  ++b.waiting;
  open_barrier_if_complete(b);
  while (block().barrier_generation == generation) yield();
}

/// Give a value to the warp and get the slots of all lanes.
template <class T>
const unsigned char (*exchange(const T& value))[32] {
  static_assert(sizeof(T) <= 32 && std::is_trivially_copyable_v<T>);
  Block& b = block();
  const unsigned thread = b.current->index.x;
  Meeting& meeting = b.warps[thread / kLanes];
  const unsigned generation = meeting.generation;
  std::memcpy(meeting.slots[generation & 1][thread % kLanes], &value, sizeof(T));
  if (++meeting.arrived == kLanes) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
  while (meeting.generation == generation) yield();
  return meeting.slots[generation & 1];
}

template <class T>
T lane_value(const unsigned char (*slots)[32], int lane) {
  T value;
  std::memcpy(&value, slots[lane], sizeof(T));
  return value;
}

[[noreturn]] inline void fiber_main() {
  Block& b = block();
  try {
    b.body();
  } catch (...) {
    if (!b.failure) b.failure = std::current_exception();
  }
  if ((!b.current->products.empty() || !b.current->open_products.empty()) && !b.failure)
    b.failure =
        std::make_exception_ptr(std::logic_error("a thread ended with matrix instructions in flight"));
  if (!b.current->pending.empty() || !b.current->groups.empty())
    for (auto& group : b.current->groups)
      for (auto& copy : group)
        if (copy.valid && !b.failure)
          b.failure = std::make_exception_ptr(std::logic_error("a thread ended with copies in flight"));
  b.current->done = true;
  --b.alive;
  open_barrier_if_complete(b);
  _longjmp(b.scheduler, 1);
}

[[gnu::noinline]] inline void resume(Block& b, Fiber& fiber) {
  b.current = &fiber;
  if (_setjmp(b.scheduler) == 0) {
    if (fiber.started) _longjmp(fiber.env, 1);
    fiber.started = true;
    setcontext(&fiber.start);
  }
}

inline void prepare(Block& b, int threads) {
  if (static_cast<int>(b.fibers.size()) < threads) b.fibers.resize(threads);
  b.warps.assign((threads + kLanes - 1) / kLanes, Meeting{});
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = b.fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.started = fiber.done = false;
    fiber.index = {static_cast<unsigned>(t), 0, 0};
    fiber.groups.clear();
    fiber.pending.clear();
    fiber.products.clear();
    fiber.open_products.clear();
    fiber.fenced = fiber.copied = false;
    fiber.held.clear();
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, reinterpret_cast<void (*)()>(fiber_main), 0);
  }
}

inline std::vector<int> order(int threads, int64_t seed) {
  std::vector<int> result(threads);
  for (int t = 0; t < threads; ++t) result[t] = t;
  const char* asked = std::getenv("PFGM_FAST_EMULATOR_ORDER");
  const std::string name = asked ? asked : "forward";
  if (name == "backward") return {result.rbegin(), result.rend()};
  if (name != "forward") {
    std::mt19937_64 random(std::stoull(name) + static_cast<uint64_t>(seed));
    for (int t = threads - 1; t > 0; --t) std::swap(result[t], result[random() % (t + 1)]);
  }
  return result;
}

inline void run_block(Block& b, int threads, size_t shared, int64_t seed) {
  prepare(b, threads);
  b.memory.assign(shared + kCanary + 1024 + 128, 0xff);
  b.barriers.clear();
  b.shared_size = shared;
  b.alive = threads;
  b.waiting = 0;
  b.failure = nullptr;
  const std::vector<int> turn = order(threads, seed);
  while (b.alive > 0) {
    const unsigned before = b.barrier_generation;
    const int alive = b.alive;
    uint64_t met = 0;
    for (auto& warp : b.warps) met += warp.generation;
    const int waiting = b.waiting;
    const uint64_t events = b.events;
    for (int t : turn)
      if (!b.fibers[t].done) resume(b, b.fibers[t]);
    if (b.failure) break;
    uint64_t now = 0;
    for (auto& warp : b.warps) now += warp.generation;
    if (before == b.barrier_generation && alive == b.alive && met == now && waiting == b.waiting &&
        events == b.events)
      throw std::logic_error(
          "deadlock: the threads of a block wait for each other at barriers or warp exchanges");
  }
  if (b.failure) std::rethrow_exception(b.failure);
  for (const auto& [where, state] : b.barriers)
    if (!state.loads.empty()) throw std::logic_error("a block ended with loads that nobody waited for");
  for (unsigned char* at = shared_begin() + shared; at < b.memory.data() + b.memory.size(); ++at)
    if (*at != 0xff) throw std::logic_error("a kernel wrote behind its shared memory");
}

/// The order of a launch's blocks: as that of threads between barriers, so that a result that depends on it
/// shows.
inline std::vector<int> block_order(int64_t blocks) { return order(static_cast<int>(blocks), blocks); }

/// Check a launch, then run all its blocks, one after another; or let a test's hook run them.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), const char* name, int64_t blocks, int threads, size_t shared,
            const StreamOf* stream, Parameters... parameters) {
  check_launch(name, reinterpret_cast<const void*>(kernel), blocks, threads, shared, stream);
  if (runtime().dry) return;
  if (runtime().hook) {
    const void* const pointers[] = {&parameters...};
    const size_t sizes[] = {sizeof(Parameters)...};
    const int count = sizeof...(Parameters);
    if (runtime().hook(reinterpret_cast<const void*>(kernel), blocks, threads, shared, pointers, sizes,
                       count))
      return;
  }
  Block& b = block();
  b.body = [&] { kernel(parameters...); };
  b.block_size = {static_cast<unsigned>(threads), 1, 1};
  b.grid_size = {static_cast<unsigned>(blocks), 1, 1};
  for (const int i : block_order(blocks)) {
    b.block_index = {static_cast<unsigned>(i), 0, 0};
    run_block(b, threads, shared, i);
  }
}

inline void* shared(size_t size) {
  Block& b = block();
  if (size > b.shared_size)
    throw std::logic_error("the launch gave less shared memory than the kernel's struct");
  return shared_begin();
}

// ---- asynchronous copies
// -----------------------------------------------------------------------------------------------

inline void copy_async(void* to, const void* from, size_t size, size_t valid) {
  if (reinterpret_cast<uintptr_t>(to) % size || (valid && reinterpret_cast<uintptr_t>(from) % size))
    throw std::logic_error("an asynchronous copy is misaligned");
  std::memset(to, 0xff, size);
  block().current->pending.push_back({to, from, size, valid});
}
inline void commit_copies() {
  Fiber& fiber = *block().current;
  fiber.groups.push_back(std::move(fiber.pending));
  fiber.pending.clear();
}
inline void wait_copies(size_t in_flight) {
  Fiber& fiber = *block().current;
  while (fiber.groups.size() > in_flight) {
    fiber.copied |= !fiber.groups.front().empty();
    for (const Copy& copy : fiber.groups.front()) {
      std::memset(copy.to, 0, copy.size);
      if (copy.valid) std::memcpy(copy.to, copy.from, copy.valid);
    }
    fiber.groups.erase(fiber.groups.begin());
  }
}

// ---- number types
// ------------------------------------------------------------------------------------------------------

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
inline float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}
inline float to_float(Half value) {
  const int sign = value.bits >> 15, exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return sign ? -magnitude : magnitude;
}

// ---- approximations
// ------------------------------------------------------------------------------------------------------

/// 1/√a as rsqrt.approx.ftz.f32 may have it: off by up to 2^-22.9 (PTX ISA), here by as much, up or down.
inline float reciprocal_root(float a) {
  if (a < std::numeric_limits<float>::min()) return INFINITY;
  uint32_t bits;
  std::memcpy(&bits, &a, 4);
  const double error = std::exp2(-22.9) * (bits * 0x9e3779b9u >> 31 ? 1 : -1);
  return static_cast<float>((1 + error) / std::sqrt(static_cast<double>(a)));
}
inline double reciprocal_root(double a) { return 1 / std::sqrt(a); }

}  // namespace pfgm::emulate

#define threadIdx (::pfgm::emulate::thread_index())
#define blockIdx (::pfgm::emulate::block().block_index)
#define blockDim (::pfgm::emulate::block().block_size)
#define gridDim (::pfgm::emulate::block().grid_size)
#define __syncthreads() ::pfgm::emulate::barrier(__LINE__)

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  using namespace pfgm::emulate;
  const int lane = static_cast<int>(thread_index().x % kLanes);
  return lane_value<T>(exchange(value), lane ^ mask);
}
template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return pfgm::emulate::lane_value<T>(pfgm::emulate::exchange(value), source % pfgm::emulate::kLanes);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  const auto slots = pfgm::emulate::exchange(predicate);
  unsigned result = 0;
  for (int lane = 0; lane < pfgm::emulate::kLanes; ++lane)
    if (pfgm::emulate::lane_value<int>(slots, lane)) result |= 1u << lane;
  return result;
}
inline void __threadfence() {}
inline void __syncwarp() { pfgm::emulate::exchange(0); }
/// Threads take turns, so a plain addition is atomic here.
inline int atomicAdd(int* address, int value) {
  const int before = *address;
  *address += value;
  return before;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
