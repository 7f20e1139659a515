// The kernels for AMX: those of AVX-512, and digits against bytes by its tiles (digit_tile_amx.inl).
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "table.h"

#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 11))
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push(                                                                            \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8"))), \
    apply_to = function)
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own header: undefined lanes, meant to be
#include <immintrin.h>
#pragma GCC diagnostic pop
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8,prefer-vector-width=512")
#endif
namespace pfgm::amx {
namespace {
#include "avx512.inl"
// clang-format off: in this order, each uses those above it
#include "vectors.inl"
#include "transpose.inl"
#include "ahead.inl"
#include "digit_tile_amx.inl"
#include "distance_gemm_digits.inl"
#include "weighted_sum_digits.inl"
// clang-format on
}  // namespace
Kernels make_table() {
  Kernels table = avx512::make_table();
  table.name = "amx";
  table.tile_rows = kDigitRows;
  table.tile_charges *= 2;  // whole tiles of both
  add_digit_kernels(table);
  return table;
}
}  // namespace pfgm::amx
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
namespace pfgm::amx {
bool tiles_serve() {
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;  // leaf 7, EDX
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kInt8) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
}  // namespace pfgm::amx
#else
namespace pfgm::amx {
bool tiles_serve() { return false; }
Kernels make_table() { return {}; }
}  // namespace pfgm::amx
#endif
