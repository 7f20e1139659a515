// What the compiled library says of itself: the only pybind11 code, and the module that registers csrc/cpu when loaded.
#undef TORCH_TARGET_VERSION  // this file uses nothing of PyTorch, whose copy of pybind11 may refuse the stable ABI's switch
#include <pybind11/pybind11.h>

#include <string>

#ifndef PFGM_FAST_CUDA_PLAN
#define PFGM_FAST_CUDA_PLAN "not recorded"
#endif

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::string best_instructions() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512vnni") ? "avx512-vnni" : "avx512";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
  return "baseline";
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "The C++ backend of pfgm_fast; importing it registers the operators of the namespace pfgm_fast_cpu.";
  m.def("build_info", [] {
    pybind11::dict info;
    info["compiler"] = compiler();
    info["torch_abi"] = "stable, 2.10 and later";
    info["cpu"] = best_instructions();
    info["cuda"] = PFGM_FAST_CUDA_PLAN;  // what setup.py decided of the CUDA backend, and why
    return info;
  });
}
