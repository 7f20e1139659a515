"""What 1, 2, 3 and 4 ranks must agree on with one process; `tests/test_distributed.py` runs this as four processes (tests/forked.py)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import pfgm_fast as pf
from pfgm_fast import charges_distributed, partials
from pfgm_fast.charges_distributed import DistributedCharges
from tests import forked
from tests.cases import CASES, direction_error

SIZE = 4

BAR = 1e-6
"""Of ranks against one process, relative to the quantity: the issue's bar."""


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def refused(kind: type[Exception], said: str, call: Any, *arguments: Any, **options: Any) -> None:
    try:
        call(*arguments, **options)
    except kind as error:
        assert said in str(error), error
        return
    raise AssertionError(f"{said!r} was not said")


def hard_cases(group: Any) -> None:
    """Every case of the table: no farther from float64 than one process is, and a bar's worth; the same on every rank to the bit."""
    for number, (name, build) in enumerate(CASES.items()):
        case = build()
        whole = pf.Charges(case.charges, case.weights)
        wide = pf.Charges(whole.values(dtype=torch.float64), case.weights)
        division = ("contiguous", "interleaved")[number % 2]
        spread = whole.shard(group, division=division)
        size, rank = spread.ranks.size, spread.ranks.rank
        assert len(spread) == len(whole)
        field, r = pf.poisson_field(case.x, case.r, whole, case.aug_dim)
        found, _ = pf.poisson_field(case.x, case.r, spread, case.aug_dim)
        assert direction_error(found, field.double(), r) < BAR, name
        every = spread.ranks.gather(found[None], [1] * size)
        assert all(torch.equal(one, found) for one in every), name
        own = pf.Charges(case.charges, case.weights).shard(group, queries="sharded", division=division)
        mine = slice(rank, None, size)  # uneven, and none where B < R
        for function in (pf.posterior_mean, pf.log_density, pf.score, pf.field_divergence):
            expected = function(case.x, case.r, whole, case.aug_dim)
            truth = function(case.x.double(), case.r.double(), wide, case.aug_dim)
            bar = 2 * relative(expected, truth) + BAR
            assert relative(function(case.x, case.r, spread, case.aug_dim), truth) < bar, (name, function)
            part = function(case.x[mine], case.r[mine], own, case.aug_dim)
            error = (part.double() - truth[mine]).norm() / truth.norm().clamp(min=1e-300)
            assert float(error) < bar, (name, function, "sharded")


