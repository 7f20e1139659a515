"""Bad calls, one line each: the exact error that the user sees. Bad files are in test_data, test_training and test_compat."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.methods import PFGM, from_dict
from pfgm_fast.metrics import energy_distance
from pfgm_fast.training import TrainConfig

X, R, Y = torch.zeros(2, 3), torch.ones(2), torch.randn(5, 3)
V, VZ = torch.zeros(2, 3), -torch.ones(2)
NAN = float("nan")


def _net(x, z):
    return torch.zeros_like(x), -torch.ones(len(x))


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "x is a list": (lambda: pf.posterior_mean([[0.0]], 1.0, Y), "x must be a torch.Tensor; got list"),
    "x is int": (lambda: pf.posterior_mean(X.long(), 1.0, Y), "x must be float32 or float64; got int64"),
    "x is half": (lambda: pf.posterior_mean(X.half(), 1.0, Y), "x must be float32 or float64; got float16"),
    "x has one dimension": (
        lambda: pf.posterior_mean(X[0], 1.0, Y),
        "x must have shape (B, *shape) with N ≥ 1 elements a row; got (3,)",
    ),
    "x is sparse": (
        lambda: pf.posterior_mean(X.to_sparse(), 1.0, Y),
        "x must be a dense (strided) tensor; got layout torch.sparse_coo",
    ),
    "x of another row shape": (
        lambda: pf.posterior_mean(torch.zeros(2, 4), 1.0, Y),
        "x's rows have shape (4,), the charges (3,)",
    ),
    "x of another dtype": (
        lambda: pf.posterior_mean(X.double(), 1.0, Y),
        "x is float64, the charges float32: convert one of them",
    ),
    "x on another device": (
        lambda: pf.posterior_mean(X.to("meta"), 1.0, Y),
        "x is on meta, charges on cpu: they must be on one device",
    ),
    "r is 0": (lambda: pf.posterior_mean(X, 0.0, Y), "r must be finite and > 0; got 0.0"),
    "r is negative somewhere": (
        lambda: pf.poisson_field(X, torch.tensor([1.0, -2.0]), Y),
        "r must be finite and > 0; it holds -2.0",
    ),
    "r is NaN": (lambda: pf.poisson_field(X, NAN, Y), "r must be finite and > 0; got nan"),
    "r holds NaN": (
        lambda: pf.log_density(X, torch.tensor([NAN, 1.0]), Y),
        "r must be finite and > 0; it holds nan",
    ),
    "r of another length": (
        lambda: pf.score(X, torch.ones(3), Y),
        "r must be a number or a tensor of shape () or (2,); got (3,)",
    ),
    "D is 0": (lambda: pf.score(X, R, Y, 0.0), "aug_dim (D) must be a number in (0, inf]; got 0.0"),
    "D is negative": (lambda: pf.score(X, R, Y, -1.0), "aug_dim (D) must be a number in (0, inf]; got -1.0"),
    "D is NaN": (lambda: pf.score(X, R, Y, NAN), "aug_dim (D) must be a number in (0, inf]; got nan"),
    "D is a string": (lambda: pf.score(X, R, Y, "1"), "aug_dim (D) must be a number in (0, inf]; got '1'"),
    "gamma is negative": (
        lambda: pf.pfgm_target(X, R, Y, -1.0),
        "gamma must be a finite number ≥ 0; got -1.0",
    ),
    "no charges": (
        lambda: pf.Charges(torch.zeros(0, 3)),
        "there are no charges: data has shape (0, 3); at least one is needed",
    ),
    "charges of no elements": (
        lambda: pf.Charges(torch.zeros(4, 0)),
        "charges must have shape (B, *shape) with N ≥ 1 elements a row; got (4, 0)",
    ),
    "charges hold NaN": (
        lambda: pf.Charges(torch.tensor([[0.0], [NAN]])),
        "charges must be finite (no NaN or infinity); charge 1 holds one",
    ),
    "charges of integers": (
        lambda: pf.Charges(torch.zeros(4, 2, dtype=torch.int32)),
        "charges must be float32 or float64 or uint8 or bfloat16 or float16; got int32",
    ),
    "a zero weight": (
        lambda: pf.Charges(Y, torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])),
        "weights must be finite and > 0; weights[1] is 0.0",
    ),
    "a negative weight": (
        lambda: pf.Charges(Y, torch.tensor([1.0, 1.0, 1.0, 1.0, -3.0])),
        "weights must be finite and > 0; weights[4] is -3.0",
    ),
    "weights of another length": (
        lambda: pf.Charges(Y, torch.ones(4)),
        "weights must have shape (5,); got (4,)",
    ),
    "labels of another length": (
        lambda: pf.Charges(Y, labels=torch.zeros(4, dtype=torch.int64)),
        "labels must have shape (5,); got (4,)",
    ),
    "float labels": (
        lambda: pf.Charges(Y, labels=torch.zeros(5)),
        "labels must be int64 or int32 or uint8; got float32",
    ),
    "an empty value range": (
        lambda: pf.Charges(Y, value_range=(1.0, 1.0)),
        "value_range must be (low, high), finite, low < high; got (1.0, 1.0)",
    ),
    "query labels without charge labels": (
        lambda: pf.score(X, R, Y, labels=torch.tensor([0, 1])),
        "a query label was given, but the charges have no labels: Charges(data, labels=...)",
    ),
    "a label of no charge": (
        lambda: pf.score(
            X, R, pf.Charges(Y, labels=torch.zeros(5, dtype=torch.int64)), labels=torch.tensor([0, 7])
        ),
        "no charge has the label 7",
    ),
    "an unknown backend": (
        lambda: pf.use_backend("cudnn"),
        "use_backend(name) must be 'auto' or one of reference, cpu, triton, cuda; got 'cudnn'",
    ),
    "vx of another shape": (
        lambda: pf.euler_step(X, V[:1], VZ, 1.0, 0.5),
        "vx must have x's shape (2, 3); got (1, 3)",
    ),
    "vz of another shape": (
        lambda: pf.euler_step(X, V, VZ[:, None], 1.0, 0.5),
        "vz must have shape (2,); got (2, 1)",
    ),
    "z is 0": (lambda: pf.euler_step(X, V, VZ, 0.0, 0.5), "z must be finite and > 0; got 0.0"),
    "z_next is infinite": (
        lambda: pf.euler_step(X, V, VZ, 1.0, math.inf),
        "z_next must be finite; got inf",
    ),
    "gamma of a step is 0": (
        lambda: pf.euler_step(X, V, VZ, 1.0, 0.5, gamma=0.0),
        "gamma must be a finite number > 0; got 0.0",
    ),
    "out of another dtype": (
        lambda: pf.euler_step(X, V, VZ, 1.0, 0.5, out=X.double()),
        "out must be float32; got float64",
    ),
    "out is not contiguous": (
        lambda: pf.euler_step(X, V, VZ, 1.0, 0.5, out=torch.zeros(3, 2).T),
        "out must be contiguous",
    ),
    "an unknown solver": (
        lambda: pf.sample(_net, (2, 3), "rk4"),
        "solver must be one of ",
    ),
    "no steps": (lambda: pf.sample(_net, (2, 3), steps=0), "steps must be an integer ≥ 1; got 0"),
    "z_min above z_max": (
        lambda: pf.sample(_net, (2, 3), z_max=1.0, z_min=2.0),
        "z_min must be < z_max; got 2.0 and 1.0",
    ),
    "a shape without rows": (
        lambda: pf.sample(_net, (0, 3)),
        "shape must be (B, *shape) with every size ≥ 1; got (0, 3)",
    ),
    "x0 of another shape": (
        lambda: pf.sample(_net, (2, 3), x0=torch.zeros(2, 4)),
        "x0 must have shape (2, 3); got (2, 4)",
    ),
    "net is no function": (
        lambda: pf.sample(3, (2, 3)),
        "net must be callable as net(x, z), or Charges; got int",
    ),
    "an unknown method": (
        lambda: from_dict({"name": "gan"}),
        "the method must be one of ",
    ),
    "an unknown hyper-parameter": (
        lambda: from_dict({"name": "pfgm", "taus": 1}),
        "method 'pfgm': ",
    ),
    "a zero tau": (lambda: PFGM(tau=0.0), "tau must be a finite number > 0; got 0.0"),
    "data without spread": (
        lambda: PFGM.from_data(pf.Charges(torch.zeros(4, 3))),
        "the data's norms (mean square 0) do not exceed the noise, sigma = 0.01: give m_exp, or a smaller sigma",
    ),
    "a batch that cannot be split": (
        lambda: TrainConfig(batch=10, accumulate=3),
        "batch 10 cannot be split into 3 equal parts (accumulate)",
    ),
    "an unknown precision": (
        lambda: TrainConfig(precision="fp8"),
        "precision must be one of float32, bfloat16, auto; got 'fp8'",
    ),
    "an average of no rate": (
        lambda: TrainConfig(ema=()),
        "ema must hold rates in [0, 1), at least one; got ()",
    ),
    "sets of two shapes": (
        lambda: energy_distance(torch.zeros(3, 4), torch.zeros(3, 5)),
        "two non-empty sets of one shape are needed: (n, *shape) and (m, *shape); got (3, 4) and (3, 5)",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_user_sees(name: str) -> None:
    call, message = CALLS[name]
    with pytest.raises(pf.ArgumentError) as caught:
        call()
    assert str(caught.value).startswith(message)
    if not message.endswith((" ", ": ")):
        assert str(caught.value) == message


def test_a_backend_that_cannot_serve_says_why() -> None:
    with pytest.raises(pf.BackendError) as caught, pf.use_backend("cuda"):
        pf.posterior_mean(X, R, Y)
    assert str(caught.value).startswith("no backend can run posterior_mean on cpu tensors: cuda: ")


def test_errors_are_also_the_builtin_kinds() -> None:
    assert issubclass(pf.ArgumentError, ValueError)
    assert issubclass(pf.BackendError, RuntimeError)
    assert issubclass(pf.DataError, ValueError)
    assert issubclass(pf.CheckpointError, RuntimeError)
