"""On a GPU: charges in a file, their blocks sent over, and charges of a process group of NCCL, against charges on the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import pfgm_fast as pf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


def _bytes(count: int, dim: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, dim), dtype=torch.uint8, generator=draw)


def _same(found: pf.Charges, whole: pf.Charges) -> None:
    """Every field function of the two, at queries from near a charge to far from all."""
    draw = torch.Generator("cuda").manual_seed(1)
    r = torch.logspace(-1, 2, 24, device="cuda")
    index = torch.arange(24, device="cuda")
    x = whole.values(index) + 0.05 * r[:, None] * torch.randn(24, whole.dim, device="cuda", generator=draw)
    for function in (pf.posterior_mean, pf.log_density, pf.score):
        torch.testing.assert_close(function(x, r, found), function(x, r, whole), rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(found.values(index), whole.values(index), rtol=0, atol=0)


def test_a_file_of_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pfgm_fast import charges_file

    stored = _bytes(1000, 768)
    np.save(tmp_path / "charges.npy", stored.numpy())
    monkeypatch.setattr(charges_file, "BLOCK_BYTES", 300 * 768)
    file = pf.Charges.from_file(tmp_path / "charges.npy").to("cuda")
    assert len(list(file.read())) == 4
    _same(file, pf.Charges(stored.cuda()))
    picked = torch.arange(10, 990, 7)
    _same(file.rows(picked), pf.Charges(stored[picked].cuda()))


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    if not dist.is_nccl_available():
        pytest.skip("this PyTorch has no NCCL")
    device = torch.device("cuda", 0)
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, device_id=device
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("queries", ["replicated", "sharded"])
def test_a_group_of_nccl(nccl: None, queries: str) -> None:
    """One rank: its collectives are called all the same."""
    whole = pf.Charges(_bytes(600, 192).cuda())
    _same(pf.Charges(whole.data).shard(queries=queries), whole)
