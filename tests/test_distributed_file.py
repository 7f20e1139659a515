"""Charges in parts are the charges: merged blocks and files against one process, over every hard case."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pfgm_fast as pf
from pfgm_fast import charges_file
from tests.cases import CASES, direction_error

BAR = 1e-6
"""Of parts against one process, relative to the quantity: the issue's bar."""


def _relative(found, expected) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(charges_file, "BLOCK_BYTES", 1)
    return monkeypatch


@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_one_process(name, tmp_path, monkeypatch):
    case = CASES[name]()
    row = case.charges.shape[1] * case.charges.element_size()
    monkeypatch.setattr(charges_file, "BLOCK_BYTES", row * max(1, len(case.charges) // 5))
    np.save(tmp_path / "charges.npy", case.charges.numpy())
    whole = pf.Charges(case.charges, case.weights)
    parts = pf.Charges.from_file(tmp_path / "charges.npy", weights=case.weights)
    field, r = pf.poisson_field(case.x, case.r, whole, case.aug_dim)
    assert direction_error(pf.poisson_field(case.x, case.r, parts, case.aug_dim)[0], field.double(), r) < BAR
    for function in (pf.posterior_mean, pf.log_density, pf.score, pf.field_divergence):
        expected = function(case.x, case.r, whole, case.aug_dim)
        found = function(case.x, case.r, parts, case.aug_dim)
        wide = pf.Charges(whole.values(dtype=torch.float64), case.weights)
        truth = function(case.x.double(), case.r.double(), wide, case.aug_dim)
        # no farther from float64 than one process is, and a bar's worth
        assert _relative(found, truth) < 2 * _relative(expected, truth) + BAR, function.__name__


def test_rows_of_a_file_are_asked_for_in_its_order(tmp_path, small_blocks):
    np.save(tmp_path / "charges.npy", np.random.default_rng(0).standard_normal((40, 6), np.float32))
    file = pf.Charges.from_file(tmp_path / "charges.npy")
    with pytest.raises(pf.ArgumentError, match="ascending order"):
        file.rows(torch.tensor([30, 3, 11]))
    x, index = torch.randn(5, 6), torch.tensor([3, 11, 11, 30])
    expected = pf.posterior_mean(x, 1.0, pf.Charges(file.values(index)))
    torch.testing.assert_close(pf.posterior_mean(x, 1.0, file.rows(index)), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("direct", [False, True])
def test_formats_labels_steps_and_sampling(direct, tmp_path, small_blocks):
    """direct: as for files larger than the page cache, which are read in whole pages (where the file system can)."""
    if direct:
        small_blocks.setattr(charges_file, "CACHED_SHARE", 0.0)
        small_blocks.setattr(charges_file, "BLOCK_BYTES", 100)
    data = torch.randint(0, 256, (23, 2, 3, 3), dtype=torch.uint8)
    labels = torch.arange(23) % 3
    np.save(tmp_path / "a.npy", data.numpy())
    save_file({"data": data, "other": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "a.raw").write_bytes(data.numpy().tobytes())
    whole = pf.Charges(data, labels=labels)
    x, r = torch.randn(7, 2, 3, 3), torch.logspace(-1, 1, 7)
    asked = torch.tensor([0, 2, 2, 1, 0, 0, 1])
    for name, reading in (("a.npy", {}), ("a.safetensors", {}), ("a.raw", {"shape": data.shape})):
        parts = pf.Charges.from_file(tmp_path / name, labels=labels, **reading)
        assert len(parts) == 23 and parts.shape == (2, 3, 3)
        for found, expected in (
            (pf.posterior_mean(x, r, parts, labels=asked), pf.posterior_mean(x, r, whole, labels=asked)),
            (pf.log_density(x, r, parts, labels=asked), pf.log_density(x, r, whole, labels=asked)),
            (pf.field_step(x, r, r / 2, parts), pf.field_step(x, r, r / 2, whole)),
            (pf.pfgm_target(x, r, parts)[0], pf.pfgm_target(x, r, whole)[0]),
            (pf.IdealDenoiser(parts)(x, 2.0), pf.IdealDenoiser(whole)(x, 2.0)),
            (parts.values(), whole.values()),
        ):
            assert _relative(found, expected) < BAR
    drawn = [pf.sample(c, (4, 2, 3, 3), steps=5, seed=3).x for c in (parts, whole)]
    assert _relative(*drawn) < 1e-5
    with pytest.raises(pf.ArgumentError, match="no charge has the label 9"):
        pf.posterior_mean(x, r, parts, labels=torch.full((7,), 9))
    with pytest.raises(pf.DerivativeError, match="no_grad"):
        pf.posterior_mean(x.requires_grad_(), r, parts)


def test_statistics_are_kept_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    np.save(path, np.random.default_rng(0).random((40, 5), dtype=np.float32))
    first = pf.Charges.from_file(path)
    passes = []
    one_pass = charges_file.FileCharges._one_pass
    monkeypatch.setattr(
        charges_file.FileCharges, "_one_pass", lambda self, p: passes.append(1) or one_pass(self, p)
    )
    assert torch.equal(pf.Charges.from_file(path).sq_norms, first.sq_norms) and not passes
    np.save(path, np.random.default_rng(1).random((40, 5), dtype=np.float32))
    assert not torch.equal(pf.Charges.from_file(path).sq_norms, first.sq_norms) and passes


def test_faulty_files(tmp_path):
    good = np.zeros((4, 3), np.float32)
    np.save(tmp_path / "order.npy", np.zeros((4, 3), order="F"))
    np.save(tmp_path / "half.npy", good.astype(np.float16))
    np.save(tmp_path / "short.npy", good)
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-1])
    (tmp_path / "raw.bin").write_bytes(bytes(12))
    for name, said in (
        ("order.npy", "Fortran"),
        ("half.npy", "uint8, float32"),
        ("short.npy", "truncated"),
        ("raw.bin", "needs shape"),
        ("none.npy", "No such file"),
    ):
        with pytest.raises(pf.PfgmError, match=said):
            pf.Charges.from_file(tmp_path / name)
    good[2, 1] = np.nan
    np.save(tmp_path / "nan.npy", good)
    with pytest.raises(pf.ArgumentError, match="charge 2"):
        pf.Charges.from_file(tmp_path / "nan.npy")


MEMORY = """
import resource, sys, torch, pfgm_fast as pf
from pfgm_fast import charges_file
charges_file.BLOCK_BYTES = 4 << 20
x = torch.randn(4, 1024)
pf.posterior_mean(x, 1.0, pf.Charges(torch.zeros(8, 1024, dtype=torch.uint8)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pf.posterior_mean(x, 30.0, pf.Charges.from_file(sys.argv[1], shape=(100000, 1024)))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_memory_is_bounded(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data.raw").write_bytes(rng.bytes(100000 * 1024))
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "data.raw")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(out.stdout) < 60  # MiB, of a file of 98
