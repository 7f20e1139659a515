"""The CUDA kernels executed on the host (tests/cuda_host/emulator.h): every operator, on odd shapes, against float64.

What this can and cannot show is written in docs/cuda.md. The public functions are called, on CPU tensors, with the backend
`cuda`, whose operators the emulated library supplies for the CPU.
"""

from __future__ import annotations

import math
import shutil

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.backends import cuda, reference
from pfgm_fast.ops import dispatch
from tests import cuda_tools
from tests.cases import CASES, TOLERANCE, Case, direction_error

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="needs g++ to compile the emulated kernels"
)


@pytest.fixture(scope="module", autouse=True)
def _library():
    torch.ops.load_library(str(cuda_tools.host_library()))
    patch = pytest.MonkeyPatch()
    patch.setattr(cuda, "unavailable", lambda: None)
    patch.setattr(cuda, "refuses", lambda op, x, charges: None)
    patch.setattr(dispatch, "_chosen", {})  # what is chosen here must not be remembered elsewhere
    with pf.use_backend("cuda"):
        yield
    patch.undo()


def _exact(case: Case) -> tuple[torch.Tensor, torch.Tensor, pf.Charges]:
    """x, r and charges in float64, with the values that float32 kernels see."""
    values = pf.Charges(case.charges).values().double()
    return case.x.double(), case.r.double(), pf.Charges(values, case.weights)


def _field_error(case: Case) -> float:
    with pf.use_backend("reference"):
        expected, _ = pf.poisson_field(*_exact(case), case.aug_dim)
    got, _ = pf.poisson_field(case.x, case.r, pf.Charges(case.charges, case.weights), case.aug_dim)
    return direction_error(got, expected, case.r)


@pytest.mark.parametrize("name", CASES)
def test_field_mean_density_step(name: str) -> None:
    case = CASES[name]()
    charges = pf.Charges(case.charges, case.weights)
    r_next = 0.7 * case.r
    with pf.use_backend("reference"):
        x, r, exact = _exact(case)
        field, _ = pf.poisson_field(x, r, exact, case.aug_dim)
        mean = pf.posterior_mean(x, r, exact, case.aug_dim)
        density = pf.log_density(x, r, exact, case.aug_dim)
        step = pf.field_step(x, r, r_next.double(), exact, case.aug_dim)
    got, _ = pf.poisson_field(case.x, case.r, charges, case.aug_dim)
    assert direction_error(got, field, case.r) <= TOLERANCE
    scale = charges.values().double().norm(dim=1).max() + field.norm(dim=1)
    assert (
        (pf.posterior_mean(case.x, case.r, charges, case.aug_dim) - mean).norm(dim=1) / scale
    ).max() <= TOLERANCE
    assert (
        (pf.field_step(case.x, case.r, r_next, charges, case.aug_dim) - step).norm(dim=1) / scale
    ).max() <= TOLERANCE
    got_density = pf.log_density(case.x, case.r, charges, case.aug_dim)
    assert (got_density - density).abs().max() <= 3e-5 * (1 + density.abs().max())


@pytest.mark.parametrize(
    "name", ["plane", "odd-sizes", "bytes", "bytes-odd", "D=inf", "weights", "D=128", "one-charge"]
)
def test_score_and_moments(name: str) -> None:
    case = CASES[name]()
    charges, u = pf.Charges(case.charges, case.weights), torch.randn_like(case.x)
    x, r, exact = _exact(case)
    query = charges.query(case.x, case.r, case.aug_dim)
    exact_query = exact.query(x, r, case.aug_dim)
    names = ("gradient", "field", "rate", "trace", "lse")
    got = torch.ops.pfgm_fast_cuda.score(*query)
    for label, value, expected in zip(names, got, reference.score(exact_query), strict=True):
        error = (value - expected).flatten(1).norm(dim=1) if value.dim() > 1 else (value - expected).abs()
        size = expected.flatten(1).norm(dim=1) if value.dim() > 1 else expected.abs()
        floor = 1e-6 * size.max() + (1e-6 / case.r.double() if label == "gradient" else 0)
        assert (error / (size + floor)).max() <= 5e-5, label
    for power in (0, 1, 2):
        moment, projection = torch.ops.pfgm_fast_cuda.second_moment(*query, u, power)
        expected_moment, expected_projection = reference.second_moment(exact_query, u.double(), power)
        scale = expected_moment.norm(dim=1) + 1e-3 * expected_moment.norm(dim=1).max()
        assert ((moment - expected_moment).norm(dim=1) / scale).max() <= 1e-4
        floor = expected_projection.abs() + 1e-3 * expected_projection.abs().max()
        assert ((projection - expected_projection).abs() / floor).max() <= 1e-4


