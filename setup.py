"""Builds the compiled backends: `_C` (csrc/cpu, a C++ compiler) and `_C_cuda` (csrc/cuda, nvcc and a CUDA PyTorch).

What is built is decided by one pure function, `plan`, and printed. It never asks whether a GPU is present: machines that
build images have none. PFGM_FAST_CUDA=1 builds the CUDA backend or fails; 0 leaves it out. PFGM_FAST_CPU=0 leaves out the
C++ backend, 1 builds it or fails. TORCH_CUDA_ARCH_LIST names the architectures, as everywhere with PyTorch.

A library that does not compile is left out, alone, and the package still installs. What became of each is written into the package
(pfgm_fast/_build.json), because pip shows nothing of a build that succeeds: `pfgm-fast info` and the first call tell it.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9+PTX;9.0a"
"""9.0a holds Hopper's own instructions and runs on no other GPU; later ones compile the PTX of 8.9 when they load it."""
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"


@dataclass(frozen=True)
class Plan:
    """What will be built, and why. `error` stops the build."""

    cpu: bool
    cpu_reason: str
    cuda: bool
    cuda_reason: str
    architectures: str = ""
    error: str | None = None

    def hopper(self) -> bool:
        """Whether Hopper's own instructions are compiled in (csrc/cuda/kernels/hopper.cuh): where 9.0 is built as 9.0a."""
        names = {name.removesuffix("+PTX") for name in self.architectures.split(";")}
        return self.cuda and "9.0a" in names and "9.0" not in names

    def outcome(self) -> dict[str, dict[str, str]]:
        """Backend → state ("built" or "not built", before anything failed) and reason, as pfgm_fast/_build.json has it."""
        return {
            "cpu": {"state": "built" if self.cpu else "not built", "reason": self.cpu_reason},
            "cuda": {"state": "built" if self.cuda else "not built", "reason": self.cuda_reason},
        }

    def report(self) -> str:
        lines = [
            f"pfgm_fast: C++ backend: {'yes' if self.cpu else 'no'} ({self.cpu_reason})",
            f"pfgm_fast: CUDA backend: {'yes' if self.cuda else 'no'} ({self.cuda_reason})",
        ]
        return "\n".join(lines)


def plan(
    env: Mapping[str, str],
    torch_cuda: str | None,  # torch.version.cuda, None for a CPU build of PyTorch
    compiler: str | None,  # path of the C++ compiler
    cuda_home: str | None,
    nvcc: str | None,  # release of nvcc, "13.0"; None where there is none
    device_architectures: str = "",  # of the GPUs PyTorch sees, "9.0"
) -> Plan:
    """Decide what to build from what was found; no side effects."""
    if compiler is None:
        reason = "no C++ compiler found: install one (Debian: apt-get install g++) and reinstall pfgm-fast"
        error = f"PFGM_FAST_CUDA=1, but {reason}" if env.get("PFGM_FAST_CUDA") == "1" else None
        return Plan(False, reason, False, "needs the C++ compiler", error=error)
    cpu = env.get("PFGM_FAST_CPU", "1") != "0"
    cpu_reason = compiler if cpu else "PFGM_FAST_CPU=0"
    missing = _missing_for_cuda(env, torch_cuda, cuda_home, nvcc, device_architectures)
    if missing is None:
        architectures, whence = _architectures(env, device_architectures)
        reason = f"nvcc {nvcc} for PyTorch's CUDA {torch_cuda}, architectures {architectures} ({whence})"
        return Plan(cpu, cpu_reason, True, reason, architectures, _too_old(architectures))
    forced = env.get("PFGM_FAST_CUDA") == "1"
    return Plan(cpu, cpu_reason, False, missing, error=f"PFGM_FAST_CUDA=1, but {missing}" if forced else None)


def _architectures(env: Mapping[str, str], device_architectures: str) -> tuple[str, str]:
    """The architectures, and where they come from."""
    listed = env.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").strip(";")
    if listed:
        return listed, "TORCH_CUDA_ARCH_LIST"
    if device_architectures:
        names = ["9.0a" if name == "9.0" else name for name in device_architectures.split(";")]
        return ";".join(names), "the GPUs of this machine"
    return DEFAULT_ARCHITECTURES, "the default: no GPU here; TORCH_CUDA_ARCH_LIST chooses others"


