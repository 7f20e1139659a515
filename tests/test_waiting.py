"""Nothing in the loops of training and sampling waits for the device: what would is counted here on the CPU, on a GPU it is an error
(tests/gpu/test_loops.py)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pfgm_fast as pf
from pfgm_fast import checks
from pfgm_fast.data import load
from pfgm_fast.methods import EDM, PFGM, VESDE, VPSDE, PFGMpp
from pfgm_fast.nn import DDPMpp, UNetConfig
from pfgm_fast.training import RunConfig, TrainConfig, Trainer
from pfgm_fast.training import trainer as trainer_module
from pfgm_fast.training.watch import Watch

READS = ("_local_scalar_dense", "nonzero", "_unique2", "unique_consecutive", "masked_select", "equal")
"""Operators of which the host needs the result, or the size of it."""
SENDS = ("lift_fresh",)
"""torch.tensor(numbers, device=…): a copy from memory that is not pinned, for which the host waits."""
NET = UNetConfig(1, 8, 8, (1, 2), 1, (4,), dropout=0.1)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU. The tensors are the CPU's, where reading is free: `on_a_gpu` hides that from the checks."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]
        )
        if masks or name in READS + SENDS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the package does only because the tensors are the CPU's is left out: values at the door, a look after each update."""
    monkeypatch.setattr(checks, "_values", lambda value: None)
    monkeypatch.setattr(Watch, "due", property(lambda self: False))
    return


def test_the_counter_sees() -> None:
    values, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    for wait in (
        lambda: values.sum().item(),
        lambda: float(values[0]),
        lambda: 1 if values.any() else 0,
        lambda: values[mask],
        lambda: values.masked_fill(mask, 0)[mask.nonzero().flatten()],
        lambda: torch.tensor([1.0, 2.0]),
        lambda: values.unique(),
    ):
        with Waits() as waits:
            wait()
        assert waits.found, wait
    with Waits() as waits:
        values[torch.arange(2)].sum().add_(1).clamp(0, 3)
    assert not waits.found


METHODS = {
    "PFGM": PFGM(m_exp=100),
    "PFGM++": PFGMpp(aug_dim=128),
    "PFGM++, one image's targets": PFGMpp(aug_dim=2048, stable=False),
    "EDM": EDM(),
    "VE": VESDE(),
    "VP": VPSDE(),
}
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "averages by rate": ("PFGM", {"ema": (0.9, 0.99)}),
    "averages by half-life": ("EDM", {"ema_half_life": (500, 5000)}),
    "optimal loss, PFGM": ("PFGM", {"optimal_every": 1}),
    "optimal loss, PFGM++": ("PFGM++", {"optimal_every": 1}),
    "bfloat16, parts": ("EDM", {"precision": "bfloat16", "accumulate": 2}),
    "some of the charges": ("PFGM", {"field_charges": 20}),
    "a reservoir": ("PFGM", {"reservoir": 24}),
    "one image's targets": ("PFGM++, one image's targets", {"clip": 0.0}),
    "VE": ("VE", {}),
    "VP": ("VP", {}),
}


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("case", TRAININGS)
def test_updates_wait_for_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through an epoch's end; the look after the first update and the save at the end are on purpose."""
    method, more = TRAININGS[case]
    train = TrainConfig(
        **{"steps": 7, "batch": 8, "flip": False, "log_every": 0, "sample_every": 0, "checkpoint_every": 1000, **more}
    )  # fmt: skip
    config = RunConfig("digits", method=METHODS[method].to_dict(), network=NET, train=train)
    trainer = Trainer(config, tmp_path, images=load("digits").select(torch.arange(42)))
    waits, update, updates = Waits(), Trainer._update, []

    def counted(self: Trainer) -> tuple[Tensor, Tensor]:
        with waits:
            updates.append(update(self))
        return updates[-1]

    monkeypatch.setattr(trainer_module.Trainer, "_update", counted)
    trainer.run(progress=False)
    assert len(updates) == 7 and all(math.isfinite(float(norm)) for _, norm in updates)
    assert not waits.found


SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "PFGM, Euler": ("PFGM", {"solver": "euler"}),
    "PFGM, Heun": ("PFGM", {"solver": "heun"}),
    "PFGM, held to the data": ("PFGM, box", {"solver": "euler", "denoise": True}),
    "PFGM++, Heun": ("PFGM++", {"solver": "heun"}),
    "EDM, Heun": ("EDM", {"solver": "heun"}),
    "EDM, churn": ("EDM", {"solver": "heun", "S_churn": 10.0, "S_noise": 1.003}),
    "EDM, DPM-Solver++": ("EDM", {"solver": "dpm_solver++"}),
    "EDM, clipped": ("EDM", {"solver": "euler", "clip_denoised": "dynamic"}),
    "VE, predictor and corrector": ("VE", {"solver": "predictor_corrector"}),
    "VP, ancestral": ("VP", {"solver": "ancestral"}),
    "PFGM++, robustness": ("PFGM++", {"solver": "euler", "noise_alpha": 0.1}),
}


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("field", [False, True], ids=["network", "charges"])
@pytest.mark.parametrize("case", SAMPLERS)
def test_steps_wait_for_nothing(case: str, field: bool) -> None:
    name, more = SAMPLERS[case]
    method = replace(PFGM(), data_radius="box") if name == "PFGM, box" else METHODS[name]
    torch.manual_seed(0)
    net = load("digits").select(torch.arange(50)).charges() if field else DDPMpp(NET)
    with Waits() as waits:
        out = pf.sample(net, (2, 1, 8, 8), steps=4, method=method, **more)
    assert out.x.isfinite().all()
    assert not waits.found
