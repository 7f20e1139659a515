# %% [markdown]
# # A loop of Hugging Face accelerate
# `prepare`, `backward`, `gather`: the loop stays accelerate's; the targets come from charges on the process's own device. Run it by
# `python accelerate_loop.py`, or on several processes by `accelerate launch accelerate_loop.py`.

# %%
import os

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pfgm_fast as pf

SIZE = int(os.environ.get("PFGM_FAST_EXAMPLE_SIZE", 4000))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 3)
        )

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        scale = (1 + z.square() + x.square().sum(1)).sqrt()[:, None]
        v = self.layers(torch.cat([x / scale, z.log()[:, None]], 1))
        return v[:, :2], v[:, 2]


# %%
torch.manual_seed(0)
accelerator = Accelerator()
data = torch.randn(SIZE, 2).sign() + 0.1 * torch.randn(SIZE, 2)
charges = pf.Charges(data).to(accelerator.device)
method = pf.PFGM.from_data(charges)
net, loader = Net(), DataLoader(TensorDataset(data), batch_size=64, shuffle=True)
net, adam, loader = accelerator.prepare(net, torch.optim.Adam(net.parameters(), 1e-3), loader)

# %%
for epoch in range(3):
    for (y,) in loader:
        x, z = method.perturb(y)
        vx, vz = pf.pfgm_target(x, z, charges, gamma=method.gamma)
        guess_x, guess_z = net(x, z)
        loss = (guess_x - vx).square().mean() + (guess_z - vz).square().mean()
        adam.zero_grad()
        accelerator.backward(loss)
        adam.step()
    mean = accelerator.gather(loss.detach()).mean()
    accelerator.print(f"epoch {epoch}: loss {float(mean):.4f}")

# %%
if accelerator.is_main_process:
    out = pf.sample(accelerator.unwrap_model(net), (256, 2), steps=40, method=method, seed=0)
    print(f"{len(out.x)} samples in {out.nfe} evaluations")
