"""Compiles csrc/cuda for tests: for GPUs with nvcc, and for the host with g++ over the emulator (tests/cuda_host).

Results are kept under build/, named by the content of what they were made of, so that a second run compiles nothing; a lock for each
keeps two test processes from making the same thing at once.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "tests"
TORCH = Path(torch.__file__).resolve().parent
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"
EMULATOR = ROOT / "tests" / "cuda_host"
HOST_INCLUDES = (f"-I{SOURCES}", f"-I{ROOT / 'tests'}")
HOST_FLAGS = (
    *("-x", "c++", "-std=c++20", "-O1", "-g1", "-fPIC", STABLE_ABI, "-DPFGM_FAST_HOPPER"),
    *("-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"),
    *("-fsanitize=alignment,bounds,shift,signed-integer-overflow", "-fno-sanitize-recover=all"),
    *("-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)
NVCC_FLAGS = (
    "-std=c++20",
    "-O3",
    STABLE_ABI,
    "-DUSE_CUDA",
    "-DPFGM_FAST_HOPPER",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-Wall,-fPIC,-fvisibility=hidden",
)
ALL = os.environ.get("PFGM_FAST_COMPILE_ALL") == "1"
ARCHITECTURES = ("80", "86", "89", "90a", "100") if ALL else ("80", "90a")
"""The sources differ only for 90a; later GPUs compile the PTX of an earlier one in the default build too (setup.py)."""
GENCODE = (
    f"-gencode=arch=compute_80,code=[{','.join(f'sm_{name}' for name in ARCHITECTURES if name != '90a')}]",
    "-gencode=arch=compute_90a,code=sm_90a",
)


TOGETHER = (
    ("drift", "euler_step", "heun_step", "normalize_field"),
    ("differences", "direct", "floats"),
)
"""Sources that are compiled as one: PyTorch's headers cost ten seconds a source, on the host and for each architecture."""


def cuda_units() -> list[Path]:
    """What is compiled: groups of sources (`TOGETHER`, and all without kernels), and the other sources by themselves."""
    sources = sorted(SOURCES.glob("*.cu"))
    grouped = [[SOURCES / f"{name}.cu" for name in names] for names in TOGETHER]
    grouped.append([path for path in sources if not has_kernels(path)])
    alone = [path for path in sources if not any(path in group for group in grouped)]
    return [*alone, *(_group(group) for group in grouped)]


def _group(sources: list[Path]) -> Path:
    """A source that includes them all, called after the first."""
    target = CACHE / f"{sources[0].stem}_and_others.cu"
    text = "".join(f'#include "{path}"\n' for path in sources)
    if not target.exists() or target.read_text() != text:
        CACHE.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        part.rename(target)
    return target


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None) or shutil.which("nvcc")


def disassembler() -> str | None:
    """cuobjdump of Triton's package or of the CUDA toolkit, or None."""
    for folder in (TORCH.parent / "triton").glob("**/cuobjdump"):
        return str(folder)
    return shutil.which("cuobjdump")


def _included(path: Path, seen: set[Path]) -> set[Path]:
    """The file and every file of csrc/cuda that it includes, at any depth."""
    if path not in seen and path.exists():
        seen.add(path)
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            beside = (path.parent / name).resolve()
            _included(beside if beside.exists() else ROOT / "tests" / name, seen)
    return seen


def _key(source: Path, *command: object) -> str:
    """A name for what is compiled: the content of the source and all that it includes, PyTorch's version, the command."""
    digest = hashlib.sha256(repr((command, torch.__version__)).encode())
    for path in sorted(_included(source, set())):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _make(target: Path, *command: str | Path) -> str:
    """`command -o target`, unless it is there; by one process at a time. What the command said is kept beside it, and returned."""
    log = target.with_suffix(".log")
    if not log.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not log.exists():
                said = _run([*map(str, command), "-o", str(target)])
                part = target.with_suffix(".part")
                part.write_text(said)
                part.rename(log)
    return log.read_text()


def host_object(source: Path) -> Path:
    includes = [*HOST_INCLUDES, f"-isystem{TORCH / 'include'}"]
    target = CACHE / "host" / f"{source.stem}-{_key(source, HOST_FLAGS)}.o"
    _make(target, "g++", *HOST_FLAGS, *includes, "-c", source)
    return target


def host_library() -> Path:
    """The CUDA backend compiled for the host: its operators, in the namespace pfgm_fast_cuda, serve CPU tensors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(host_object, [*cuda_units(), EMULATOR / "control.cpp"]))
    target = CACHE / "host" / f"pfgm_cuda_host-{hashlib.sha256(repr(objects).encode()).hexdigest()[:16]}.so"
    library = TORCH / "lib"
    link = [f"-L{library}", "-ltorch_cpu", "-ltorch", "-lc10", f"-Wl,-rpath,{library}"]
    _make(target, "g++", "-shared", "-fsanitize=undefined", *objects, *link)
    return target


@dataclass(frozen=True)
class Launch:
    """A line of the emulated runtime's ledger."""

    kernel: str  # "distance_gemm_kernel<GemmTile<...>>": without namespaces and blanks
    device: int
    stream: int
    blocks: int
    threads: int
    shared: int  # bytes, dynamic


