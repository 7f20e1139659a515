"""Compiles the Triton kernels for GPUs that are not here, and reports what the compilers made of them: one JSON line each.

    python -m tests.triton_aot sm_90 sm_80:first planted [--share 0/2]

ARCH: every kernel and configuration; ARCH:first: one configuration of each kernel. planted: what the checks must find fault
with. --share I/K: every K-th compilation, from the I-th. It needs a process of its own, without TRITON_INTERPRET, and compiles
everything anew: the cache is a folder that is thrown away.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

MATRIX_INSTRUCTION = {
    "cuda": re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)"),
    "hip": re.compile(r"\bv_s?mfma[a-z]*_"),
}


@dataclass(frozen=True)
class Report:
    """What one compilation came to."""

    name: str
    kernel: str
    threads: int
    registers: int  # a thread's
    spilled: int  # bytes of a thread's local memory
    shared: int  # bytes
    tensor_cores: bool  # meant to use them
    matrix_instructions: int
    narrow: tuple[str, ...]  # 32-bit products that reach an address
    seconds: float


def modules() -> Iterator[ModuleType]:
    package = importlib.import_module("pfgm_fast.backends.triton")
    for found in pkgutil.iter_modules(package.__path__):
        yield importlib.import_module(f"{package.__name__}.{found.name}")


def kernels() -> set[str]:
    """The names of all kernels that are launched: the functions that ask which program they are."""
    from triton.runtime.jit import JITFunction

    return {
        value.__name__
        for module in modules()
        for value in vars(module).values()
        if isinstance(value, JITFunction) and "tl.program_id(" in value.src
    }


def compilations(arch: str) -> list[Any]:
    return [c for module in modules() if hasattr(module, "ahead_of_time") for c in module.ahead_of_time(arch)]


def compiled(compilation: Any, arch: str) -> Any:
    """Triton's CompiledKernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pfgm_fast.backends.triton.runtime import FP_FUSION

    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    names = compilation.kernel.arg_names
    source = ASTSource(
        compilation.kernel,
        {name: compilation.signature[name] for name in names},
        compilation.constexprs,
        {(names.index(name),): [["tt.divisibility", 16]] for name in compilation.divisible},
    )
    options = {
        "num_warps": compilation.num_warps,
        "num_stages": compilation.num_stages,
        "enable_fp_fusion": FP_FUSION,
    }
    if compilation.max_registers is not None and not amd:
        options["maxnreg"] = compilation.max_registers
    return triton.compile(source, target=target, options=options)


def report(compilation: Any, arch: str) -> Report:
    began = time.perf_counter()
    result = compiled(compilation, arch)
    if arch.startswith("gfx"):
        code, lanes = result.asm["amdgcn"], 64
        registers = _number(r"\.vgpr_count: +(\d+)", code)
        spilled = _number(r"\.private_segment_fixed_size: +(\d+)", code) + 4 * _number(
            r"\.vgpr_spill_count: +(\d+)", code
        )
        matrix = MATRIX_INSTRUCTION["hip"]
    else:
        code, lanes = result.asm["ptx"], 32
        usage = _resource_usage(result.asm["cubin"])
        registers = _number(r"REG:(\d+)", usage)
        spilled = _number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage)
        matrix = MATRIX_INSTRUCTION["cuda"]
    return Report(
        compilation.name,
        compilation.kernel.__name__,
        lanes * compilation.num_warps,
        registers,
        spilled,
        result.metadata.shared,
        compilation.tensor_cores,
        len(matrix.findall(code)),
        tuple(narrow_offsets(result.asm["ttir"])),
        time.perf_counter() - began,
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern} in what the compiler says:\n{text[-2000:]}")
    return int(found.group(1))


def _resource_usage(cubin: bytes) -> str:
    """What cuobjdump, which Triton carries, says of a cubin: registers, stack, shared and local memory of its kernel."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ---- 64-bit offsets ------------------------------------------------------------------------------------------------------

_DEFINITION = re.compile(r"^\s*(%[\w.]+)(?::\d+)? = \"?([\w.]+)\"?(.*)$")
_LOCATION = re.compile(r"\s+loc\(.*$")
_STARTS_ANEW = ("tt.load", "tt.reduce", "arith.divsi", "arith.remsi")
"""What comes out of these is an index of its own: of a program, in a row of programs, or read from memory."""
_PASSES_ON = ("splat", "expand_dims", "broadcast", "reshape", "ext", "trunc", "convert_layout", "trans")


def narrow_offsets(ttir: str) -> list[str]:
    """The 32-bit products of two numbers known only at run time that reach an address (`tt.addptr`) of a kernel's TTIR.

    An index counts one dimension and fits 32 bits, and so does what a tile of constant size adds to it; a product of an index and
    a row's length does not, and must be formed in 64 bits.
    """
    definitions: dict[str, tuple[str, list[str], str]] = {}
    addresses = []
    for line in ttir.splitlines():
        found = _DEFINITION.match(line)
        if found is None:
            continue
        name, op, rest = found.groups()
        rest = _LOCATION.sub("", rest)
        operands = re.findall(r"%[\w.]+", rest.split(" : ")[0])
        definitions[name] = (op, operands, rest.rsplit(" : ", 1)[-1])
        if op == "tt.addptr":
            addresses.append(operands[1])

    def constant(name: str) -> bool:
        op, operands, _ = definitions.get(name, ("", [], ""))
        if op in ("arith.constant", "tt.make_range"):
            return True
        passes_on = any(part in op for part in (*_PASSES_ON, "addi", "muli", "subi"))
        return passes_on and bool(operands) and all(constant(operand) for operand in operands)

    found_narrow, seen = [], set()
    while addresses:
        name = addresses.pop()
        if name in seen or name not in definitions:
            continue
        seen.add(name)
        op, operands, type_ = definitions[name]
        is_narrow = re.search(r"\bi32\b|xi32>", type_) is not None
        if op == "arith.muli" and is_narrow and not any(constant(operand) for operand in operands):
            found_narrow.append(f"{name} = {op} {', '.join(operands)} : {type_}")
        if op not in _STARTS_ANEW:
            addresses += operands
    return found_narrow


def todo(wanted: str) -> list[tuple[str, Any]]:
    """Architecture and compilation, for one of the command line's words."""
    if wanted == "planted":
        return [("sm_90", importlib.import_module("tests.triton_planted").planted())]
    arch, _, first = wanted.partition(":")
    listed = compilations(arch)
    if first:
        listed = list({c.kernel.__name__: c for c in reversed(listed)}.values())
    return [(arch, compilation) for compilation in listed]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("wanted", nargs="+", help="ARCH, ARCH:first or planted")
    parser.add_argument("--share", default="0/1")
    options = parser.parse_args()
    offset, step = map(int, options.share.split("/"))
    print(json.dumps({"kernels": sorted(kernels())}))
    work = [one for wanted in options.wanted for one in todo(wanted)]
    for arch, compilation in work[offset::step]:
        try:
            line = asdict(report(compilation, arch))
        except Exception as error:  # one that does not compile must not hide the others
            line = {"name": compilation.name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"arch": arch, **line}), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        main()
