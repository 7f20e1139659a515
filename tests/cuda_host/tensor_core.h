// The matrix instructions of kernels/tensor_core.cuh on the host, by the fragment layouts of the PTX ISA
// (section "Matrix fragments for mma.m16n8k32" and "ldmatrix"). A layout misread here and there alike would
// not show.
#pragma once

#include "emulator.h"

namespace pfgm::emulate {

/// ldmatrix.x4: lane 8 m + i names row i (16 bytes) of matrix m; a lane receives 4 bytes of row lane/4 of
/// each matrix.
inline void load_matrix(uint32_t (&fragment)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16)
    throw std::logic_error("ldmatrix: a row is not aligned to 16 bytes");
  const auto rows = exchange(row);
  const int lane = static_cast<int>(thread_index().x % kLanes);
  for (int m = 0; m < 4; ++m)
    std::memcpy(&fragment[m],
                static_cast<const char*>(lane_value<const void*>(rows, 8 * m + lane / 4)) + 4 * (lane % 4),
                4);
}

struct Fragments {
  uint32_t a[4], b[2];
};

/// mma.m16n8k32, A unsigned bytes, B signed or unsigned bytes, int32 sums that must not overflow.
template <bool kSigned>
void multiply(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const auto all = exchange(Fragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const int lane = static_cast<int>(thread_index().x % kLanes), group = lane / 4, quad = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i >= 2 ? 8 : 0), column = 2 * quad + i % 2;
    int64_t sum = c[i];
    for (int k = 0; k < 32; ++k) {
      // A(row, k): lane (row % 8) * 4 + (k % 16) / 4, register (row >= 8) + 2 (k >= 16), byte k % 4
      const auto from_a = lane_value<Fragments>(all, row % 8 * 4 + k % 16 / 4);
      const uint8_t left = static_cast<uint8_t>(from_a.a[(row >= 8) + 2 * (k >= 16)] >> (8 * (k % 4)));
      // B(k, column): lane column * 4 + (k % 16) / 4, register k >= 16, byte k % 4
      const auto from_b = lane_value<Fragments>(all, column * 4 + k % 16 / 4);
      const uint8_t right = static_cast<uint8_t>(from_b.b[k >= 16] >> (8 * (k % 4)));
      sum += static_cast<int64_t>(left) * (kSigned ? static_cast<int8_t>(right) : right);
    }
    if (sum != static_cast<int32_t>(sum)) throw std::logic_error("a tensor core's int32 sum overflows");
    c[i] = static_cast<int32_t>(sum);
  }
}

inline uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>(both >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
  return result;
}

}  // namespace pfgm::emulate
