# %% [markdown]
# # The ideal denoiser in k-diffusion's samplers
# k-diffusion's samplers take a model `model(x, sigma, **extra_args)` that returns the denoised images. `pf.IdealDenoiser` is such a model:
# the exact mean of the data behind each noisy image, which no network can beat. So a sampler's own error shows, without a network's.

# %%
import itertools
import math
import os

import torch

import pfgm_fast as pf

try:
    from k_diffusion.sampling import get_sigmas_karras, sample_heun
except ImportError:  # the same calling convention, for where k-diffusion is not installed

    def get_sigmas_karras(n, sigma_min, sigma_max, rho=7.0):
        """Karras et al. 2022, eq. 5, and 0."""
        ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        return torch.cat([torch.linspace(*ends, n) ** rho, torch.zeros(1)])

    def sample_heun(model, x, sigmas, extra_args=None):
        """Karras et al. 2022, algorithm 1."""
        extra_args, ones = extra_args or {}, x.new_ones(len(x))
        for sigma, following in itertools.pairwise(sigmas):
            slope = (x - model(x, sigma * ones, **extra_args)) / sigma
            predicted = x + (following - sigma) * slope
            if following > 0:
                slope = (
                    slope + (predicted - model(predicted, following * ones, **extra_args)) / following
                ) / 2
            x = x + (following - sigma) * slope
        return x


SIZE = int(os.environ.get("PFGM_FAST_EXAMPLE_SIZE", 1000))

# %%
torch.manual_seed(0)
angle = 2 * math.pi * torch.rand(SIZE)
data = torch.stack([angle.cos(), angle.sin()], 1) * 0.7  # a circle
labels = (angle > math.pi).long()
ideal = pf.IdealDenoiser(pf.Charges(data, labels=labels))

# %% [markdown]
# The distance between where few evaluations end and where many do: the solver's error alone.

# %%
start = 80 * torch.randn(200, 2)
many = sample_heun(ideal, start, get_sigmas_karras(400, 0.002, 80.0))
for steps in (5, 10, 20, 40):
    x = sample_heun(ideal, start, get_sigmas_karras(steps, 0.002, 80.0))
    print(f"{2 * steps - 1:3d} evaluations: {float((x - many).norm(dim=1).median()):.5f} from where 799 end")

# %% [markdown]
# Classes go through `extra_args`, as with a network.

# %%
upper = torch.zeros(200, dtype=torch.int64)
x = sample_heun(ideal, start, get_sigmas_karras(20, 0.002, 80.0), extra_args={"labels": upper})
print(f"{float((x[:, 1] > -0.05).double().mean()):.0%} in the upper half")
