"""Float charges that are bytes' values are read as bytes: the same values to the bit, and only where every one of them is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.byte_codes import byte_codes
from tests import forked
from tests.cases import TOLERANCE, direction_error

RANGES = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-1.0, 30.875))


def _bytes(count: int = 130, dim: int = 200, most: int = 256) -> Tensor:
    return torch.randint(most, (count, dim), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)


def _found(values: Tensor) -> Tensor | None:
    codes = byte_codes(values, [slice(0, 64), slice(64, len(values))])
    return None if codes is None else pf.Charges(codes.codes, value_range=_range(codes)).values()


def _range(codes) -> tuple[float, float]:
    return codes.offset, codes.offset + 255.0 / codes.divisor


@pytest.mark.parametrize("value_range", RANGES, ids=str)
def test_the_values_of_bytes_are_found_to_the_bit(value_range: tuple[float, float]) -> None:
    values = pf.Charges(_bytes(), value_range=value_range).values()
    found = _found(values)
    assert found is not None
    assert torch.equal(found, values)


@pytest.mark.parametrize("at", [(0, 0), (129, 199)], ids=["in the sample", "beyond it"])
@pytest.mark.parametrize("change", [lambda v: v + 1e-7, lambda v: v * float("nan"), lambda v: v + 2.0], ids=["moved", "NaN", "outside"])  # fmt: skip
def test_one_value_that_is_no_bytes_forbids_it(at: tuple[int, int], change) -> None:
    values = pf.Charges(_bytes()).values()
    assert _found(values) is not None
    values[at] = change(values[at])
    assert _found(values) is None


def test_noise_and_constants() -> None:
    assert _found(torch.randn(130, 200, generator=torch.Generator().manual_seed(0))) is None
    assert _found(torch.zeros(130, 200)) is not None
    assert _found(torch.full((130, 200), 0.3)) is None


def test_the_field_is_that_of_the_floats_whatever_is_done_with_the_charges() -> None:
    """Parts, other weights and copies keep the bytes that belong to their rows."""
    generator = torch.Generator().manual_seed(1)
    values = pf.Charges(_bytes()).values()
    x, r = values[:24] + torch.randn(24, 200, generator=generator), torch.logspace(-2, 1, 24)
    weights = torch.rand(len(values), generator=generator) + 0.1
    labels = torch.arange(len(values)) % 2
    charges = pf.Charges(values, labels=labels)
    assert charges._codes is not None
    for ours, of, q in (
        (charges, values, None),
        (charges.reweighted(weights), values, weights),
        (charges.of_label(1)[0], values[1::2], None),
        (charges.rows(torch.arange(128).flip(0)), values[:128].flip(0), None),
    ):
        with pf.use_backend("reference"):
            exact = pf.poisson_field(x.double(), r.double(), pf.Charges(of.double(), q))[0]
        assert ours._codes is not None
        assert torch.equal(ours.values(), of)
        assert ours.data.dtype == torch.float32
        assert direction_error(pf.poisson_field(x, r, ours)[0], exact, r) <= TOLERANCE


@pytest.mark.parametrize("moved", [0.0, 0.3], ids=["bytes", "no bytes"])
def test_charges_that_are_put_are_what_the_field_sees(moved: float) -> None:
    values, generator = pf.Charges(_bytes()).values(), torch.Generator().manual_seed(5)
    charges = pf.Charges(values.clone(), labels=torch.arange(len(values)) % 2)
    charges.of_label(1)
    rows, new = torch.tensor([3, 100, 7]), pf.Charges(_bytes(3, most=200)).values().flip(1) + moved
    charges.put(rows, new, torch.tensor([1, 1, 1]))
    assert (charges._codes is None) == bool(moved)
    now = values.index_copy(0, rows, new)
    x = torch.cat([new, values[:5]]) + 0.1 * torch.randn(8, 200, generator=generator)
    with pf.use_backend("reference"):
        exact = pf.poisson_field(x.double(), 0.5, pf.Charges(now.double()))[0]
    assert direction_error(pf.poisson_field(x, 0.5, charges)[0], exact, torch.full((8,), 0.5)) <= TOLERANCE
    assert charges.of_label(1)[1].tolist() == sorted({*range(1, 130, 2), 3, 7, 100})


def test_what_cannot_be_put_is_refused(tmp_path: Path) -> None:
    charges, row = pf.Charges(_bytes()), torch.zeros(1, dtype=torch.int64)
    for wrong in (torch.zeros(1, 200), torch.zeros(1, 199, dtype=torch.uint8), _bytes(2)):
        with pytest.raises(pf.ArgumentError, match=r"stored must be \(1, 200\) of uint8"):
            charges.put(row, wrong)
    np.save(tmp_path / "charges.npy", charges.data.numpy())
    kept = pf.Charges.from_file(tmp_path / "charges.npy", cache=False)
    with pytest.raises(pf.ArgumentError, match="in a file"):
        kept.put(row, _bytes(1))
    with forked.group(tmp_path, "one", 0, 1):
        spread = charges.shard()
        with pytest.raises(pf.ArgumentError, match="spread over ranks"):
            spread.put(row, _bytes(1))
    assert torch.equal(charges.data, _bytes()) and torch.equal(kept.stored(row), _bytes()[:1])


def test_dense_rows_of_any_weights() -> None:
    """Weights in digits: many rows whose largest weights fall anywhere between two numbers, and near-equal ones.

    The kernels allow the product's rounding 2e-6 (`kDirectionError`) as an expectation, not as a bound: over 40 seeds the
    worst is 1.6e-6 with AVX-512, 4.3e-6 with AVX2 and in portable code.
    """
    generator = torch.Generator().manual_seed(2)
    charges = pf.Charges(_bytes(700, 160))
    base = charges.values()
    x = base.mean(0) + 30 * torch.randn(400, 160, generator=generator) * torch.logspace(-2, 1, 400)[:, None]
    r = torch.logspace(-1, 2, 400)[torch.randperm(400, generator=generator)]
    for aug_dim in (1.0, 64.0, float("inf")):
        with pf.use_backend("reference"):
            exact = pf.poisson_field(x.double(), r.double(), pf.Charges(base.double()), aug_dim)[0]
        assert direction_error(pf.poisson_field(x, r, charges, aug_dim)[0], exact, r) <= TOLERANCE / 2
