"""`sample` against trajectories of EDM's own sampler, and with their kind of networks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.compat import edm

NAMES = ["pfgmpp_ddpmpp", "pfgmpp_ncsnpp", "edm_ddpmpp_cond", "edm_adm_cond", "vp_ddpmpp", "ve_ncsnpp"]


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_trajectories_of_the_authors(shared, name: str) -> None:
    """Heun of 6 steps, 11 evaluations, float64 between them, from their start: ≤ 1e-4; the network's own D and σ range choose."""
    folder = shared / "fixtures" / "edm"
    given = {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(folder / f"{name}.npz").items()}
    net = edm.load_checkpoint(folder / f"{name}.pkl")
    labels = None if "labels" not in given else given["labels"][: len(given["sampler_x0"])]
    dim = json.loads((folder / "index.json").read_text())[name]["D"] or math.inf
    x0 = given["sampler_x0"].double()
    for method in (None, pf.PFGMpp(dim), pf.EDM()):
        out = pf.sample(net, tuple(x0.shape), "heun", 6, x0=x0, labels=labels, method=method)
        assert out.nfe == int(given["sampler_nfe"]) == 11
        assert out.x.dtype == torch.float64
        error = float((out.x - given["sampler_x"]).norm() / given["sampler_x"].norm())
        assert error <= 1e-4, error
    single = pf.sample(net, tuple(x0.shape), "heun", 6, x0=x0.float(), labels=labels)
    assert float((single.x - given["sampler_x"]).norm() / given["sampler_x"].norm()) <= 1e-3
    if labels is not None:
        other = pf.sample(net, tuple(x0.shape), "heun", 6, x0=x0, labels=labels.argmax(1))
        torch.testing.assert_close(other.x, out.x, rtol=1e-5, atol=1e-5)


def test_discrete_noise_levels_are_kept() -> None:
    """A network that knows some σ only, as improved DDPM's, is asked for those, each once."""
    levels = torch.logspace(-2, 1, 7, dtype=torch.float64)
    seen = []

    class Discrete(torch.nn.Module):
        sigma_min, sigma_max = 0.01, 10.0

        def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
            return levels[(levels - sigma).abs().argmin()]

        def forward(self, x, sigma, labels=None):
            seen.append(float(sigma[0]))
            return 0 * x

    pf.sample(Discrete(), (2, 3), "dpm_solver++", 20, seed=0, x0=torch.ones(2, 3, dtype=torch.float64))
    assert seen == levels.flip(0).tolist()
