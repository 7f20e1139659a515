"""Small N on the CUDA backend (csrc/cuda/small_n.cu) executed on the host: every way in which weights are formed, several tiles."""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from tests import cuda_tools
from tests.cases import TOLERANCE, Case, direction_error
from tests.test_cuda_bytes import _call, _exact

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++ to compile the emulated kernels"
)


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    torch.ops.load_library(str(cuda_tools.host_library()))


def _case(batch: int, count: int, dim: int, aug_dim: float, *, far: float = 1.0) -> Case:
    """Queries around charges, radii from 1e-2 to 10; `far`: their distance in units of the noise that r says."""
    charges = torch.randn(count, dim)
    sigma = torch.logspace(-2, 1, batch)
    x = charges[torch.arange(batch) % count] + far * sigma[:, None] * torch.randn(batch, dim)
    r = sigma * (1.0 if math.isinf(aug_dim) else math.sqrt(aug_dim))
    return Case(x, r, charges, aug_dim)


def _check(case: Case) -> None:
    field, lse = _call("poisson_field", case)
    expected, expected_lse = _exact("poisson_field", case)
    assert direction_error(field, expected, case.r) <= TOLERANCE / 2
    torch.testing.assert_close(lse, expected_lse, rtol=3e-6, atol=3e-5)


WAYS = {  # N, D: N + D is the number of roots in a weight, where it is whole and at most 15
    "two-roots": (1, 1.0),
    "three-roots": (2, 1.0),
    "four-roots": (3, 1.0),
    "fifteen-roots": (2, 13.0),
    "sixteen-is-a-logarithm": (2, 14.0),
    "not-whole": (2, 0.5),
    "large-D": (2, 2048.0),
    "gaussian": (2, math.inf),
    "sixteen-dimensions": (16, 1.0),
    "sixteen-gaussian": (16, math.inf),
}


@pytest.mark.parametrize("count", [3, 1133], ids=["few", "several-tiles"])
@pytest.mark.parametrize("name", WAYS)
def test_every_way(name: str, count: int) -> None:
    _check(_case(35, count, *WAYS[name]))


@pytest.mark.parametrize("aug_dim", [128.0, 1e5, math.inf])
@pytest.mark.parametrize("far", [30.0, 3e3])
@pytest.mark.parametrize("dim", [2, 7])
def test_far_from_all_charges(dim: int, far: float, aug_dim: float) -> None:
    """Charges about equally far, in all directions across: a gap is a small difference of large products, and p ‖ρ_a‖²/d²_a times its
    error is a log-weight's. The direction hardly sees it, the mean does."""
    sigma, away = 0.7, torch.nn.functional.normalize(torch.randn(dim), dim=0)

    def across(count: int) -> torch.Tensor:
        random = torch.randn(count, dim)
        along = random @ away
        return sigma * (random + (along / far - along)[:, None] * away)

    case = Case(
        across(40) + far * sigma * away,
        torch.full((40,), sigma * (1.0 if math.isinf(aug_dim) else math.sqrt(aug_dim))),
        across(600),
        aug_dim,
    )
    _check(case)
    mean, expected = _call("posterior_mean", case)[0], _exact("posterior_mean", case)[0]
    assert ((mean - expected).norm(dim=1) / sigma).max() <= TOLERANCE


@pytest.mark.parametrize("aug_dim", [1.0, 14.0, math.inf])
def test_weights_of_charges(aug_dim: float) -> None:
    case = _case(35, 600, 2, aug_dim)
    _check(Case(case.x, case.r, case.charges, aug_dim, torch.rand(600) ** 4 + 1e-6))


def test_bytes() -> None:
    charges = torch.randint(0, 256, (700, 3), dtype=torch.uint8)
    x = charges[:40] / 127.5 - 1 + 0.1 * torch.randn(40, 3)
    _check(Case(x, torch.logspace(-3, 1, 40), charges))


def test_equal_distances_and_a_radius_whose_square_is_no_float() -> None:
    """The corners of a square, from its middle and from a corner; every charge many times."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).repeat(150, 1)
    x = torch.tensor([[0.0, 0.0], [1.0, -1.0], [0.0, 1.0], [1.0, 1.0]])
    for r in (1.0, 1e-3, 1e-25):
        field, lse = _call("poisson_field", Case(x, torch.full((4,), r), corners))
        expected, expected_lse = _exact("poisson_field", Case(x, torch.full((4,), r), corners))
        torch.testing.assert_close(field.double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", ["backward", "3"])
def test_the_order_of_threads_changes_nothing(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(35, 600, 2, 1.0)
    expected = _call("poisson_field", case)
    monkeypatch.setenv("PFGM_FAST_EMULATOR_ORDER", order)
    for got, value in zip(_call("poisson_field", case), expected, strict=True):
        assert torch.equal(got, value)


def test_a_query_does_not_depend_on_its_neighbours() -> None:
    """Queries of one warp form their weights in different ways; each has the bits that it has alone."""
    near, far = _case(16, 600, 2, math.inf), _case(16, 600, 2, math.inf, far=1e3)
    together = Case(torch.cat([near.x, far.x]), torch.cat([near.r, far.r]), near.charges, math.inf)
    alone = _call("poisson_field", Case(near.x, near.r, near.charges, math.inf))
    assert torch.equal(_call("poisson_field", together)[0][:16], alone[0])
