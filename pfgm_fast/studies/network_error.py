"""How far a trained network is from the exact one, in the terms of the injected errors (`studies.errors`)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pfgm_fast.charges import Charges
from pfgm_fast.methods import Method
from pfgm_fast.methods.network import call_network
from pfgm_fast.studies.errors import RawNetwork, exact_network


@dataclass(frozen=True)
class NetworkError:
    """Of a network's normalised output on queries of its own training distribution, over the exact output's norm: medians over queries.
    relative: of the whole error, low and high its deciles 1 and 9. direction: of its part at right angles to the exact output.
    amplitude: of the part along it, without its sign."""

    key: str
    width: int
    relative: float
    low: float
    high: float
    direction: float
    amplitude: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkError:
        return cls(**values)


class _Watched:
    """A network that notes its errors against the exact one, wherever a method's loss calls it."""

    def __init__(self, net: Any, exact: RawNetwork) -> None:
        self.net, self.exact = net, exact
        self.along: list[Tensor] = []
        self.across: list[Tensor] = []

    def __call__(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor | None]:
        vx, vz = call_network(self.net, x, condition)
        right = self.exact(x, condition)[0].flatten(1).double()
        error = vx.flatten(1).double() - right
        size = right.norm(dim=1).clamp(min=1e-30)
        along = (error * right).sum(1) / size
        self.along.append(along.abs() / size)
        self.across.append((error.square().sum(1) - along.square()).clamp(min=0).sqrt() / size)
        return vx, vz


@torch.no_grad()
def network_error(
    key: str, width: int, method: Method, net: Any, charges: Charges, queries: int = 1024, seed: int = 0
) -> NetworkError:
    """The error of net, by its method's contract, at `queries` that the method's loss draws around the charges."""
    watched = _Watched(net, exact_network(method, charges))
    generator = torch.Generator(charges.device).manual_seed(seed)
    rows = torch.randint(len(charges), (queries,), generator=generator, device=charges.device)
    for part in rows.split(256):
        method.loss(watched, charges.values(part), part, charges, generator)
    along, across = torch.cat(watched.along), torch.cat(watched.across)
    whole = (along.square() + across.square()).sqrt()
    low, middle, high = (min(float(whole.quantile(q)), 1e30) for q in (0.1, 0.5, 0.9))
    if not math.isfinite(middle):
        low = middle = high = 1e30
    return NetworkError(key, width, middle, low, high, float(across.median()), float(along.median()))
