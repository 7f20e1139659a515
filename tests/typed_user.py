"""What a user of types may write, read by mypy --strict alone (test_public_surface.py); the folder's tests never import it."""

import itertools
import math
from pathlib import Path

import torch
from torch import Tensor, nn

import pfgm_fast as pf
from pfgm_fast.data import ImageSet
from pfgm_fast.training import RunConfig, Trainer

data: Tensor = torch.randn(512, 2)
charges = pf.Charges(data)
x = torch.randn(8, 2)
mean: Tensor = pf.posterior_mean(x, 1.0, charges)
denoised: Tensor = pf.posterior_mean(x, sigma=0.5, charges=charges, aug_dim=128.0)
field, height = pf.poisson_field(x, torch.ones(8), charges, aug_dim=math.inf)
nats: Tensor = pf.log_density(x, sigma=torch.rand(8), charges=data)
slope: Tensor = pf.score(x, 0.3, charges)
points: pf.Samples = pf.sample(charges, (64, 2), solver="heun", steps=20, seed=0)
last: Tensor = points.x
evaluations: int = points.nfe
pf.plots.field_lines(charges, Path("lines.png"), view="plane")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        v: Tensor = self.layer(torch.cat([x, z[:, None]], 1))
        return v[:, :2], v[:, 2]


def update(net: nn.Module, optimizer: torch.optim.Optimizer, method: pf.PFGM) -> float:
    x, z = method.perturb(charges.values(torch.randint(512, (64,))))
    vx, vz = pf.pfgm_target(x, z, charges, gamma=method.gamma)
    guess_x, guess_z = net(x, z)
    loss: Tensor = (guess_x - vx).square().mean() + (guess_z - vz).square().mean()
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    optimizer.step()
    return float(loss)


def edm_loop(denoiser: nn.Module, sigmas: list[float]) -> Tensor:
    x = sigmas[0] * torch.randn(8, 2)
    for sigma, following in itertools.pairwise(sigmas):
        x = x + (following - sigma) / sigma * (x - denoiser(x, torch.full((8,), sigma)))
    return x


def train(config: RunConfig, images: ImageSet, folder: Path) -> None:
    trainer = Trainer(config, folder, images=images)
    trainer.run()


def guarded() -> dict[str, object]:
    try:
        with pf.use_backend("reference"):
            pf.euler_step(x, x, torch.ones(8), 1.0, 0.5)
    except (pf.ArgumentError, pf.BackendError) as error:
        print(error)
    return pf.info()


net = Net()
method = pf.PFGM.from_data(charges)
update(net, torch.optim.Adam(net.parameters()), method)
pf.sample(net, (16, 2), steps=20, method=method, device="cpu", aug_dim=None)
pf.sample(pf.IdealDenoiser(data, aug_dim=8.0), (4, 2), aug_dim=8.0, seeds=pf.image_seeds(0, 4))
edm_loop(pf.IdealDenoiser(data), [10.0, 1.0, 0.0])
found = pf.log_likelihood(charges, x, pf.PFGMpp(aug_dim=8.0), exact=True)
bits: float = pf.bits_per_dim(charges, torch.zeros(2, 2, dtype=torch.uint8)).mean
