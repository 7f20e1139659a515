// The kernels for AVX-512 with VNNI: sixteen lanes, thirty-two registers, four byte products a lane.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "table.h"

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#include <immintrin.h>
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own header: undefined lanes, meant to be
#include <immintrin.h>
#pragma GCC diagnostic pop
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#endif
namespace pfgm::avx512 {
namespace {
#include "avx512.inl"
}  // namespace
#include "all.inl"
Kernels make_table() { return table_named("avx512"); }
}  // namespace pfgm::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
namespace pfgm::avx512 {
Kernels make_table() { return {}; }
}  // namespace pfgm::avx512
#endif
