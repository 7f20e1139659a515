"""The kernels of the first product alone, as a share of what the processor's multipliers reach in the same run."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.compare import compare
from benchmarks.report import Row

ROOT = Path(__file__).resolve().parent.parent
SHAPES = ((128, 4096, 3072), (40, 4096, 3072), (64, 20000, 784))
BAR, AIM = 0.70, 0.80


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/cpu/kernels and product.cpp as one small library, with the package's own flags."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is needed to build the kernels by themselves")
    target = tmp_path_factory.mktemp("product") / "product.so"
    sources = [ROOT / "benchmarks" / "product.cpp", *sorted((ROOT / "csrc/cpu/kernels").glob("*.cpp"))]
    flags = ["-O3", "-std=c++20", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(target)], check=True)
    loaded = ctypes.CDLL(str(target))
    loaded.peak.restype = ctypes.c_double
    loaded.name.restype = ctypes.c_char_p
    return loaded


@pytest.mark.parametrize("kind", ["float32", "uint8", "digit"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_first_product(
    shape: tuple[int, int, int], kind: str, library: ctypes.CDLL, benchmark: Any, rows: list[Row]
) -> None:
    batch, count, dim = shape
    largest = library.largest_digit()
    if kind == "digit" and largest == 0:
        pytest.skip("this processor does not multiply bytes")
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (count, dim), generator=generator, dtype=torch.uint8)
    x = torch.randn(batch, dim, generator=generator)
    digits = torch.randint(-largest, largest + 1, (batch, dim), generator=generator, dtype=torch.int8)
    values = stored.float() - 128
    charges = values if kind == "float32" else stored
    stride = count + 64
    out = torch.empty(batch * stride, dtype=torch.int32 if kind == "digit" else torch.float32)
    sizes = [ctypes.c_long(n) for n in shape]

    def at(tensor: torch.Tensor) -> ctypes.c_void_p:
        return ctypes.c_void_p(tensor.data_ptr())

    def ours() -> None:
        if kind == "digit":
            library.distance_gemm_digits(at(digits), at(charges), *sizes, at(out))
        else:
            library.product(at(x), at(charges), int(kind == "uint8"), *sizes, at(out))

    target = torch.empty(batch, count)
    peak = max(library.peak(int(kind == "digit")) for _ in range(3))
    taken = compare(benchmark, ours, {"torch.mm": lambda: torch.mm(x, values.T, out=target)}, seconds=2.0)
    peak = max(peak, *(library.peak(int(kind == "digit")) for _ in range(3)))
    names = {"ours": f"ours, {kind} ({library.name().decode()})", "torch.mm": "torch.mm (float32)"}
    found: list[Row] = []
    for name, times in taken.items():
        if name != "ours" and kind != "float32":
            continue
        rate = 2 * batch * count * dim / times.median
        row: Row = {
            "kind": "product",
            "case": " × ".join(map(str, shape)),
            "what": names[name],
            "ms": times.median * 1e3,
        }
        row |= {"rate": rate / 1e9, "share": rate / peak, "note": f"peak {peak / 1e9:.4g}"}
        if name == "ours" and kind != "digit":
            row |= {"bar": BAR, "aim": AIM, "of": "share"}
        found.append(row)
    rows.extend(found)
    benchmark.extra_info["rows"] = found
    got = out.view(-1)[: batch * (-(-count // 48) * 48)]
    assert torch.isfinite(got.float()).all()