def _too_old(architectures: str) -> str | None:
    """What to say where an architecture lacks the instructions that the kernels are made of, or None."""
    old = [
        name
        for name in architectures.split(";")
        if re.fullmatch(r"\d+\.\d+[a-z]?(\+PTX)?", name) and int(name.split(".")[0]) < 8
    ]
    if not old:
        return None
    return (
        f"the CUDA kernels need compute capability 8.0 (Ampere) or later, TORCH_CUDA_ARCH_LIST has {', '.join(old)}: "
        "take it out, or set PFGM_FAST_CUDA=0 (the Triton backend may still serve that GPU)"
    )


def _missing_for_cuda(
    env: Mapping[str, str],
    torch_cuda: str | None,
    cuda_home: str | None,
    nvcc: str | None,
    device_architectures: str,
) -> str | None:
    if env.get("PFGM_FAST_CUDA") == "0":
        return "PFGM_FAST_CUDA=0"
    if torch_cuda is None:
        return "this PyTorch is a CPU build; install a CUDA build of PyTorch and use --no-build-isolation"
    if cuda_home is None or nvcc is None:
        return f"nvcc not found; install the CUDA toolkit {torch_cuda} and set CUDA_HOME"
    if (
        env.get("PFGM_FAST_CUDA") != "1"
        and not env.get("TORCH_CUDA_ARCH_LIST")
        and _only_old(device_architectures)
    ):
        return (
            f"this machine's GPU has compute capability {device_architectures}, the kernels need 8.0 or later"
        )
    if nvcc.split(".")[0] != torch_cuda.split(".")[0]:
        return (
            f"nvcc is {nvcc}, PyTorch was built with CUDA {torch_cuda}: the major versions must agree; "
            f"point CUDA_HOME to a toolkit {torch_cuda.split('.')[0]}.x or install the matching PyTorch"
        )
    if not any((ROOT / "csrc" / "cuda").glob("*.cu")):
        return "this source tree holds no CUDA sources"
    return None


def _only_old(device_architectures: str) -> bool:
    names = [name for name in device_architectures.split(";") if name]
    return bool(names) and all(int(name.split(".")[0]) < 8 for name in names)


def nvcc_release(cuda_home: str | None) -> str | None:
    """The release that `nvcc --version` names, or None."""
    nvcc = Path(cuda_home or "") / "bin" / "nvcc"
    if not cuda_home or not nvcc.exists():
        return None
    text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else None


