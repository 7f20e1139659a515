"""On a GPU: updates replayed from a CUDA graph are the eager ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfgm_fast import presets
from pfgm_fast.training import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_updates_graph_and_loop_agree(tmp_path: Path, precision: str) -> None:
    """captures_and_replays: losses and gradient norms of 20 updates, dropout and the draws of the method included."""
    base = presets.preset("digits")
    network = replace(base.network, width=16, blocks=1, dropout=0.1)
    found = []
    for captured in (False, True):
        train = replace(base.train, steps=20, batch=32, log_every=1, precision=precision, cuda_graph=captured)
        trainer = Trainer(replace(base, network=network, train=train), tmp_path / str(captured), "cuda")
        assert (trainer._captured is not None) == captured
        torch.cuda.manual_seed(5)
        trainer.run(progress=False)
        lines = (tmp_path / str(captured) / "metrics.csv").read_text().splitlines()[1:]
        found.append(torch.tensor([[float(n) for n in line.split(",")[:3]] for line in lines]))
    assert found[0].shape == (20, 3)
    rtol = 5e-3 if precision == "float32" else 5e-2  # sums by atomics in PyTorch's own backward passes
    torch.testing.assert_close(found[0], found[1], rtol=rtol, atol=1e-3)
