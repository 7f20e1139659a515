# %% [markdown]
# # Charges spread over processes
# Each rank keeps a part of the data, and every rank gets the field of all of it: `torchrun --nproc-per-node 4 torchrun.py`. Alone it is one
# rank. To train by the command line on several processes no script is needed: `torchrun -m pfgm_fast train …` (docs/scale.md).

# %%
import os
import tempfile

import torch
from torch import distributed

import pfgm_fast as pf

SIZE = int(os.environ.get("PFGM_FAST_EXAMPLE_SIZE", 20000))

# %%
backend = "nccl" if torch.cuda.is_available() else "gloo"
if "RANK" in os.environ:  # under torchrun
    distributed.init_process_group(backend)
else:
    store = distributed.FileStore(tempfile.mktemp(), 1)
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
rank = distributed.get_rank()
device = torch.device("cuda", rank % torch.cuda.device_count()) if backend == "nccl" else torch.device("cpu")

# %% [markdown]
# Here every rank makes the same data and keeps its part; `pf.Charges.from_file(path).shard()` reads its part of a file alone.

# %%
torch.manual_seed(0)
data, x = torch.randn(SIZE, 32), torch.randn(16, 32).to(device)
spread = pf.Charges(data).to(device).shard()
mean = pf.posterior_mean(x, sigma=0.5, charges=spread, aug_dim=128.0)

# %%
whole = pf.posterior_mean(x, sigma=0.5, charges=pf.Charges(data).to(device), aug_dim=128.0)
difference = float((mean - whole).norm() / whole.norm())
assert difference < 1e-5
if rank == 0:
    print(
        f"{len(spread)} charges on {distributed.get_world_size()} ranks: {difference:.1e} from those of one process"
    )
distributed.destroy_process_group()