def toolkit_home(found: str | None) -> str | None:
    """The toolkit's folder. PyTorch takes it from where `nvcc` lies on the PATH; where that is a wrapper that calls another
    nvcc, no headers and libraries are beside it, and nvcc itself says where they are (TOP in its dry run)."""
    if found is None or (Path(found) / "include" / "cuda_runtime.h").exists():
        return found
    nvcc = Path(found) / "bin" / "nvcc"
    if not nvcc.exists():
        return found
    command = [str(nvcc), "--dryrun", "-E", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", said.stdout + said.stderr, re.MULTILINE)
    return str(Path(top.group(1).strip()).resolve()) if top else found


def compiler_path(env: Mapping[str, str]) -> str | None:
    return (
        shutil.which(env.get("CXX", "").split(" ")[0] or "g++")
        or shutil.which("c++")
        or shutil.which("clang++")
    )


# -Wno-psabi: vectors are passed between functions of one file only, never through an interface
CPU_FLAGS = ("-O3", "-std=c++20", STABLE_ABI, "-ffp-contract=off", "-Wno-psabi")
"""Of every compiler (GCC 11, Clang 14 and later). Threads are PyTorch's: nothing here needs OpenMP. An instruction set is named
in the source that is written for it."""


def _sources(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(pattern))


def _extensions(decided: Plan, nvcc: str | None) -> list:
    from torch.utils import cpp_extension

    extensions = []
    if decided.cpu:
        extensions.append(
            cpp_extension.CppExtension(
                "pfgm_fast._C",
                ["csrc/build_info.cpp", *_sources("cpu", "**/*.cpp")],
                depends=[*_sources("cpu", "**/*.h"), *_sources("cpu", "**/*.inl")],
                extra_compile_args=[*CPU_FLAGS],
            )
        )
    if decided.cuda:
        hopper = ["-DPFGM_FAST_HOPPER"] if decided.hopper() else []
        said = [f'-DPFGM_FAST_NVCC="{nvcc}"', f'-DPFGM_FAST_ARCHITECTURES="{decided.architectures}"']
        flags = ["-O3", "-std=c++20", STABLE_ABI, "-DUSE_CUDA", *hopper]
        extensions.append(
            cpp_extension.CUDAExtension(
                "pfgm_fast._C_cuda",
                ["csrc/cuda/module.cpp", *_sources("cuda", "*.cu")],
                depends=[*_sources("cuda", "*.h"), *_sources("cuda", "**/*.cuh")],
                extra_compile_args={
                    "cxx": [*flags, *said],
                    "nvcc": [*flags, "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden"],
                },
            )
        )
    return extensions


LIBRARIES = {"pfgm_fast._C": "cpu", "pfgm_fast._C_cuda": "cuda"}
"""Extension module → backend."""


def _commands(outcome: dict[str, dict[str, str]]) -> dict[str, type]:
    """The build commands that leave out what fails, and write down what became of everything."""
    from setuptools.command.build_py import build_py
    from torch.utils.cpp_extension import BuildExtension

    def write(folder: str | Path) -> None:
        package = Path(folder) / "pfgm_fast"
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(outcome, indent=2) + "\n")

    class BuildLibraries(BuildExtension):
        """Each library is built by itself: one that fails, unless it was asked for by force, takes no other with it."""

        def build_extensions(self) -> None:
            compiler, wanted, built = self.compiler, self.extensions, []
            for extension in wanted:
                backend = LIBRARIES[extension.name]
                self.compiler, self.extensions = copy.copy(compiler), [extension]
                try:
                    super().build_extensions()
                except Exception as error:
                    if os.environ.get(f"PFGM_FAST_{backend.upper()}") == "1":
                        raise
                    self._failed(backend, error)
                else:
                    built.append(extension)
            self.extensions = built

        def _failed(self, backend: str, error: Exception) -> None:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            outcome[backend] = {"state": "failed", "reason": reason}
            print(
                f"\nWARNING pfgm_fast: the {backend} backend could not be built: {reason}\n"
                f"The package works without it; `pfgm-fast info` says what is left. PFGM_FAST_{backend.upper()}=1 makes this an "
                "error.\n",
                file=sys.stderr,
                flush=True,
            )

        def run(self) -> None:
            super().run()
            if self.inplace:  # a library of older sources must not stay in the place of one that failed
                for name, backend in LIBRARIES.items():
                    if outcome[backend]["state"] == "failed":
                        Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)
            write(ROOT if self.inplace else self.build_lib)

    class BuildPython(build_py):
        """Where nothing is compiled, `build_ext` does not run."""

        def run(self) -> None:
            super().run()
            write(ROOT if getattr(self, "editable_mode", False) else self.build_lib)

    return {"build_ext": BuildLibraries, "build_py": BuildPython}


def main() -> None:
    from setuptools import setup

    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        sys.exit(
            "pfgm_fast: PyTorch is not importable in the build environment. Install PyTorch first, then\n"
            "    pip install --no-build-isolation pfgm-fast"
        )

    cuda_home = cpp_extension.CUDA_HOME = toolkit_home(cpp_extension.CUDA_HOME)
    seen = sorted(
        {"{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())}
    )
    nvcc = nvcc_release(cuda_home)
    found = compiler_path(os.environ)
    decided = plan(os.environ, torch.version.cuda, found, cuda_home, nvcc, ";".join(seen))
    print(decided.report(), flush=True)
    if decided.error:
        sys.exit(f"pfgm_fast: {decided.error}")
    if decided.cuda:
        os.environ["TORCH_CUDA_ARCH_LIST"] = decided.architectures
    setup(
        license="MIT",
        ext_modules=_extensions(decided, nvcc),
        cmdclass=_commands(decided.outcome()),
    )


if __name__ == "__main__":
    main()