@pytest.mark.parametrize("name", ["plane", "odd-sizes", "bytes-odd", "sixteen", "weights-inf"])
def test_float64_is_float64(name: str) -> None:
    case = CASES[name]()
    x, r, exact = _exact(case)
    bytes_ = case.charges.dtype == torch.uint8
    charges = pf.Charges(case.charges if bytes_ else case.charges.double(), case.weights)
    if bytes_:  # decoded in float64 by both
        exact = pf.Charges(charges.values(dtype=torch.float64), case.weights)
    with pf.use_backend("reference"):
        expected, _ = pf.poisson_field(x, r, exact, case.aug_dim)
    got, _ = pf.poisson_field(x, r, charges, case.aug_dim)
    assert direction_error(got, expected, case.r) <= 1e-12


@pytest.mark.parametrize("order", ["backward", "1", "2"])
@pytest.mark.parametrize("name", ["plane", "odd-sizes", "bytes-odd", "bytes"])
def test_the_order_of_threads_changes_nothing(name: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing barrier, or a merge in the order of arrival, would."""
    case = CASES[name]()
    charges = pf.Charges(case.charges)
    expected = pf.poisson_field(case.x, case.r, charges)[0], pf.score(case.x, case.r, charges)
    monkeypatch.setenv("PFGM_FAST_EMULATOR_ORDER", order)
    assert torch.equal(pf.poisson_field(case.x, case.r, charges)[0], expected[0])
    assert torch.equal(pf.score(case.x, case.r, charges), expected[1])


@pytest.mark.parametrize("dim", [2, 20, 64])
@pytest.mark.parametrize("byte", [False, True], ids=["float", "bytes"])
def test_bad_rows_become_nan_and_others_do_not(dim: int, byte: bool) -> None:
    y = torch.randint(0, 256, (30, dim), dtype=torch.uint8) if byte else torch.randn(30, dim)
    x, r = torch.randn(6, dim), torch.full((6,), 0.5)
    charges = pf.Charges(y)
    expected, _ = pf.poisson_field(x, r, charges)
    x[1, 1], x[3, 0] = math.nan, math.inf
    r[4], r[5] = -1.0, math.nan
    query = charges.query(x, r, 1.0)
    for op in ("poisson_field", "posterior_mean", "log_density", "score"):
        outputs = getattr(torch.ops.pfgm_fast_cuda, op)(*query)
        for value in outputs if isinstance(outputs, tuple) else (outputs,):
            assert value[[1, 3, 4, 5]].isnan().all()
            assert value[[0, 2]].isfinite().all()
        if op == "poisson_field":
            torch.testing.assert_close(outputs[0][[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("dim", [2, 20, 64])
@pytest.mark.parametrize("byte", [False, True], ids=["float", "bytes"])
def test_a_heavy_charge_that_is_not_the_nearest(dim: int, byte: bool) -> None:
    """Its weight q makes it the only charge of most queries, and the anchor another."""
    y = torch.randint(0, 256, (40, dim), dtype=torch.uint8) if byte else torch.randn(40, dim)
    weights = torch.full((40,), 1e-30)
    weights[17] = 1.0
    x = pf.Charges(y).values()[:12] + 0.05 * torch.randn(12, dim)
    assert _field_error(Case(x, torch.logspace(-2, 1, 12) + 0.1, y, 1.0, weights)) <= TOLERANCE


def test_zero_field_on_a_lone_charge() -> None:
    for dim in (6, 40):
        y = torch.randn(1, dim)
        field, _ = pf.poisson_field(y.clone(), 1e-3, y)
        assert torch.equal(field, torch.zeros_like(y))


def test_prepared_arguments_are_optional() -> None:
    case = CASES["bytes"]()
    charges = pf.Charges(case.charges)
    expected, _ = pf.poisson_field(case.x, case.r, charges)
    got, _ = torch.ops.pfgm_fast_cuda.poisson_field(
        case.x, case.r, case.charges, None, None, None, charges.divisor, charges.offset, 1.0
    )
    torch.testing.assert_close(got, expected)


def test_many_charges_for_one_query_are_cut() -> None:
    """More charges than one block's sweep: splits of N and of M, and their merges."""
    charges = torch.randn(2100, 1100)
    radii = torch.tensor([0.5, 60.0])
    x = charges[:2] + radii[:, None] * torch.randn(2, 1100) / math.sqrt(1100)
    assert _field_error(Case(x, radii, charges)) <= TOLERANCE


# ---- the fused steps -----------------------------------------------------------------------------------------------------

SHAPES = [
    (1, 1),
    (3, 2),
    (5, 17),
    (9, 128),
    (4, 3, 8, 8),
    (2, 3071),
    (3, 4096),
    (2, 4100),
    (1, 20000),
    (2, 8199),
]
NETWORK = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def _network(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return (0.3 * torch.randn(shape)).to(dtype), (-torch.rand(shape[0]) - 0.1).to(dtype)


def _close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """Of a step, beside the largest number of the result: x and v may cancel in an element."""
    size = max(1.0, float(expected.abs().max()))
    rtol, atol = (1e-12, 1e-13) if dtype == torch.float64 else (2e-5, 2e-6)
    tolerance = {"rtol": rtol, "atol": atol * size}
    assert got.dtype == dtype
    torch.testing.assert_close(got.flatten(1).double(), expected, **tolerance)


@pytest.mark.parametrize("network", NETWORK, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_against_float64(shape: tuple[int, ...], network: torch.dtype, dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype)
    vx, vz = _network(shape, network)
    vx2, vz2 = _network(shape, network)
    exact = [
        value.flatten(1).double() if value.dim() > 1 else value.double() for value in (x, vx, vz, vx2, vz2)
    ]
    rows = torch.linspace(0.5, 9.0, shape[0], dtype=dtype)  # on both sides of z_exp
    for z in (torch.tensor(30.0, dtype=dtype), torch.tensor(1e-3, dtype=dtype), rows):
        z_next = 0.8 * z
        step = (z.double(), z_next.double(), 5.0, 5.0)
        _close(pf.euler_step(x, vx, vz, z, z_next), reference.euler_step(*exact[:3], *step), dtype)
        _close(pf.heun_step(x, vx, vz, vx2, vz2, z, z_next), reference.heun_step(*exact, *step), dtype)
        drift = torch.ops.pfgm_fast_cuda.drift(vx.flatten(1), vz, z, 5.0, 5.0)
        _close(drift, reference.drift(exact[1], exact[2], step[0], 5.0, 5.0), dtype)
        ball = 0.7 * math.sqrt(
            x[0].numel()
        )  # some rows imply a mean outside, some one on a line that misses the ball
        _close(
            pf.euler_step(x, vx, vz, z, z_next, radius=ball),
            reference.euler_step(*exact[:3], *step, ball),
            dtype,
        )
        _close(
            pf.heun_step(x, vx, vz, vx2, vz2, z, z_next, radius=ball),
            reference.heun_step(*exact, *step, ball),
            dtype,
        )
        drift = pf.drift(vx, vz, z, x=x, radius=ball)
        _close(drift, reference.drift(exact[1], exact[2], step[0], 5.0, 5.0, exact[0], ball), dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_place_is_the_same(shape: tuple[int, ...]) -> None:
    x, (vx, vz) = torch.randn(shape), _network(shape, torch.float32)
    expected = pf.euler_step(x, vx, vz, 3.0, 2.0)
    assert pf.euler_step(x, vx, vz, 3.0, 2.0, out=x) is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("shape", [(1, 1), (4, 30), (3, 516), (2, 9001)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normalize_field(shape: tuple[int, int], dtype: torch.dtype) -> None:
    field, r = torch.randn(shape, dtype=dtype), torch.rand(shape[0], dtype=dtype) + 0.1
    vx, vz = torch.ops.pfgm_fast_cuda.normalize_field(field, r, 5.0)
    expected_vx, expected_vz = reference.normalize_field(field.double(), r.double(), 5.0)
    _close(vx, expected_vx, dtype)
    _close(vz[:, None], expected_vz[:, None], dtype)


@pytest.mark.parametrize("norm", [0.0, 1.0, 1.0 + 1e-6, 5.0])
def test_never_nan_whatever_the_network_says(norm: float) -> None:
    for dim in (16, 600):
        vx = torch.full((2, dim), norm)
        assert pf.euler_step(torch.zeros(2, dim), vx, -torch.ones(2), 1.0, 0.5).isfinite().all()


def test_misaligned_rows_take_the_scalar_way() -> None:
    """A view that starts in the middle of a 16-byte vector."""
    base, vx = torch.randn(2 * 64 + 1), torch.randn(2, 64)
    x, vz = base[1:].view(2, 64), -torch.rand(2) - 0.1
    got = torch.ops.pfgm_fast_cuda.euler_step(x, vx, vz, torch.tensor(9.0), torch.tensor(8.0), 5.0, 5.0)
    torch.testing.assert_close(
        got, reference.euler_step(x, vx, vz, torch.tensor(9.0), torch.tensor(8.0), 5.0, 5.0)
    )


def test_operators_refuse_what_they_cannot_read() -> None:
    with pytest.raises(RuntimeError, match="contiguous"):
        torch.ops.pfgm_fast_cuda.drift(torch.randn(4, 3).T, torch.ones(3), torch.tensor(1.0), 5.0, 5.0)
    with pytest.raises(RuntimeError, match="same N"):
        torch.ops.pfgm_fast_cuda.log_density(
            torch.randn(2, 3), torch.ones(2), torch.randn(4, 5), None, None, None, 1.0, 0.0, 1.0
        )
