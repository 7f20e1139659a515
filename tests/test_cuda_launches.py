"""The host side of csrc/cuda on large shapes and real devices' limits: dry runs over the emulated runtime, where every launch is
checked (tests/cuda_host/runtime.h) and none is executed."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor

import pfgm_fast  # noqa: F401 - defines the operators' schemas
from tests import cuda_tools

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++ to compile the emulated kernels"
)

SCRATCH = 1 << 30
"""What a call may take at a time (csrc/cuda/field.cu, kScratch), unless one query alone needs more."""


@pytest.fixture(scope="module")
def emulated() -> cuda_tools.Emulated:
    return cuda_tools.Emulated()


def _call(
    op: str,
    batch: int,
    count: int,
    dim: int,
    kind: str = "bytes",  # of charges: bytes, float32, float64
    *,
    aug_dim: float = 1.0,
    weighted: bool = False,
    prepared: bool = True,
) -> object:
    """An operator of the emulated library on memory that nobody reads: in a dry run only shapes matter."""
    dtype = torch.float64 if kind == "float64" else torch.float32
    x, r = torch.empty(batch, dim, dtype=dtype), torch.empty(batch, dtype=dtype)
    charges = torch.empty(count, dim, dtype=torch.uint8 if kind == "bytes" else dtype)
    norms = torch.empty(count, dtype=torch.float64)
    query = (
        *(x, r, charges, norms if weighted else None),
        *(torch.empty(dim, dtype=dtype) if prepared else None, norms if prepared else None),
        *(127.5 if kind == "bytes" else 1.0, -1.0 if kind == "bytes" else 0.0, aug_dim),
    )
    more: dict[str, tuple[Tensor | int, ...]] = {"field_step": (r,), "second_moment": (x, 1)}
    return getattr(torch.ops.pfgm_fast_cuda, op)(*query, *more.get(op, ()))


OPERATORS = ("posterior_mean", "poisson_field", "score", "log_density", "second_moment", "field_step")


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("kind", ["bytes", "float32", "float64"])
def test_scratch_memory_is_bounded(emulated: cuda_tools.Emulated, op: str, kind: str) -> None:
    """B M of 3 billion pairs would be 49 GB; each part's memory is the next one's, and freed in the end."""
    for batch, count, dim in (
        (65536, 50000, 64),
        (65536, 50000, 128),
        (128, 3_000_000, 64),
        (20, 9_000_000, 64),
    ):
        with emulated.devices((132, 90)):
            _call(op, batch, count, dim, kind)
            assert 0 < emulated.scratch() <= SCRATCH
            assert emulated.scratch(most=False) == 0
            assert emulated.launches()


# ---- every path on every device -----------------------------------------------------------------------------------------

CAPABILITIES = (80, 86, 89, 90, 100)
MULTIPROCESSORS = (3, 108, 132, 148)
SHAPES = (  # B, M, N: the design's tables, and the edges of the choices
    *((128, 4096, 3072), (128, 50000, 3072), (1024, 50000, 3072), (64, 60000, 784)),
    *((16, 16384, 196608), (4096, 4096, 2), (512, 1797, 64), (1, 1, 1), (17, 100, 17), (65, 1000, 70000)),
    *(
        (33, 17000, 80),
        (40, 60000, 96),
    ),  # screened, and fewer queries than blocks that come together on a device
)
STEPS = ((64, 3072), (16, 196608), (3, 17), (4, 4096), (2, 20000))


def _steps(batch: int, dim: int, network: torch.dtype) -> None:
    ops = torch.ops.pfgm_fast_cuda
    x, vx = torch.empty(batch, dim), torch.empty(batch, dim, dtype=network)
    vz, z = torch.empty(batch), torch.tensor(2.0)
    ops.drift(vx, vz, z, 5.0, 5.0)
    ops.euler_step(x, vx, vz, z, z, 5.0, 5.0)
    ops.heun_step(x, vx, vz, vx, vz, z, z, 5.0, 5.0)
    ops.normalize_field(x, vz, 5.0)


def everything() -> None:
    for batch, count, dim in SHAPES:
        for kind in ("bytes", "float32") if dim < 10000 else ("bytes",):
            for op in OPERATORS:
                _call(op, batch, count, dim, kind)
            _call("poisson_field", batch, count, dim, kind, weighted=True)
            _call("poisson_field", batch, count, dim, kind, prepared=False)
        if batch * count < 1 << 20 and dim < 10000:
            for op in OPERATORS:
                _call(op, batch, count, dim, "float64")
    for batch, dim in STEPS:
        for network in (torch.float32, torch.bfloat16, torch.float16):
            _steps(batch, dim, network)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("multiprocessors", MULTIPROCESSORS)
def test_every_launch_keeps_the_limits(
    emulated: cuda_tools.Emulated, capability: int, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grid, block, shared memory, and the attribute that more than 48 KB of it needs: the runtime raises where one is not kept."""
    with emulated.devices((multiprocessors, capability)):
        everything()
        if capability == 90:
            monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", "0")
            everything()
        assert max(launch.shared for launch in emulated.launches()) > 48 * 1024  # the limit was tried


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("asked", [None, "0", "1"])
def test_hoppers_own_path_is_taken_on_hopper_unless_it_is_switched_off(
    emulated: cuda_tools.Emulated, asked: str | None, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PFGM_FAST_CUDA_HOPPER", raising=False)
    if asked is not None:
        monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", asked)
    with emulated.devices((132, capability)):
        if asked == "1" and capability != 90:
            with pytest.raises(RuntimeError, match=r"Hopper GPU \(compute capability"):
                _call("poisson_field", 128, 50000, 3072)
            return
        _call("poisson_field", 128, 50000, 3072)
        taken = any("hopper" in launch.kernel for launch in emulated.launches())
    assert taken == (asked != "0" and capability == 90)


DIGITS, GEMM, SCREEN = "split_digits_kernel", "distance_gemm_kernel", "screen_kernel"
HOPPER, HOPPER_REST = "distance_gemm_hopper_kernel", "distance_gemm_hopper_rest_kernel"
WEIGHTS, SUM, DIFFERENCE = "weights_kernel", "weighted_sum_hopper_kernel", "weighted_difference_kernel"
BYTE_WEIGHTS, SPARSE = "byte_weights_kernel", "sparse_row_kernel"
LONG_DIGITS, LONG_ANCHOR = "row_maximum_kernel", "anchor_kernel"
MERGE, FINISH, BYTE_FINISH = "merge_gaps_kernel", "finish_kernel", "byte_finish_kernel"


@pytest.mark.parametrize(
    ("op", "shape", "kind", "expected"),
    [
        ("poisson_field", (4096, 4096, 2), "float32", ["small_n_kernel"]),
        (
            "poisson_field",
            (128, 50000, 3072),
            "bytes",
            [DIGITS, HOPPER, SCREEN, HOPPER_REST, BYTE_WEIGHTS, SPARSE, SUM, BYTE_FINISH],
        ),
        (
            *("poisson_field", (16, 16384, 196608), "bytes"),
            [LONG_DIGITS, DIGITS, GEMM, MERGE, LONG_ANCHOR, BYTE_WEIGHTS, SPARSE, SUM, BYTE_FINISH],
        ),
        ("log_density", (128, 50000, 3072), "bytes", [DIGITS, HOPPER, SCREEN, HOPPER_REST, WEIGHTS]),
        ("score", (128, 50000, 3072), "bytes", [DIGITS, GEMM, MERGE, WEIGHTS, DIFFERENCE, FINISH]),
        (
            *("poisson_field", (128, 1000, 3072), "bytes"),
            [DIGITS, GEMM, MERGE, BYTE_WEIGHTS, SPARSE, SUM, BYTE_FINISH],
        ),
        ("poisson_field", (20, 60000, 784), "float32", ["distance_kernel", WEIGHTS, DIFFERENCE, FINISH]),
        ("poisson_field", (4096, 300, 64), "float32", ["distance_kernel", WEIGHTS, DIFFERENCE, FINISH]),
        (
            "poisson_field",
            (20, 300, 3072),
            "float32",
            ["distance_kernel", MERGE, WEIGHTS, DIFFERENCE, FINISH],
        ),
        (
            # 99 tiles are three quarters of a wave; 96 are not. One part of digits on the host, too
            *("poisson_field", (4224, 300, 64), "float32"),
            [
                DIGITS,
                "split_charge_digits_kernel",
                GEMM,
                GEMM,
                GEMM,
                "refine_kernel",
                WEIGHTS,
                DIFFERENCE,
                FINISH,
            ],
        ),
        (
            "second_moment",
            (128, 20000, 784),
            "float32",
            ["distance_kernel"] * 2 + [WEIGHTS, DIFFERENCE, FINISH],
        ),
    ],
    ids=str,
)
def test_each_path_and_its_launches(
    emulated: cuda_tools.Emulated, op: str, shape: tuple[int, int, int], kind: str, expected: list[str]
) -> None:
    """The choice of the path on an H100's 132 multiprocessors, and as few launches as docs/cuda.md says."""
    with emulated.devices((132, 90)):
        _call(op, *shape, kind)
        assert [launch.kernel.split("<")[0] for launch in emulated.launches()] == expected


def test_attributes_are_set_once_a_kernel_and_device(emulated: cuda_tools.Emulated) -> None:
    """Two cards of different kinds in one machine: each is asked, once; and each gets tiles for its own multiprocessors."""
    with emulated.devices((132, 90), (84, 86)):
        there = torch.empty(128, 3072)
        emulated.own(there, 1)
        calls = []
        for x in (torch.empty(128, 3072), there, torch.empty(128, 3072), there):
            before = emulated.attribute_calls()
            charges, norms = (
                torch.empty(50000, 3072, dtype=torch.uint8),
                torch.empty(50000, dtype=torch.float64),
            )
            torch.ops.pfgm_fast_cuda.poisson_field(
                x, torch.empty(128), charges, None, torch.empty(3072), norms, 127.5, -1.0, 1.0
            )
            calls.append(emulated.attribute_calls() - before)
        assert calls[2:] == [0, 0]
        assert {launch.device for launch in emulated.launches()} == {0, 1}
        weights = {
            launch.device: launch.blocks for launch in emulated.launches() if BYTE_WEIGHTS in launch.kernel
        }
        assert weights[0] > weights[1]  # parts of a row: more blocks on the larger card


@pytest.mark.parametrize("shape", [(20, 90, 2), (5, 200, 128), (70, 300, 80)], ids=str)
@pytest.mark.parametrize("kind", ["bytes", "float32"])
def test_the_tensors_device_and_stream_are_used(
    emulated: cuda_tools.Emulated, kind: str, shape: tuple[int, int, int]
) -> None:
    """x on the second card, the first one current, a stream of one's own: all launches and the scratch memory go there, and
    the current device is the same afterwards. A launch on another device's stream would raise."""
    batch, count, dim = shape
    with emulated.devices((132, 90), (84, 86)):
        x = torch.empty(batch, dim)
        emulated.own(x, 1)
        emulated.use_stream(1, 7)
        charges = torch.empty(count, dim, dtype=torch.uint8 if kind == "bytes" else torch.float32)
        norms = torch.empty(count, dtype=torch.float64)
        query = (x, torch.empty(batch), charges, None, torch.empty(dim), norms, 127.5, -1.0, 1.0)
        for op in ("poisson_field", "score", "log_density"):
            getattr(torch.ops.pfgm_fast_cuda, op)(*query)
        torch.ops.pfgm_fast_cuda.drift(x, torch.empty(batch), torch.tensor(2.0), 5.0, 5.0)
        launches = emulated.launches()
        assert len(launches) >= 4
        assert {(launch.device, launch.stream) for launch in launches} == {(1, 7)}
        assert emulated.scratch(0) == 0
        assert emulated.current() == 0
