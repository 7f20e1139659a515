# %% [markdown]
# # Stable targets in an EDM training loop
# Denoising score matching regresses on the one image that was perturbed; at middle noise levels that target is mostly variance. The posterior
# mean over the whole data set (`pf.posterior_mean`) is what the network converges to anyway, without the variance. In a loop of your own it
# is one line.

# %%
import os

import torch
from torch import nn

import pfgm_fast as pf

STEPS = int(os.environ.get("PFGM_FAST_EXAMPLE_SIZE", 2000))

# %%
torch.manual_seed(0)
data = torch.randn(2000, 8).sign() * 0.5 + 0.05 * torch.randn(
    2000, 8
)  # 256 clusters at the corners of a cube
charges = pf.Charges(data)


class Denoiser(nn.Module):
    """D(x; σ) = c_skip x + c_out F(c_in x, ln(σ)/4): Karras et al. 2022, table 1."""

    def __init__(self, dim: int, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.net = nn.Sequential(
            nn.Linear(dim + 1, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, dim)
        )

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        total = (sigma.square() + self.sigma_data**2)[:, None]
        raw = self.net(torch.cat([x / total.sqrt(), sigma.log()[:, None] / 4], 1))
        return self.sigma_data**2 / total * x + sigma[:, None] * self.sigma_data / total.sqrt() * raw


# %% [markdown]
# Two trainings that differ in the target alone.


# %%
def train(stable: bool) -> Denoiser:
    torch.manual_seed(1)
    net = Denoiser(8)
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(STEPS):
        y = data[torch.randint(len(data), (128,))]
        sigma = (-1.2 + 1.2 * torch.randn(128)).exp()
        x = y + sigma[:, None] * torch.randn_like(y)
        target = pf.posterior_mean(x, sigma=sigma, charges=charges, aug_dim=torch.inf) if stable else y
        weight = (sigma.square() + 0.25) / (sigma * 0.5).square()
        loss = (weight[:, None] * (net(x, sigma) - target).square()).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net


for stable in (False, True):
    net = train(stable)
    torch.manual_seed(2)
    y, sigma = data, torch.full((len(data),), 0.4)
    x = y + 0.4 * torch.randn_like(y)
    with torch.no_grad():
        error = (
            (net(x, sigma) - pf.posterior_mean(x, sigma=sigma, charges=charges, aug_dim=torch.inf))
            .square()
            .mean()
        )
    name = "posterior mean" if stable else "the one image "
    print(f"target {name}: error against the ideal denoiser at σ = 0.4: {float(error):.5f}")

# %% [markdown]
# Samples of the network that was trained last.

# %%
out = pf.sample(pf.Denoiser(net, sigma_min=0.002, sigma_max=80.0), (64, 8), "heun", 18, seed=0)
print(f"{len(out.x)} samples, {float((out.x.abs() - 0.5).abs().mean()):.3f} from the corners on average")
