// The kernels of the first product by themselves, and what the processor's multipliers can do: built and called by bench_product.py.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "../csrc/cpu/aligned.h"
#include "../csrc/cpu/kernels/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

constexpr int kChains = 16;  // independent sums: more than latency times units

#if defined(__x86_64__)
#define PFGM_CHAINS(NAME, TARGET, TYPE, START, STEP, PER_STEP)                    \
  __attribute__((target(TARGET))) double NAME(long steps) {                       \
    TYPE sum[kChains];                                                            \
    _Pragma("GCC unroll 16") for (int i = 0; i < kChains; ++i) sum[i] = START;    \
    const double began = seconds();                                               \
    for (long step = 0; step < steps; ++step) {                                   \
      _Pragma("GCC unroll 16") for (int i = 0; i < kChains; ++i) {                \
        sum[i] = STEP;                                                            \
        asm volatile("" : "+v"(sum[i]));                                          \
      }                                                                           \
    }                                                                             \
    return steps * double(kChains) * PER_STEP / (seconds() - began);              \
  }

PFGM_CHAINS(fma_avx512, "avx512f", __m512, _mm512_set1_ps(1.0f), _mm512_fmadd_ps(sum[i], _mm512_set1_ps(0.99f), _mm512_set1_ps(0.01f)), 32)
PFGM_CHAINS(fma_avx2, "avx2,fma", __m256, _mm256_set1_ps(1.0f), _mm256_fmadd_ps(sum[i], _mm256_set1_ps(0.99f), _mm256_set1_ps(0.01f)), 16)
PFGM_CHAINS(bytes_avx512, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512(), _mm512_dpbusd_epi32(sum[i], _mm512_set1_epi8(3), _mm512_set1_epi8(5)), 128)
// as dot_bytes of csrc/cpu/kernels/avx2.cpp: three instructions
PFGM_CHAINS(bytes_avx2, "avx2", __m256i, _mm256_setzero_si256(), _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_maddubs_epi16(sum[i], _mm256_set1_epi8(5)), _mm256_set1_epi16(1))), 64)

// tiles of AMX: eight independent sums, 16 cycles each
__attribute__((target("amx-tile,amx-int8"))) double bytes_amx(long steps) {
  alignas(64) unsigned char configuration[64] = {1};
  for (int tile = 0; tile < 8; ++tile) configuration[16 + 2 * tile] = 64, configuration[48 + tile] = 16;
  _tile_loadconfig(configuration);
  const double began = seconds();
  for (long step = 0; step < steps; ++step) {
    _tile_dpbusd(0, 6, 7);
    _tile_dpbusd(1, 6, 7);
    _tile_dpbusd(2, 6, 7);
    _tile_dpbusd(3, 6, 7);
  }
  const double took = seconds() - began;
  _tile_release();
  return steps * 4.0 * 2 * 16 * 16 * 64 / took;
}
#endif

}  // namespace

extern "C" {

/// Operations a second (a multiplication and an addition are two) of all threads together; 0 where there is no such instruction.
double peak(int bytes) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx512f"), vnni = __builtin_cpu_supports("avx512vnni");
  if (!wide && !__builtin_cpu_supports("fma")) return 0;
  const bool amx = std::strcmp(pfgm::kernels().name, "amx") == 0;
  double total = 0;
#pragma omp parallel reduction(+ : total)
  {
    double best = 0;
    for (int round = 0; round < 5; ++round)
      best = std::max(best, bytes ? amx    ? bytes_amx(200000)
                                    : vnni ? bytes_avx512(1000000)
                                           : bytes_avx2(1000000)
                            : wide ? fma_avx512(1000000)
                                   : fma_avx2(1000000));
    total += best;
  }
  return total;
#else
  return 0;
#endif
}

/// The largest digit that bytes are multiplied with here; 0 where they are not.
int largest_digit() { return pfgm::kernels().largest_digit; }
const char* name() { return pfgm::kernels().name; }

/// u (rows, M rounded up to a tile) of x (rows, dim) and charges (M, dim), floats or bytes, as csrc/cpu/large.cpp calls it.
void product(const float* x, const void* charges, int bytes, long rows, long count, long dim, float* u) {
  const pfgm::Kernels& k = pfgm::kernels();
  const pfgm::ChargeView of{charges, bytes != 0, dim, 127.5f, -1.0f, 1 / 127.5f, nullptr};
  const long tiles = (count + k.tile_charges - 1) / k.tile_charges, stride = tiles * k.tile_charges;
  pfgm::Array<float> packed((rows + k.tile_rows) * dim), norms(stride);
  k.pack_rows(x, rows, dim, packed.data());
#pragma omp parallel
  {
    pfgm::Array<float> scratch(k.gemm_scratch(rows));
#pragma omp for schedule(static)
    for (long tile = 0; tile < tiles; ++tile)
      k.distance_gemm(packed.data(), rows, of, count, tile * k.tile_charges, (tile + 1) * k.tile_charges, 1.0f, norms.data(), u, stride,
                scratch.data());
  }
}

/// The same for one signed digit of x and bytes: exact sums.
void distance_gemm_digits(const int8_t* x, const void* charges, long rows, long count, long dim, int32_t* sums) {
  const pfgm::Kernels& k = pfgm::kernels();
  const pfgm::ChargeView of{charges, true, dim, 127.5f, -1.0f, 1 / 127.5f, nullptr};
  const long tiles = (count + k.tile_charges - 1) / k.tile_charges, stride = tiles * k.tile_charges;
  pfgm::Array<int32_t> packed(k.packed_digits(rows, dim));
  std::vector<const int8_t*> digits(rows);
  for (long i = 0; i < rows; ++i) digits[i] = x + i * dim;
  k.pack_digits(digits.data(), rows, dim, packed.data());
#pragma omp parallel
  {
    pfgm::Array<int32_t> scratch(k.digit_scratch(rows, dim));
#pragma omp for schedule(static)
    for (long tile = 0; tile < tiles; ++tile)
      k.distance_gemm_digits(packed.data(), rows, of, count, tile * k.tile_charges, (tile + 1) * k.tile_charges, sums, stride, scratch.data());
  }
}
}
