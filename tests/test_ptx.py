"""Compiled PTX, executed (tests/ptx): Triton's int8 product first, whose layouts real devices have proven, then the byte kernels."""

from __future__ import annotations

import re
import shutil
import struct
from collections import Counter

import numpy as np
import pytest
import torch

from tests import cuda_tools
from tests.cases import TOLERANCE, direction_error
from tests.ptx import hopper, matrix
from tests.ptx.common import PtxError
from tests.ptx.machine import launch
from tests.ptx.program import Kernel, parse
from tests.ptx.replace import kernels_from_ptx
from tests.test_cuda_bytes import SHAPES, _call, _case, _exact

ours = pytest.mark.skipif(
    cuda_tools.nvcc() is None or shutil.which("g++") is None,
    reason="needs nvcc for the PTX and g++ for the rest",
)


@pytest.fixture
def library(monkeypatch):
    """The library on the host. Unless a test says otherwise, its launches are those of every GPU."""
    found = cuda_tools.host_library()
    torch.ops.load_library(str(found))
    monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", "0")
    return found


def bytes_(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, shape, dtype=np.int8)


def run_dot(
    kernel: Kernel, shared: int, rows: int, columns: int, depth: int, warps: int
) -> tuple[np.ndarray, Counter[str]]:
    a, b = bytes_(rows, depth), bytes_(columns, depth)[::-1].copy()
    c, counts = np.zeros((rows, columns), np.int32), Counter()
    parameters = struct.pack("<QQQIxxxxQQ", a.ctypes.data, b.ctypes.data, c.ctypes.data, depth, 0, 0)
    launch(kernel, 1, 32 * warps, shared, parameters, counts)
    return c - a.astype(np.int32) @ b.astype(np.int32).T, counts


@pytest.mark.parametrize(
    ("rows", "columns", "block", "warps", "stages"),
    [(64, 64, 64, 4, 1), (128, 32, 32, 4, 3), (32, 128, 64, 8, 2), (16, 16, 32, 1, 2)],
)
def test_tritons_compiled_int8_product_is_right(rows, columns, block, warps, stages):
    triton_dot = pytest.importorskip("tests.ptx.triton_dot", reason="needs Triton")
    text, shared = triton_dot.compiled(rows, columns, block, warps, stages)
    (kernel,) = parse(text).values()
    wrong, counts = run_dot(kernel, shared, rows, columns, 3 * block, warps)
    assert not wrong.any()
    assert any(name.startswith("mma.sync") for name in counts), "the product did not go by tensor cores"


@pytest.mark.parametrize(
    ("rows", "columns", "block", "warps", "stages"),
    [(64, 64, 128, 4, 1), (64, 128, 64, 4, 2), (128, 256, 128, 8, 2), (64, 32, 32, 4, 1)],
)
def test_tritons_compiled_warpgroup_product_is_right(rows, columns, block, warps, stages):
    """Hopper's descriptors in three swizzles, and its sums, as a compiler writes them whose kernels have run on Hopper."""
    triton_dot = pytest.importorskip("tests.ptx.triton_dot", reason="needs Triton")
    text, shared = triton_dot.compiled(rows, columns, block, warps, stages, 90)
    (kernel,) = parse(text).values()
    wrong, counts = run_dot(kernel, shared, rows, columns, 3 * block, warps)
    assert not wrong.any()
    assert any(name.startswith("wgmma.mma_async") for name in counts)


