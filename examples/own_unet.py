# %% [markdown]
# # Your own U-Net, a plain loop, exact targets
# PFGM trained by twenty lines that are yours. The package gives two things: the perturbation, and at each perturbed image the field of
# *all* images instead of that of a mini-batch.

# %%
import os

import torch
from torch import Tensor, nn

import pfgm_fast as pf

STEPS = int(os.environ.get("PFGM_FAST_EXAMPLE_SIZE", 2000))  # the tests run this file with few


# %% [markdown]
# Any network will do that is called as `net(x, z)` and returns `v_x`, of x's shape, or `(v_x, v_z)`.


# %%
class UNet(nn.Module):
    def __init__(self, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        self.height = nn.Sequential(nn.Linear(1, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.into = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.out = nn.Conv2d(2 * width, channels, 3, padding=1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale = (1 + z.square() + x.flatten(1).square().mean(1)).sqrt()[:, None, None, None]
        wide = nn.functional.silu(
            self.into(x / scale)
        )  # the perturbed images are up to a thousand times larger than the data
        deep = self.down(wide) + self.height(z.log()[:, None])[:, :, None, None]
        deep = deep + self.middle(nn.functional.silu(deep))
        return self.out(torch.cat([wide, self.up(nn.functional.silu(deep))], 1))


# %% [markdown]
# The data: a thousand discs of 16 × 16 pixels, as bytes.

# %%
torch.manual_seed(0)
row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
centre, radius = 5 + 6 * torch.rand(1000, 2, 1, 1), 2 + 3 * torch.rand(1000, 1, 1)
inside = (row - centre[:, 0]).square() + (column - centre[:, 1]).square() < radius.square()
charges = pf.Charges((255 * inside[:, None]).to(torch.uint8))  # bytes stay bytes; their values are in [-1, 1]
method = pf.PFGM.from_data(charges)
print(method)

# %% [markdown]
# The loop.

# %%
net = UNet()
adam = torch.optim.Adam(net.parameters(), 1e-3)
for step in range(STEPS):
    index = torch.randint(len(charges), (64,))
    x, z = method.perturb(charges.values(index))
    vx, _ = pf.pfgm_target(x, z, charges, gamma=method.gamma)
    loss = (net(x, z) - vx).square().mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
    if step % 200 == 0 or step == STEPS - 1:
        print(f"update {step}: loss {float(loss):.4f}")

# %% [markdown]
# Samples, and their picture.

# %%
out = pf.sample(net, (16, 1, 16, 16), steps=40, method=method, seed=0)
pf.plots.save_image(pf.plots.image_grid(out.x.clamp(-1, 1)), "discs.png")
print(f"{len(out.x)} samples in {out.nfe} evaluations: discs.png")
