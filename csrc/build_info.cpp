// What the compiled library says of itself: the only pybind11 code, and the module that registers csrc/cpu
// when loaded.
#undef TORCH_TARGET_VERSION  // this file uses nothing of PyTorch, whose copy of pybind11 may refuse the
                             // stable ABI's switch
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/kernels/table.h"

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

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() =
      "The C++ backend of pfgm_fast; importing it registers the operators of the namespace pfgm_fast_cpu.";
  m.def("build_info", [] {
    pybind11::dict info;
    info["compiler"] = compiler();
    info["torch_abi"] = "stable, 2.10 and later";
    info["kernels"] =
        pfgm::kernels()
            .name;  // the table in use: the best for this processor, or what PFGM_FAST_CPU_ISA asks for
    return info;
  });
}
