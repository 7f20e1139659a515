# %% [markdown]
# # Likelihood
# A flow carries the prior to the data, so a point has a density: the prior's at the other end of its path, and the integral of the divergence
# along it. Of the exact field the divergence is known in closed form, so nothing is estimated.

# %%
import os

import torch

import pfgm_fast as pf

SIZE = int(os.environ.get("PFGM_FAST_EXAMPLE_SIZE", 500))

# %%
torch.manual_seed(0)
charges = pf.Charges(torch.randn(SIZE, 2))
x = torch.randn(6, 2)
method = pf.EDM(sigma_min=0.3)
found = pf.log_likelihood(charges, x, method)

# %% [markdown]
# The same from the definition: the density of the data under Gaussian noise of σ = 0.3.

# %%
exact = pf.log_density(
    x.double(), sigma=0.3, charges=pf.Charges(charges.values().double()), aug_dim=torch.inf
)
print("by the flow  ", [f"{v:.4f}" for v in found.log_density.tolist()])
print("by definition", [f"{v:.4f}" for v in exact.tolist()])
worst = float((found.log_density - exact).abs().max())
print(f"{found.nfe} evaluations; they differ by {worst:.1e} nats at most")
assert worst < 0.05

# %% [markdown]
# Images of bytes: bits per dimension, by uniform dequantisation. Any network goes in the charges' place.

# %%
images = torch.randint(0, 256, (4, 1, 4, 4), dtype=torch.uint8)
bits = pf.bits_per_dim(pf.Charges(images), images, pf.EDM(), generator=torch.Generator().manual_seed(0))
print(f"{bits.mean:.2f} bits a dimension of images that the model knows by heart")
