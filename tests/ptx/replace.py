"""Run the CUDA backend's operators on the host with some kernels executed from their compiled PTX.

The host library (tests/cuda_tools.py) does what an operator does on the host: memory, launches, their order. For each launch it asks
a hook first; the hook finds the kernel's compiled PTX by its mangled name, which g++ and nvcc share, and executes that.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import cuda_tools
from tests.ptx.hopper import TENSOR_MAP
from tests.ptx.machine import launch
from tests.ptx.program import Kernel, parse

_TYPE = ctypes.CFUNCTYPE(
    ctypes.c_bool,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.c_int,
)


class Launches:
    """What was executed: kernels (name → launches), instructions (opcode → times), and the first error."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.instructions: Counter[str] = Counter()
        self.error: BaseException | None = None


@contextmanager
def kernels_from_ptx(
    library: Path, source: str, architecture: str = "80", only: str = ""
) -> Iterator[Launches]:
    """Within, the launches of `library` whose kernels are in the compiled `csrc/cuda/source` run from PTX; others by the emulator.

    only: a pattern for the kernels' mangled names. Errors of the machine are raised at the end of the block.
    """
    compiled = parse(cuda_tools.ptx(source, architecture))
    symbols = _symbols(library)
    loaded = ctypes.CDLL(str(library))
    at = ctypes.cast(loaded.emulator_hook, ctypes.c_void_p).value
    base = (at or 0) - next(offset for offset, name in symbols.items() if name == "emulator_hook")
    done = Launches()

    @_TYPE
    def serve(
        address: int, blocks: int, threads: int, shared: int, pointers: Any, sizes: Any, count: int
    ) -> bool:
        name = symbols.get(address - base, "")
        kernel = compiled.get(name)
        if done.error is not None:
            return True
        if kernel is None or not kernel.instructions or not re.search(only, name):
            return False
        try:
            launch(
                kernel,
                blocks,
                threads,
                shared,
                _parameters(kernel, pointers, sizes, count),
                done.instructions,
            )
            done.kernels[name] += 1
        except BaseException as error:
            done.error = error
        return True

    loaded.emulator_hook(serve)
    try:
        yield done
    finally:
        loaded.emulator_hook(None)
    if done.error is not None:
        raise done.error


def _parameters(kernel: Kernel, pointers: Any, sizes: Any, count: int) -> bytes:
    """The parameters' bytes as the kernel lays them out. A tensor map's hold what it was made of, and zeros (tests/ptx/hopper.py)."""
    out = bytearray(max(at + size for at, size in kernel.parameters.values()))
    for k, (at, size) in enumerate(kernel.parameters.values()):
        tensor_map = k < count and size == TENSOR_MAP and sizes[k] == 32
        if k >= count or (sizes[k] != size and not tensor_map):
            raise AssertionError(
                f"{kernel.name}: the host's parameter {k} has another size than the device's"
            )
        out[at : at + sizes[k]] = ctypes.string_at(pointers[k], sizes[k])
    return bytes(out)


def _symbols(library: Path) -> dict[int, str]:
    """Offset → mangled name of every function of a library, the hidden ones too, as nvcc writes it: what is static has an L in
    g++'s names, and the emulator's tensor maps are the driver's."""
    listing = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout
    found = [parts for line in listing.splitlines() if len(parts := line.split()) == 3]
    names = {
        int(at, 16): re.sub(r"^_ZN4pfgmL", "_ZN4pfgm", name) for at, kind, name in found if kind in "tTwW"
    }
    for one in (
        ("ENS_7emulate9TensorMapES1_", "E14CUtensorMap_stS0_"),
        ("ENS_7emulate9TensorMapE", "E14CUtensorMap_st"),
    ):
        names = {at: name.replace(*one) for at, name in names.items()}  # two maps, then one
    return names
