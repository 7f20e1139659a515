"""On a GPU: an update, and a sample from its prior to its last step, wait for nothing; tests/test_waiting.py counts the same on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.data import ImageSet
from pfgm_fast.methods import EDM, PFGM, PFGMpp
from pfgm_fast.nn import DDPMpp, UNetConfig
from pfgm_fast.training import RunConfig, TrainConfig, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
NET = UNetConfig(3, 16, 16, (1, 2), 1, (8,), dropout=0.1)
METHODS = {"PFGM": PFGM(), "PFGM++": PFGMpp(aug_dim=128), "EDM": EDM()}


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))  # fmt: skip


def test_the_mode_sees() -> None:
    value = torch.ones(3, device="cuda")
    for wait in (
        lambda: value.sum().item(),
        lambda: torch.ones(3).to("cuda"),
        lambda: torch.tensor([1.0, 2.0], device="cuda"),
        lambda: value[value > 0],
    ):
        with pytest.raises(RuntimeError, match="synchroniz"), waiting_is_an_error():
            wait()


TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "averages by rate": ("PFGM", {"ema": (0.9, 0.99)}),
    "averages by half-life": ("EDM", {"ema_half_life": (500, 5000)}),
    "optimal loss, PFGM": ("PFGM", {"optimal_every": 1}),
    "optimal loss, PFGM++": ("PFGM++", {"optimal_every": 1}),
    "bfloat16, parts": ("PFGM", {"precision": "bfloat16", "accumulate": 2}),
    "some of the charges": ("PFGM", {"field_charges": 40}),
    "a reservoir": ("PFGM", {"reservoir": 40}),
}


@pytest.mark.parametrize("case", TRAININGS)
def test_updates_wait_for_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through an epoch's end. The first update builds and checks what is built and checked on first use."""
    method, more = TRAININGS[case]
    given: dict[str, Any] = {"steps": 9, "batch": 16, "flip": False, "log_every": 0, "sample_every": 0, "checkpoint_every": 1000}  # fmt: skip
    config = RunConfig(
        "memory", method=METHODS[method].to_dict(), network=NET, train=TrainConfig(**given | more)
    )
    trainer = Trainer(config, tmp_path, "cuda", images=ImageSet("memory", _images(84)))
    update, updates = Trainer._update, []

    def watched(self: Trainer) -> tuple[Tensor, Tensor]:
        if not updates:
            updates.append(update(self))
        else:
            with waiting_is_an_error():
                updates.append(update(self))
        return updates[-1]

    monkeypatch.setattr(Trainer, "_update", watched)
    trainer.run(progress=False)
    assert len(updates) == 9 and all(math.isfinite(float(norm)) for _, norm in updates)


SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "PFGM, Euler": ("PFGM", {"solver": "euler"}),
    "PFGM, Heun": ("PFGM", {"solver": "heun"}),
    "PFGM, held to the data": ("PFGM, box", {"solver": "euler", "denoise": True}),
    "PFGM++, Heun": ("PFGM++", {"solver": "heun"}),
    "EDM, Heun": ("EDM", {"solver": "heun"}),
    "EDM, churn": ("EDM", {"solver": "heun", "S_churn": 10.0}),
    "EDM, DPM-Solver++": ("EDM", {"solver": "dpm_solver++"}),
}


@pytest.mark.parametrize("seed", [None, 3], ids=["", "seed"])
@pytest.mark.parametrize("field", [False, True], ids=["network", "charges"])
@pytest.mark.parametrize("case", SAMPLERS)
def test_samples_wait_for_nothing(case: str, field: bool, seed: int | None) -> None:
    name, more = SAMPLERS[case]
    method = replace(PFGM(), data_radius="box") if name == "PFGM, box" else METHODS[name]
    torch.manual_seed(0)
    net = pf.Charges(_images(60).cuda()) if field else DDPMpp(NET).cuda()
    pf.sample(net, (2, 3, 16, 16), steps=2, method=method, **more)  # what is built on first use
    with waiting_is_an_error():
        out = pf.sample(net, (2, 3, 16, 16), steps=5, method=method, seed=seed, **more)
    assert out.x.isfinite().all()
