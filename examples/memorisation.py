# %% [markdown]
# # Are samples copies of the training data?
# The test of the literature: a sample is a copy where its nearest training image is three times nearer than the next different one
# (arXiv 2310.02664). Distances are exact, over the whole data set.

# %%
import os

import torch

import pfgm_fast as pf
from pfgm_fast import studies

SIZE = int(os.environ.get("PFGM_FAST_EXAMPLE_SIZE", 2000))

# %%
torch.manual_seed(0)
data = torch.rand(SIZE, 3, 8, 8) * 2 - 1
fresh = torch.rand(20, 3, 8, 8) * 2 - 1
copies = (data[:5] + 0.02 * torch.randn(5, 3, 8, 8)).clamp(-1, 1)
found = studies.memorization(torch.cat([fresh, copies]), data)
print(
    f"copies: {found.copies.nonzero().flatten().tolist()}, of the images {found.nearest[found.copies].tolist()}"
)

# %% [markdown]
# Samples of the exact field, which is all that a network with unlimited capacity would learn, are copies, every one of them: generalisation
# is what a network gets wrong.

# %%
samples = pf.sample(pf.Charges(data), (16, 3, 8, 8), "heun", 18, aug_dim=torch.inf, seed=0).x
print(f"of the exact field's samples {studies.memorization(samples, data).fraction:.0%} are copies")