def classes_weights_and_sampling(group: Any) -> None:
    data = torch.randint(0, 256, (23, 2, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 15)  # contiguous parts lack classes
    weights = torch.linspace(0.1, 3, 23)
    whole = pf.Charges(data, weights, labels)
    spread, own = whole.shard(group), whole.shard(group, queries="sharded")
    rank, size = spread.ranks.rank, spread.ranks.size
    generator = torch.Generator().manual_seed(2)
    x, r = torch.randn(7, 2, 3, 3, generator=generator), torch.logspace(-1, 1, 7)
    asked = torch.tensor([0, 2, 2, 1, 0, 0, 1])
    mine = slice(7 * rank // size, 7 * (rank + 1) // size)
    calls: list[Any] = [
        lambda c, x, r, k: pf.posterior_mean(x, r, c, labels=k),
        lambda c, x, r, k: pf.log_density(x, r, c, math.inf, labels=k),
        lambda c, x, r, k: pf.score(x, r, c, math.inf, labels=k),
        lambda c, x, r, k: pf.field_step(x, r, r / 2, c, labels=k),
        lambda c, x, r, k: pf.field_step(x, r, r / 2, c),
        lambda c, x, r, k: pf.pfgm_target(x, r, c, labels=k)[0],
        lambda c, x, r, k: pf.IdealDenoiser(c, 128.0)(x, r, k),
        lambda c, x, r, k: pf.IdealDenoiser(c)(x, 2.0, torch.eye(3)[k] * (k > 0)[:, None]),
        lambda c, x, r, k: pf.log_density(x, r, c.reweighted((c.log_weights * 2).exp()) if c.log_weights is not None else c),
    ]  # fmt: skip
    for number, call in enumerate(calls):
        expected = call(whole, x, r, asked)
        assert relative(call(spread, x, r, asked), expected) < BAR, number
        found = call(own, x[mine], r[mine], asked[mine])
        assert found.shape == expected[mine].shape
        assert float((found - expected[mine]).norm() / expected.norm()) < BAR, (number, "sharded")
    for method in (pf.PFGM(), pf.PFGMpp(aug_dim=128.0), pf.EDM()):
        drawn = [pf.sample(c, (4, 2, 3, 3), "heun", 5, seed=3, method=method).x for c in (spread, whole)]
        assert relative(*drawn) < 1e-5
    index = torch.randint(0, 23, (5 + rank,), generator=torch.Generator().manual_seed(rank))
    for division in ("contiguous", "interleaved"):
        assert torch.equal(whole.shard(group, division=division).values(index), whole.values(index))
    refused(pf.ArgumentError, "no charge has the label 9", pf.posterior_mean, x, r, spread, labels=asked + 9)
    refused(pf.ArgumentError, "walks over all charges", pf.PFGM.from_data, spread)
    refused(pf.DerivativeError, "no_grad", pf.posterior_mean, x.clone().requires_grad_(), r, spread)
    bad = x.clone()
    bad[3, 0, 0, 0] = math.nan
    finite = pf.posterior_mean(bad, r, spread).flatten(1).isfinite().all(1)
    assert finite.tolist() == [True, True, True, False, True, True, True]
    if size > 1:
        other = x.flip(0) if rank == size - 1 else x
        refused(pf.ArgumentError, "x differs between the ranks", pf.posterior_mean, other, r, spread)
        refused(pf.ArgumentError, "number of queries", pf.posterior_mean, x[: 6 + (rank == 0)], 1.0, spread)
        refused(pf.ArgumentError, "aug_dim differs", pf.posterior_mean, x, r, spread, 1.0 + rank)


def fewer_charges_than_ranks_and_separate_parts(group: Any) -> None:
    data = torch.randn(2, 5, generator=torch.Generator().manual_seed(5))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(6))
    whole = pf.Charges(data)
    for division in ("contiguous", "interleaved"):
        spread = whole.shard(group, division=division)
        assert relative(pf.score(x, 0.7, spread), pf.score(x, 0.7, whole)) < BAR
        assert relative(pf.log_density(x, 0.7, spread), pf.log_density(x, 0.7, whole)) < BAR
    assert pf.posterior_mean(x[:0], 0.7, whole.shard(group)).shape == (0, 5)
    rank, size = spread.ranks.rank, spread.ranks.size
    # parts of different sizes that no process has seen together: rank k has k charges
    parts = [torch.randn(k, 5, generator=torch.Generator().manual_seed(k)) for k in range(size + 1)]
    mine = pf.Charges(parts[rank]) if rank else None
    if size == 1:
        return refused(pf.ArgumentError, "every rank's part is empty", DistributedCharges, None, group)
    joined = DistributedCharges(mine, group)
    whole = pf.Charges(torch.cat(parts[:size]))
    assert relative(pf.posterior_mean(x, 0.7, joined), pf.posterior_mean(x, 0.7, whole)) < BAR
    assert torch.equal(joined.values(torch.arange(len(whole))), whole.values())
    odd = pf.Charges(torch.randn(2, 5 + (rank == 1)))
    refused(pf.ArgumentError, "the ranks' charges differ", DistributedCharges, odd, group)


def bytes_sent(group: Any) -> None:
    """What the module's docstring says, counted; and many messages a call give what one gives."""
    whole = pf.Charges(torch.randn(40, 10, generator=torch.Generator().manual_seed(7)))
    x = torch.randn(12, 10, generator=torch.Generator().manual_seed(8))
    spread, own = whole.shard(group), whole.shard(group, queries="sharded")
    size, rank = spread.ranks.size, spread.ranks.rank
    row = {
        pf.poisson_field: 4 * 10 + 8,
        pf.posterior_mean: 4 * 10 + 8,
        pf.score: 8 * 10 + 16,
        pf.log_density: 8,
    }
    for function, packed in row.items():
        for charges, queries, a_query in (
            (spread, x, 2 * packed),
            (own, x[: 12 // size], packed + 4 * 10 + 4),
        ):
            before = charges.ranks.sent
            function(queries, 1.0, charges)
            sent = sum(charges.ranks.objects(charges.ranks.sent - before))
            assert sent == (size - 1) * (12 * a_query + 48 * size), (function, sent)
    at_once = pf.score(x, 1.0, spread)
    kept, charges_distributed.MESSAGE_BYTES = charges_distributed.MESSAGE_BYTES, 1
    try:
        assert (
            torch.equal(pf.score(x, 1.0, spread), at_once)
            or relative(pf.score(x, 1.0, spread), at_once) < BAR
        )
        assert pf.score(x[: rank + 1], 1.0, own).shape == (rank + 1, 10)
    finally:
        charges_distributed.MESSAGE_BYTES = kept


def files(group: Any, folder: Path) -> None:
    """Charges of a file, each rank's part read by it alone."""
    data = torch.randint(0, 256, (30, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(30) % 3
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    path = folder / f"{size}-{rank}.npy"
    np.save(path, data.numpy())
    whole, spread = pf.Charges(data, labels=labels), pf.Charges.from_file(path, labels=labels).shard(group)
    x, asked = torch.randn(4, 12, generator=torch.Generator().manual_seed(10)), torch.tensor([2, 0, 1, 1])
    for k in (None, asked):
        assert relative(pf.score(x, 0.5, spread, labels=k), pf.score(x, 0.5, whole, labels=k)) < BAR
    if size > 1:
        rows = spread.local._parts(1 << 20)  # type: ignore[union-attr]
        assert sum(stop - start for _, (start, stop) in rows) == len(spread.local) < 30  # type: ignore[arg-type]
    assert torch.equal(spread.values(torch.tensor([29, 0, 17])), whole.values(torch.tensor([29, 0, 17])))


def a_planted_fault_is_seen() -> None:
    """Without the parts' weights the merge is wrong, and the checks say so."""
    kept = partials.Merge.add
    partials.Merge.add = lambda self, *outputs: kept(self, *outputs[:-1], torch.zeros_like(outputs[-1]))  # type: ignore[method-assign]
    try:
        hard_cases(None)
    except AssertionError:
        return
    finally:
        partials.Merge.add = kept  # type: ignore[method-assign]
    raise AssertionError("a merge without weights was not seen")


def main(rank: int, folder: Path) -> None:
    with forked.group(folder, "field", rank, SIZE):
        groups = [dist.new_group(list(range(count))) for count in range(1, SIZE)]
        for count, group in enumerate([*groups, init_device_mesh("cpu", (SIZE,))], 1):
            if rank < count:
                hard_cases(group)
                classes_weights_and_sampling(group)
                fewer_charges_than_ranks_and_separate_parts(group)
                bytes_sent(group)
                files(group if count < SIZE else None, folder)
        a_planted_fault_is_seen()
        mesh = init_device_mesh("cpu", (2, SIZE // 2), mesh_dim_names=("a", "b"))
        refused(pf.ArgumentError, "name one", pf.Charges(torch.zeros(3, 2)).shard, mesh)
