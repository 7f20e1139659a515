// Which instruction set: decided once, at run time.
#include <cstdlib>
#include <cstring>

#include "table.h"

namespace pfgm {
namespace {

Kernels choose() {
#if defined(__x86_64__) && defined(__GNUC__)
  const char* wanted = std::getenv("PFGM_FAST_CPU_ISA");
  const auto allowed = [&](const char* name) { return wanted == nullptr || std::strcmp(wanted, name) == 0; };
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  const bool amx = allowed("amx"), avx512 = amx || allowed("avx512"), avx2 = avx512 || allowed("avx2");
  if (has_avx512 && amx && amx::tiles_serve()) return amx::make_table();
  if (has_avx512 && avx512) return avx512::make_table();
  if (has_avx2 && avx2) return avx2::make_table();
#endif
  return portable::make_table();
}

}  // namespace

const Kernels& kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

}  // namespace pfgm
