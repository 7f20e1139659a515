"""Every source of csrc/cuda compiles with nvcc for sm_80 and sm_90a, and ptxas' report of each kernel is what it should be; with
PFGM_FAST_COMPILE_ALL=1 (`make test-all`) for sm_86, 89 and 100 too."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from tests import cuda_tools
from tests.test_cuda_launches import MULTIPROCESSORS, everything

pytestmark = pytest.mark.skipif(
    cuda_tools.nvcc() is None, reason="needs nvcc (set CUDA_HOME, or put it on PATH)"
)

REGISTERS = {
    # Threads of a block times registers must leave at least one block a multiprocessor (65,536 registers); where more
    # blocks are wanted at a time the bound is lower. Kernels that are not named: 128.
    "distance_gemm_hopper_kernel": 168,  # 384 threads, one block; its warpgroups then share them out (setmaxnreg)
    "distance_gemm_hopper_rest_kernel": 168,  # likewise
    "distance_gemm_kernel": 255,  # 256 or 384 threads, one block (384 threads: the bound 168 is in the source)
    "screen_kernel": 64,  # 256 threads, four blocks
    "split_digits_kernel": 80,  # 256 threads, three blocks
    "row_maximum_kernel": 64,  # 256 threads, four blocks
    "split_charge_digits_kernel": 64,  # likewise
    "refine_kernel": 64,  # 512 threads, two blocks
    "weighted_sum_kernel": 128,  # 512 threads, one block
    "weighted_sum_hopper_kernel": 168,  # 384 threads, one block; its warpgroups then share them out unevenly
    "small_n_kernel": 255,  # 256 threads, one block (512: the bound 128 is in the source)
    "weights_kernel": 128,  # 256 threads, two blocks (three: the bound 80 is in the source)
    "byte_weights_kernel": 80,  # 256 threads, three blocks
    "sparse_row_kernel": 80,  # likewise
    "anchor_kernel": 64,  # 256 threads, four blocks
    "merge_gaps_kernel": 64,  # 256 threads, four blocks
    "weighted_difference_kernel": 168,  # 128 threads, three blocks
    "distance_kernel": 255,  # 256 threads, one block (float: two, the bound 128 is in the source)
    "step_kernel": 128,  # 256 threads, four blocks (heun_step: two): bound by memory, many loads in flight
    "step_update_kernel": 64,
    "step_squares_kernel": 64,
    "finish_kernel": 64,
}


@dataclass(frozen=True)
class Kernel:
    name: str
    architecture: str
    registers: int
    local: int  # bytes a thread: spilled registers, and arrays that are indexed by what only runs can tell
    static_shared: int  # bytes


def kernels(report: str) -> list[Kernel]:
    """What `ptxas -v` says, by kernel and architecture."""
    found = []
    for part in report.split("Compiling entry function '")[1:]:
        mangled = part.split("'")[0]
        registers, static = re.search(r"Used (\d+) registers", part), re.search(r"(\d+) bytes smem", part)
        local = re.findall(r"(\d+) bytes (?:spill|stack)", part)
        assert registers is not None
        assert local
        architecture = part.split("sm_")[1].split("'")[0]
        found.append(
            Kernel(
                next((n for n in sorted(REGISTERS, key=len, reverse=True) if n in mangled), mangled),
                architecture,
                int(registers.group(1)),
                sum(map(int, local)),
                int(static.group(1)) if static else 0,
            )
        )
    return found


@pytest.fixture(scope="module")
def objects():
    """unit → object and report; compiled on all cores, once for a content (build/tests/cuda)."""
    return cuda_tools.device_objects()


@pytest.mark.parametrize("unit", [path.name for path in cuda_tools.cuda_units()])
def test_compiles_without_warnings_and_spills(unit: str, objects) -> None:
    report = objects[unit][1]
    assert "warning" not in report.lower(), report
    assert "Potential Performance Loss" not in report, report  # products of a warpgroup one after another
    for kernel in kernels(report):
        assert kernel.local == 0, kernel
        assert kernel.registers <= REGISTERS.get(kernel.name, 128), kernel
        assert kernel.static_shared == 0, (
            kernel
        )  # all shared memory is dynamic: sizes are asserted in the sources


def test_every_kernel_is_in_some_report(objects) -> None:
    found = {
        (kernel.name, kernel.architecture) for _, report in objects.values() for kernel in kernels(report)
    }
    assert {(name, a) for name in REGISTERS for a in cuda_tools.ARCHITECTURES} <= found


def test_hopper_has_its_instructions(objects) -> None:
    """Tensor-map loads, barriers that count bytes and warpgroup integer products, in sm_90a's machine code alone."""
    disassemble = cuda_tools.disassembler()
    if disassemble is None:
        pytest.skip("needs cuobjdump (Triton's package or the CUDA toolkit has it)")
    path, _ = objects["bytes.cu"]
    for architecture in (f"sm_{name}" for name in cuda_tools.ARCHITECTURES):
        wanted = architecture == "sm_90a"
        command = [disassemble, "-sass", "-arch", architecture, str(path)]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "IMMA" in code  # the portable kernels
        sums = [f"IGMMA.64x{columns}x32.U8.U8" for columns in (48, 96, 144)]
        products = ("IGMMA.64x256x32.S8.U8", "IGMMA.64x128x32.S8.U8", *sums)
        for instruction in (*products, "USETMAXREG", "UTMALDG.2D", "SYNCS.PHASECHK"):
            assert (instruction in code) is wanted, (architecture, instruction)


def test_objects_ask_only_for_the_stable_interface(objects) -> None:
    """No symbol of ATen, c10 or Python: one build serves many versions of PyTorch."""
    symbols = set()
    for path, _ in objects.values():
        listed = subprocess.run(["nm", "-uC", str(path)], capture_output=True, text=True, check=True).stdout
        symbols |= {line.split(maxsplit=1)[1] for line in listed.splitlines() if line.strip()}
    assert any(name.startswith("aoti_torch_") for name in symbols)
    assert not [name for name in symbols if re.match(r"(at|c10|caffe2|torch)::|_?Py", name)]


def test_every_launch_finds_its_kernel_and_its_registers(objects) -> None:
    """The launches of every field operator and path on large devices (dry runs on the host): each kernel is in some object for each
    architecture, and its registers for one block fit on a multiprocessor."""
    if shutil.which("g++") is None or shutil.which("c++filt") is None:
        pytest.skip("needs g++ and c++filt")
    report = "".join(text for _, text in objects.values())
    symbols = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\w+)'", report)
    names = subprocess.run(
        ["c++filt", *[symbol for symbol, _ in symbols]], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    registers = {
        (cuda_tools.kernel_name(name), architecture): kernel.registers
        for name, (_, architecture), kernel in zip(names, symbols, kernels(report), strict=True)
    }
    emulated = cuda_tools.Emulated()
    for multiprocessors in MULTIPROCESSORS:
        with emulated.devices((multiprocessors, 90)):
            everything()
            launches = {(launch.kernel, launch.threads) for launch in emulated.launches()}
        launches = {
            launch for launch in launches if not launch[0].startswith("step_")
        }  # bounds: in the source
        for kernel, threads in launches:
            for architecture in cuda_tools.ARCHITECTURES:
                used = -(-registers[kernel, architecture] // 8) * 8 * threads  # allotted in eights
                assert used <= 65536, (kernel, architecture, used)