class Emulated:
    """The emulated devices of `host_library()` (tests/cuda_host/control.cpp)."""

    def __init__(self) -> None:
        torch.ops.load_library(str(host_library()))
        self._library = ctypes.CDLL(str(host_library()))
        self._library.emulator_ledger.restype = ctypes.c_char_p
        for name in ("emulator_scratch", "emulator_attribute_calls"):
            getattr(self._library, name).restype = ctypes.c_int64

    @contextmanager
    def devices(self, *kinds: tuple[int, int], dry: bool = True) -> Iterator[None]:
        """Devices of (multiprocessors, 10 × capability) for a while; launches are recorded, and not executed if `dry`."""
        self._set([kinds[0], *kinds[1:]])
        self._library.emulator_record(1, int(dry))
        try:
            yield
        finally:
            self._library.emulator_record(0, 0)
            self._library.emulator_disown()
            self._set([(3, 90)])

    def _set(self, kinds: list[tuple[int, int]]) -> None:
        array = ctypes.c_int * len(kinds)
        self._library.emulator_devices(
            len(kinds), array(*[count for count, _ in kinds]), array(*[capability for _, capability in kinds])
        )

    def launches(self) -> list[Launch]:
        """What was launched since `devices` began."""
        found = []
        for line in self._library.emulator_ledger().decode().splitlines():
            name, *numbers = line.split("\t")
            found.append(Launch(kernel_name(name), *map(int, numbers)))
        return found

    def scratch(self, device: int = 0, *, most: bool = True) -> int:
        """Bytes of scratch memory that are taken on a device; the most that ever were at a time."""
        return self._library.emulator_scratch(device, int(most))

    def attribute_calls(self) -> int:
        return self._library.emulator_attribute_calls()

    def own(self, tensor: torch.Tensor, device: int) -> None:
        """From now on this tensor's memory counts as lying on `device`."""
        self._library.emulator_own(
            ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.numel() * tensor.element_size()), device
        )

    def use_stream(self, device: int, number: int) -> None:
        self._library.emulator_stream(device, number)

    def current(self) -> int:
        return self._library.emulator_current_now()


def kernel_name(text: str) -> str:
    """A kernel's name and template arguments from g++'s `__PRETTY_FUNCTION__` or a demangled symbol, written alike."""
    found = re.search(r"kKernel = ([^;\]]+)", text)
    name = found.group(1) if found else text
    if not found:  # "void pfgm::kernel<...>(pfgm::Call)": the parameters go
        depth = 0
        for at in range(len(name) - 1, -1, -1):
            depth += {")": 1, "(": -1}.get(name[at], 0)
            if depth == 0:
                name = name[:at]
                break
        name = name.removeprefix("void ").removeprefix("static ")
    name = re.sub(r"\bpfgm::|\(anonymous namespace\)::|emulate::", "", name)
    name = re.sub(r"\b(unsigned char|uint8_t)\b", "byte", name)
    name = name.replace("__nv_bfloat16", "BFloat16").replace("__half", "Half")
    name = re.sub(r"\((\w+)\)(\d+)", r"\2", name)  # (GemmOutput)1
    for enum, values in ENUMS.items():
        for number, value in enumerate(values):
            name = name.replace(f"{enum}::{value}", str(number))
    return name.replace(" ", "")


ENUMS = {
    "GemmOutput": ("kGaps", "kFirst", "kRest"),
    "Coefficients": ("kWeights", "kScore", "kSecondMoment", "kLargest"),
}


def has_kernels(source: Path) -> bool:
    """Whether a source, or what it includes, defines kernels."""
    ours = (path for path in _included(source, set()) if path.is_relative_to(SOURCES))
    return any("__global__" in path.read_text() for path in ours)


def device_object(source: Path) -> tuple[Path, str]:
    """One unit compiled by nvcc in one call for every architecture (for one, where it has no kernels): the object, and what ptxas
    says of each kernel (registers, spills, shared memory)."""
    compiler = nvcc()
    assert compiler is not None
    architectures = GENCODE if has_kernels(source) else GENCODE[1:]
    flags = (*NVCC_FLAGS, *architectures, "-Xptxas=-v")
    target = CACHE / "cuda" / f"{source.stem}-{_key(source, flags, compiler)}.o"
    return target, _make(target, compiler, *flags, "-isystem", TORCH / "include", "-c", source)


def ptx(name: str, architecture: str) -> str:
    """The PTX of csrc/cuda/NAME for one architecture."""
    compiler, source = nvcc(), SOURCES / name
    assert compiler is not None
    flags = (*NVCC_FLAGS, f"-arch=sm_{architecture}", "-ptx")
    target = CACHE / "cuda" / f"{source.stem}-{_key(source, flags, compiler)}.ptx"
    _make(target, compiler, *flags, "-isystem", TORCH / "include", source)
    return target.read_text()


def device_objects() -> dict[str, tuple[Path, str]]:
    """`device_object` of every unit, by its name, compiled on all cores."""
    units = cuda_units()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip([u.name for u in units], pool.map(device_object, units), strict=True))
