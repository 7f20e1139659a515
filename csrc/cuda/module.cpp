// The Python module pfgm_fast._C_cuda: importing it loads the library, and with it registers the operators of
// the namespace pfgm_fast_cuda. It holds two strings that say how it was built.
#include <Python.h>

#ifndef PFGM_FAST_NVCC
#define PFGM_FAST_NVCC "unknown"
#endif
#ifndef PFGM_FAST_ARCHITECTURES
#define PFGM_FAST_ARCHITECTURES "unknown"
#endif
#if defined(PFGM_FAST_HOPPER)
#define PFGM_FAST_HOPPER_BUILT "yes"
#else
#define PFGM_FAST_HOPPER_BUILT "no"
#endif

namespace {
PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C_cuda",
                          "The CUDA backend of pfgm_fast.",
                          -1,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};
}

PyMODINIT_FUNC PyInit__C_cuda() {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  if (PyModule_AddStringConstant(module, "nvcc", PFGM_FAST_NVCC) < 0 ||
      PyModule_AddStringConstant(module, "architectures", PFGM_FAST_ARCHITECTURES) < 0 ||
      PyModule_AddStringConstant(module, "hopper", PFGM_FAST_HOPPER_BUILT) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
