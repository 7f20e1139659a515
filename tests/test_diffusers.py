"""PFGMScheduler in the loops of the library diffusers gives what pf.sample gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pfgm_fast as pf

diffusers = pytest.importorskip("diffusers", reason="diffusers is of the extra [diffusers]")

from pfgm_fast.compat.diffusers import PFGMScheduler  # noqa: E402

METHODS = {
    "pfgm": pf.PFGM(z_max=20.0),
    "pfgm held to its data": pf.PFGM(z_max=20.0, data_radius=3.0),
    "pfgmpp": pf.PFGMpp(aug_dim=128.0),
    "edm": pf.EDM(sigma_max=20.0),
    "ve": pf.VESDE(sigma_max=20.0),
    "vp": pf.VPSDE(),
}


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4,
    )  # fmt: skip
    return net.eval()


@torch.no_grad()
def loop(scheduler: PFGMScheduler, net: Any, x: Tensor, steps: int) -> Tensor:
    """The loop of diffusers' pipelines."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        out = net(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(getattr(out, "sample", out), t, x).prev_sample
    return x


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("name", METHODS)
def test_a_loop_with_a_unet_is_sample(unet: Any, name: str, solver: str) -> None:
    method = METHODS[name]
    scheduler = PFGMScheduler.from_method(method, solver=solver)
    assert isinstance(scheduler, diffusers.SchedulerMixin) and scheduler.order == (
        2 if solver == "heun" else 1
    )
    x = scheduler.prior((3, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    expected = pf.sample(unet, (3, 1, 8, 8), solver, 6, x0=x, method=method)
    got = loop(scheduler, unet, x, 6)
    scale = float(expected.x.abs().max())
    assert float((got - expected.x).abs().max()) <= 1e-5 * scale
    assert len(scheduler.timesteps) == expected.nfe


@pytest.mark.parametrize("method", [pf.PFGM(), pf.PFGMpp(aug_dim=8.0), pf.EDM()], ids=lambda m: m.name)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_denoiser_ends_on_the_data(method: Any, solver: str) -> None:
    data = torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    ideal = pf.IdealDenoiser(data, aug_dim=getattr(method, "aug_dim", 1.0))
    scheduler = PFGMScheduler.from_method(method, solver=solver, prediction_type="denoised", denoise=True)
    x = scheduler.prior((5, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    got = loop(scheduler, ideal, x, 40)
    expected = pf.sample(ideal, (5, 1, 4, 4), solver, 40, x0=x, method=method, denoise=True).x
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert float(torch.cdist(got.flatten(1), data.flatten(1)).amin(1).max()) < 0.05


def test_a_network_may_give_both_components() -> None:
    scheduler = PFGMScheduler.from_method(pf.PFGM(z_max=10.0, z_min=0.1, z_exp=0.0))
    scheduler.set_timesteps(3)
    x, vx, vz = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), -torch.rand(2) - 0.5
    t = scheduler.timesteps[0]
    z, z_next = scheduler.timesteps[:2].tolist()
    expected = pf.euler_step(x, vx, vz, z, z_next, z_exp=0.0)
    torch.testing.assert_close(scheduler.step((vx, vz), t, x, return_dict=False)[0], expected)


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    scheduler = PFGMScheduler.from_method(METHODS[name], solver="heun")
    scheduler.save_pretrained(tmp_path)
    again = PFGMScheduler.from_pretrained(tmp_path)
    assert again.method == METHODS[name] and again.order == 2
    other = PFGMScheduler.from_config(scheduler.config, solver="euler")
    assert other.method == METHODS[name] and other.order == 1
    torch.testing.assert_close(again.timesteps, scheduler.timesteps)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_noise_is_added_and_a_loop_begins_in_the_middle(solver: str) -> None:
    """As image-to-image pipelines do: noise at a timestep, then the steps from it on."""
    scheduler = PFGMScheduler.from_method(pf.EDM(), solver=solver, prediction_type="denoised")
    scheduler.set_timesteps(10)
    middle = 4 * scheduler.order - (
        solver == "heun"
    )  # with Heun's method the evaluation that begins the step
    data, noise = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4)
    t = scheduler.timesteps[middle]
    x = scheduler.add_noise(data, noise, t.expand(6))
    torch.testing.assert_close(x, data + t * noise)
    ideal = pf.IdealDenoiser(data)
    for t in scheduler.timesteps[middle + (solver == "heun") :]:
        x = scheduler.step(ideal(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    assert bool(x.isfinite().all())
    assert scheduler.step_index == len(scheduler.timesteps)
    with pytest.raises(pf.ArgumentError, match="timesteps are done"):
        scheduler.step(x, t, x)


def test_gaussian_starts() -> None:
    assert PFGMScheduler.from_method(pf.EDM(sigma_max=80.0)).init_noise_sigma == 80.0
    assert PFGMScheduler.from_method(pf.VPSDE()).init_noise_sigma == pytest.approx(1.0, abs=1e-4)


def test_it_serves_a_pipeline_of_diffusers(unet: Any) -> None:
    """DDPMPipeline knows schedulers by their interface alone."""
    pipeline = diffusers.DDPMPipeline(unet=unet, scheduler=PFGMScheduler.from_method(pf.VESDE(sigma_max=5.0)))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=2, num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    assert images.shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"solver": "rk45"}, "solver must be one of euler, heun"),
        ({"prediction_type": "epsilon"}, "prediction_type must be one of"),
        ({"method": {"name": "ddpm"}}, "the method must be one of"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be an integer"),
    ],
)
def test_refusals(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(pf.ArgumentError, match=said):
        PFGMScheduler(**wrong)
