# %% [markdown]
# # A toy in two dimensions
# The Poisson field of points on a heart: its picture, a training batch of PFGM with exact targets, and new points by following the
# field, with no network at all.

# %%
import math
import os

import torch

import pfgm_fast as pf

M = int(os.environ.get("PFGM_FAST_EXAMPLE_SIZE", 4000))  # the tests run this file with few points

# %%
torch.manual_seed(0)
t = 2 * math.pi * torch.rand(M)
heart = torch.stack([16 * t.sin() ** 3, 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos()], 1)
charges = pf.Charges(heart / 10)
pf.plots.field_lines(charges, "heart.png")

# %% [markdown]
# A training batch: points pushed off the data into the half-space z > 0, and at each of them the direction of the field of *all* charges.

# %%
method = pf.PFGM.from_data(charges)
x, z = method.perturb(charges.values(slice(0, 128)))
vx, vz = pf.pfgm_target(x, z, charges, gamma=method.gamma)
print(f"128 targets of length {float(torch.cat([vx, vz[:, None]], 1).norm(dim=1).mean()):.3f}, at most √2")

# %% [markdown]
# New points: from the prior at z = 40 down to the data, in 20 steps of Heun's method.

# %%
out = pf.sample(charges, (512, 2), solver="heun", steps=20, seed=0, record=True)
nearest = torch.cdist(out.x, charges.values()).amin(1)
print(f"512 points in {out.nfe} evaluations, {float(nearest.max()):.4f} from the heart at most")

# %%
pf.plots.trajectories(out.path, charges, "paths.png")
pf.plots.animation(out.path, "heart.gif", charges)