def test_a_layout_that_is_misread_shows_in_tritons_product(monkeypatch):
    triton_dot = pytest.importorskip("tests.ptx.triton_dot", reason="needs Triton")
    text, shared = triton_dot.compiled(32, 32, 32, 1, 1)
    (kernel,) = parse(text).values()
    assert not run_dot(kernel, shared, 32, 32, 64, 1)[0].any()
    row, column = matrix.c_positions()
    for name, misread in {
        "c_positions": lambda: (row[:, [0, 2, 1, 3]], column[:, [0, 2, 1, 3]]),
        "a_m16n8k32": lambda a, signed, real=matrix.a_m16n8k32: real([a[0], a[2], a[1], a[3]], signed),
        "b_m16n8k32": lambda b, signed, real=matrix.b_m16n8k32: real(b[::-1], signed),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(matrix, name, misread)
            assert run_dot(kernel, shared, 32, 32, 64, 1)[0].any(), name


def _misread(patch: pytest.MonkeyPatch, name: str) -> None:
    row, column = hopper.sum_positions(64)
    patch.setattr(
        hopper,
        name,
        {
            "sum_positions": lambda columns: (row, column ^ 2),
            "swizzled": lambda address, atom: address ^ (address >> 8 & 7) << 4,
        }[name],
    )


@pytest.mark.parametrize("name", ["sum_positions", "swizzled"])
def test_a_layout_that_is_misread_shows_in_tritons_warpgroup_product(monkeypatch, name):
    triton_dot = pytest.importorskip("tests.ptx.triton_dot", reason="needs Triton")
    text, shared = triton_dot.compiled(64, 64, 128, 4, 1, 90)
    (kernel,) = parse(text).values()
    _misread(monkeypatch, name)
    assert run_dot(kernel, shared, 64, 64, 128, 4)[0].any()


@pytest.mark.parametrize(
    ("arch", "tile", "batch", "count", "dim"),
    [
        ("sm_80", "-32", 20, 150, 160),
        ("sm_80", "_ragged-16", 5, 130, 77),
        ("sm_90", "-64", 70, 130, 208),
    ],
    ids=str,
)
def test_tritons_byte_kernels_from_their_ptx(arch, tile, batch, count, dim):
    """The queries' digits, and the gaps of bytes against digits, as the GPU backend launches them: against the definition."""
    triton_kernels = pytest.importorskip("tests.ptx.triton_kernels", reason="needs Triton")
    aligned, random = triton_kernels.aligned, np.random.default_rng(0)
    stride, tiles, queries, divisor = -(-dim // 16) * 16, -(-count // 128), int(tile.split("-")[1]), 127.5
    charges = aligned(random.integers(0, 256, (count, dim), dtype=np.uint8))
    center = aligned((charges / divisor - 1).mean(0).astype(np.float32))
    x = charges[random.integers(0, count, batch)] / divisor - 1 + 0.3 * random.standard_normal((batch, dim))
    x = aligned(x.astype(np.float32))
    digits, scale = aligned(np.zeros((3, batch, stride), np.int8)), aligned(np.zeros(batch))
    residual, dense = aligned(np.zeros(batch, np.float32)), aligned(np.ones(1, np.int32))
    sizes = {"B": batch, "M": count, "N": dim, "tiles": tiles, "divisor": divisor}
    arrays = {"charges": charges, "x": x, "center": center, "digits": digits, "scale": scale}
    more = {"residual": residual, "dense_count": dense, "stride": stride}
    triton_kernels.run("split_digits", batch, sizes | arrays | more, arch)
    wanted = (x.astype(np.float64) - center) * divisor
    whole = (digits[0, :, :dim].astype(np.int64) * 256 + digits[1, :, :dim]) * 256 + digits[2, :, :dim]
    assert (np.abs(whole * scale[:, None] - wanted) <= (0.5 + 1e-6) * scale[:, None]).all()
    assert not dense.any()

    gap_stride = -(-count // 16) * 16
    sq_norms, gaps = aligned(random.random(count)), aligned(np.full((batch, gap_stride), np.nan, np.float32))
    least = aligned(np.full((batch, tiles), np.nan))
    more = {"sq_norms": sq_norms, "gaps": gaps, "least": least, "digit_stride": stride, "stride": gap_stride}
    blocks = tiles * -(-batch // queries)
    counts = triton_kernels.run("distance_gemm_bytes" + tile, blocks, sizes | arrays | more, arch)
    assert any(name.startswith("wgmma.mma_async" if arch == "sm_90" else "mma.sync") for name in counts)
    products = whole @ (charges.astype(np.int64) - 128).T
    exact = np.full((batch, 128 * tiles), np.inf)
    exact[:, :count] = sq_norms - products * (2 * scale / divisor**2)[:, None]
    lowest = exact.reshape(batch, tiles, 128).min(2)
    np.testing.assert_allclose(least, lowest, rtol=0, atol=1e-15 * np.abs(lowest).max())
    expected = (exact - np.repeat(lowest, 128, 1))[:, :count]
    np.testing.assert_allclose(gaps[:, :count], expected, rtol=2e-7, atol=1e-6 * scale.max())
    assert np.isnan(gaps[:, count:]).all()  # nothing is written beyond the charges


# What rounds (float sums, contracted to fused multiply-adds on a device and not on the host) may differ in the last bits;
# what is made of whole numbers may not.
WHOLE = {"digit": "digit", "first product": "gemm", "second product": "weighted_sum"}


@ours
@pytest.mark.parametrize("shape", ["slim", "narrow", "narrow-odd"])
@pytest.mark.parametrize("spread", [1.0, 100.0], ids=["training", "spread"])
def test_the_byte_kernels_from_their_ptx_against_float64(library, shape, spread):
    torch.manual_seed(0)
    case = _case(*SHAPES[shape], spread)
    with kernels_from_ptx(library, "bytes.cu") as done:
        field, lse = _call("poisson_field", case)
    expected, expected_lse = _exact("poisson_field", case)
    assert direction_error(field, expected, case.r) <= TOLERANCE
    torch.testing.assert_close(lse, expected_lse, rtol=3e-6, atol=3e-5)
    assert len(done.kernels) >= 4 and any(name.startswith("mma.sync") for name in done.instructions)


@ours
@pytest.mark.parametrize("which", WHOLE)
@pytest.mark.parametrize("shape", ["slim", "narrow-odd", "wide"])
def test_whole_numbers_are_the_same_bit_for_bit(library, shape, which):
    torch.manual_seed(0)
    case = _case(*SHAPES[shape], 30.0)
    plain = _call("poisson_field", case)
    with kernels_from_ptx(library, "bytes.cu", only=WHOLE[which]) as done:
        compiled = _call("poisson_field", case)
    assert done.kernels, f"no kernel's name holds {WHOLE[which]}"
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


@ours
@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        (
            r"ldmatrix\S+ \{(\S+), (\S+), (\S+), (\S+)\}",
            r"ldmatrix.sync.aligned.m8n8.x4.shared.b16 {\1, \3, \2, \4}",
        ),
        (r"(mma.sync\S+ \{[^}]*\}, \{[^}]*\}, )\{(\S+), (\S+)\}", r"\1{\3, \2}"),
        (r"cp.async.wait_group \d", "cp.async.wait_group 7"),
    ],
    ids=["fragment", "operands", "wait"],
)
def test_faults_in_the_ptx_show(library, monkeypatch, pattern, change):
    real = cuda_tools.ptx
    broken = re.sub(pattern, change, real("bytes.cu", "80"))
    assert broken != real("bytes.cu", "80")
    torch.manual_seed(0)
    case = _case(*SHAPES["narrow"], 30.0)
    plain = _call("poisson_field", case)
    monkeypatch.setattr(cuda_tools, "ptx", lambda *_: broken)
    try:
        with kernels_from_ptx(library, "bytes.cu", only=WHOLE["first product"]):
            compiled = _call("poisson_field", case)
    except (PtxError, RuntimeError):
        return
    assert not torch.equal(plain[1], compiled[1])


HOPPER = ((33, 420, 64), (140, 1030, 592))
"""Queries, charges, dimensions: half a stage; more stages than the ring has, more tiles than blocks, edges of every kind."""


@ours
@pytest.mark.parametrize("shape", HOPPER, ids=str)
def test_the_hopper_kernel_from_its_ptx_is_the_same_bit_for_bit(library, monkeypatch, shape):
    """Tensor-map loads, barriers that count bytes and warpgroup products, as compiled for sm_90a, against the sm_80 path."""
    torch.manual_seed(0)
    case = _case(*shape, 10.0)
    plain = _call("poisson_field", case)
    monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", "1")
    with kernels_from_ptx(library, "bytes.cu", "90a", only="gemm_hopper") as done:
        compiled = _call("poisson_field", case)
    assert len(done.kernels) == 2  # the first digit, and the others
    for name in (
        "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.u8",
        "mbarrier.try_wait.parity.shared::cta.b64",
    ):
        assert done.instructions[name]
    assert any(name.startswith("cp.async.bulk.tensor.2d") for name in done.instructions)
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


@ours
@pytest.mark.parametrize(
    ("shape", "spread", "columns"),
    [((20, 300, 80), 30.0, (48, 96)), ((64, 800, 272), 1000.0, (144, 48))],
    ids=str,  # a second warpgroup without columns; two tiles of queries, and the ring of stages wraps
)
def test_the_hopper_sums_from_their_ptx_are_the_same_bit_for_bit(
    library, monkeypatch, shape, spread, columns
):
    """Products with A in registers, which are read when a product is waited for: the compiler's own registers, too."""
    torch.manual_seed(0)
    case = _case(*shape, spread)
    plain = _call("poisson_field", case)
    monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", "1")
    with kernels_from_ptx(library, "bytes.cu", "90a", only="weighted_sum_hopper") as done:
        compiled = _call("poisson_field", case)
    assert len(done.kernels) == 1
    assert any(done.instructions[f"wgmma.mma_async.sync.aligned.m64n{n}k32.s32.u8.u8"] for n in columns)
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


def _hopper(library, monkeypatch) -> bool:
    """Whether the Hopper kernel's PTX does what the sm_80 path does; an error of the machine is a no."""
    torch.manual_seed(0)
    case = _case(20, 300, 720, 10.0)
    plain = _call("poisson_field", case)
    monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", "1")
    try:
        with kernels_from_ptx(library, "bytes.cu", "90a", only="gemm_hopper"):
            compiled = _call("poisson_field", case)
    except (PtxError, RuntimeError):
        return False
    return all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


@ours
@pytest.mark.parametrize(
    ("pattern", "change"),
    [
        ("wgmma.fence.sync.aligned;", ""),
        (r"wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 2;"),
        (r"(wgmma.mma_async.sync\S+ \{)(%r\d+), (%r\d+)", r"\1\3, \2"),
        (r"(wgmma.mma_async.sync\S+ \{[^}]*\}), (%rd\d+), (%rd\d+)", r"\1, \3, \2"),
        (r"(add.s64 \s*%rd\d+, %rd\d+), 2;", r"\1, 4;"),
        ("4611686293305360384", str(1 << 62 | 32 << 32 | 1 << 16)),
        ("4611686293305360384", str(2 << 62 | 64 << 32 | 1 << 16)),
        (r"(arrive.expect_tx.shared::cta.b64 _, \[\S+\]), %r\d+;", r"\1, 32768;"),
        (r"(arrive.expect_tx.shared::cta.b64 _, \[\S+\]), %r\d+;", r"\1, 65536;"),
        (r"(mbarrier.arrive.shared::cta.b64 _, \[\S+\];)", r"\1\n\1"),
        (r"mbarrier.arrive.shared::cta.b64 _, \[\S+\];", ""),
        (r"(\[%rd\d+, \{)(%r\d+), (%r\d+)\}", r"\1\3, \2}"),
        (r"xor.b32( \s*%r\d+, %r\d+), 1;", r"or.b32\1, 0;"),
    ],
    ids=[
        *("no fence", "sums not waited for", "sums", "operands", "depth", "step", "swizzle", "too few bytes"),
        *("too many bytes", "arrives twice", "never given back", "coordinates", "parity"),
    ],
)
def test_faults_in_the_hopper_ptx_show(library, monkeypatch, pattern, change):
    real = cuda_tools.ptx("bytes.cu", "90a")
    before, kernel, after = re.split(
        r"(\.entry \S*gemm_hopper.*?(?=\.entry|\Z))", real, maxsplit=1, flags=re.S
    )
    broken = before + re.sub(pattern, change, kernel) + after
    assert broken != real
    monkeypatch.setattr(cuda_tools, "ptx", lambda *_: broken)
    assert not _hopper(library, monkeypatch)


@ours
def test_a_layout_that_is_misread_shows_in_the_hopper_kernel(library, monkeypatch):
    """The machine's own tables, each misread: the kernel relies on all of them."""
    assert _hopper(library, monkeypatch)
    row, column = hopper.sum_positions(256)
    for name, misread in {
        "sum_positions": lambda columns: (row, column ^ 8),
        "loaded_to": lambda begin, size: begin + np.arange(size),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(hopper, name, misread)
            assert not _hopper(library, patch), name


def test_an_instruction_that_the_machine_does_not_know_is_an_error():
    text = ".visible .entry k(.param .u64 p)\n{\n.reg .b32 %r<3>;\nvabsdiff4.u32 %r1, %r2, %r2, %r2;\nret;\n}"
    with pytest.raises(PtxError, match="unknown instruction vabsdiff4"):
        launch(parse(text)["k"], 1, 32, 0, bytes(8))


def test_accesses_outside_of_memory_are_errors():
    body = {
        "shared": "mov.u32 %r1, 4096;\nld.shared.u32 %r2, [%r1];",
        "global": "mov.u64 %d1, 64;\nld.global.u32 %r2, [%d1];",
        "aligned": "mov.u32 %r1, 2;\nld.shared.u32 %r2, [%r1];",
    }
    for name, lines in body.items():
        text = f".visible .entry k(.param .u64 p)\n{{\n.reg .b32 %r<3>;\n.reg .b64 %d<2>;\n{lines}\nret;\n}}"
        with pytest.raises(PtxError, match=r"beyond shared|nobody has|not aligned"):
            launch(parse(text)["k"], 1, 32, 1024, bytes(8))
        assert name
