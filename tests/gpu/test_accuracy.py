"""On a GPU: the CUDA and the Triton backend against the reference in float64, over the one table of cases and real sizes."""

from __future__ import annotations

import math

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.backends import reference
from pfgm_fast.backends.cuda import hopper_path
from pfgm_fast.ops.dispatch import backend as backend_module
from tests.cases import CASES, TOLERANCE, direction_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
BACKENDS = ["cuda", "triton"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    """Each backend that runs here, chosen; another one skips with its own reason, but on a GPU `cuda` must run."""
    reason = backend_module(request.param).unavailable()
    if reason is not None:
        if request.param == "cuda":
            pytest.fail(f"the CUDA backend does not run on this GPU: {reason}")
        pytest.skip(f"{request.param}: {reason}")
    with pf.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("name", CASES)
def test_field_mean_density_step(backend: str, name: str) -> None:
    case = CASES[name]()
    x, r, r_next = case.x.cuda(), case.r.cuda(), (0.7 * case.r).cuda()
    weights = None if case.weights is None else case.weights.cuda()
    charges = pf.Charges(case.charges.cuda(), weights)
    exact = pf.Charges(charges.values().double(), weights)
    with pf.use_backend("reference"):
        field, _ = pf.poisson_field(x.double(), r.double(), exact, case.aug_dim)
        mean = pf.posterior_mean(x.double(), r.double(), exact, case.aug_dim)
        density = pf.log_density(x.double(), r.double(), exact, case.aug_dim)
        step = pf.field_step(x.double(), r.double(), r_next.double(), exact, case.aug_dim)
    assert direction_error(pf.poisson_field(x, r, charges, case.aug_dim)[0], field, r) <= TOLERANCE
    scale = charges.values().double().norm(dim=1).max() + field.norm(dim=1)
    got_mean = pf.posterior_mean(x, r, charges, case.aug_dim)
    got_step = pf.field_step(x, r, r_next, charges, case.aug_dim)
    assert ((got_mean - mean).norm(dim=1) / scale).max() <= TOLERANCE
    assert ((got_step - step).norm(dim=1) / scale).max() <= TOLERANCE
    got_density = pf.log_density(x, r, charges, case.aug_dim)
    assert (got_density - density).abs().max() <= 3e-5 * (1 + density.abs().max())


@pytest.mark.parametrize("name", ["plane", "odd-sizes", "bytes", "D=inf", "weights", "D=128"])
def test_score_and_divergence(backend: str, name: str) -> None:
    case = CASES[name]()
    x, r = case.x.cuda(), case.r.cuda()
    weights = None if case.weights is None else case.weights.cuda()
    charges = pf.Charges(case.charges.cuda(), weights)
    exact = pf.Charges(charges.values().double(), weights)
    with pf.use_backend("reference"):
        score = pf.score(x.double(), r.double(), exact, case.aug_dim)
        divergence = pf.field_divergence(x.double(), r.double(), exact, case.aug_dim)
    error = (pf.score(x, r, charges, case.aug_dim) - score).norm(dim=1)
    assert (error / (score.norm(dim=1) + 1e-6 / r)).max() <= 5e-5
    got = pf.field_divergence(x, r, charges, case.aug_dim)
    assert (got - divergence).abs().max() <= 1e-3 * charges.dim


def _images(count: int, side: int) -> torch.Tensor:
    """Bytes with the spectrum of natural images (amplitude ~ 1/f), so that their distances are spread as images' are."""
    generator = torch.Generator("cuda").manual_seed(0)
    axis = torch.fft.fftfreq(side, device="cuda")
    amplitude = 1 / (axis[:, None].square() + axis.square() + (1 / side) ** 2).sqrt()
    noise = torch.randn(count, 3, side, side, device="cuda", generator=generator)
    field = torch.fft.ifft2(torch.fft.fft2(noise) * amplitude).real
    field = 0.8 * field.mean(1, keepdim=True) + 0.3 * field
    return (120 + 62 * field / field.std()).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("batch", "count", "side"), [(16, 2000, 32), (128, 4096, 32), (130, 20011, 32), (5, 700, 128)], ids=str
)
@pytest.mark.parametrize("as_bytes", [True, False], ids=["bytes", "float32"])
def test_real_sizes(backend: str, batch: int, count: int, side: int, as_bytes: bool) -> None:
    """Queries of the paper's perturbation; the error of 16 of them against float64."""
    from pfgm_fast.methods import PFGM

    images = _images(count, side).flatten(1)
    charges = pf.Charges(images)
    source = torch.randint(count, (batch,), device="cuda")
    x, z = PFGM().perturb(charges.values(source), torch.Generator("cuda").manual_seed(1))
    if not as_bytes:
        charges = pf.Charges(charges.values())
    got, _ = pf.poisson_field(x, z, charges)
    rows = torch.linspace(0, batch - 1, min(16, batch)).long().cuda()
    exact = pf.Charges(charges.values().double())
    with pf.use_backend("reference"):
        expected, _ = pf.poisson_field(x[rows].double(), z[rows].double(), exact)
    assert direction_error(got[rows], expected, z[rows]) <= TOLERANCE


def test_float64_is_float64(backend: str) -> None:
    case = CASES["odd-sizes"]()
    x, r, charges = case.x.double().cuda(), case.r.double().cuda(), pf.Charges(case.charges.double().cuda())
    refusal = backend_module(backend).refuses("poisson_field", x, charges.flat)
    if refusal is not None:
        pytest.skip(f"{backend}: {refusal}")
    with pf.use_backend("reference"):
        expected, _ = pf.poisson_field(x, r, charges)
    assert direction_error(pf.poisson_field(x, r, charges)[0], expected, r) <= 1e-12


@pytest.mark.parametrize("dim", [2, 20, 192])
@pytest.mark.parametrize("as_bytes", [True, False], ids=["bytes", "float32"])
def test_bad_rows_become_nan_and_others_do_not(backend: str, dim: int, as_bytes: bool) -> None:
    y = torch.randint(0, 256, (300, dim), dtype=torch.uint8) if as_bytes else torch.randn(300, dim)
    charges, x, r = pf.Charges(y.cuda()), torch.randn(6, dim).cuda(), torch.full((6,), 0.5).cuda()
    expected, _ = pf.poisson_field(x, r, charges)
    x[1, 1], x[3, 0], r[4], r[5] = math.nan, math.inf, -1.0, math.nan
    got, _ = pf.poisson_field(x, r, charges)
    assert got[[1, 3, 4, 5]].isnan().all()
    torch.testing.assert_close(got[[0, 2]], expected[[0, 2]])


def test_the_same_twice(backend: str) -> None:
    """No result depends on the order in which blocks finish."""
    charges = pf.Charges(_images(3000, 32).flatten(1))
    x = charges.values(slice(0, 100)) + 0.3 * torch.randn(100, 3072, device="cuda")
    first, _ = pf.poisson_field(x, 0.5, charges)
    for _ in range(5):
        assert torch.equal(pf.poisson_field(x, 0.5, charges)[0], first)


@pytest.mark.parametrize(("batch", "count"), [(100, 18000), (130, 20011), (300, 9000)], ids=str)
def test_the_hopper_path_is_the_same_bit_for_bit(
    batch: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its products are whole numbers, as other GPUs' are: equality decides. `make gpu` compares their times. The shapes have the
    132 tiles of 128 x 128 with which the first digit goes alone."""
    if not hopper_path():
        pytest.skip("needs a Hopper GPU and a library built for 9.0a")
    charges = pf.Charges(_images(count, 32).flatten(1))
    x = charges.values(slice(0, batch)) + 0.3 * torch.randn(batch, 3072, device="cuda")
    with pf.use_backend("cuda"):
        monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", "0")
        expected, density = pf.poisson_field(x, 0.3, charges)[0], pf.log_density(x, 0.3, charges)
        monkeypatch.delenv("PFGM_FAST_CUDA_HOPPER")
        for _ in range(3):
            assert torch.equal(pf.poisson_field(x, 0.3, charges)[0], expected)
            assert torch.equal(pf.log_density(x, 0.3, charges), density)


SHAPES = [
    (1, 1),
    (3, 2),
    (5, 17),
    (9, 128),
    (64, 3072),
    (3, 4096),
    (2, 4100),
    (4, 196608),
    (2, 8199),
    (160, 16500),
]


@pytest.mark.parametrize("network", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_against_float64(backend: str, shape: tuple[int, int], network: torch.dtype) -> None:
    x = torch.randn(shape, device="cuda")
    vx, vx2 = (0.3 * torch.randn(2, *shape, device="cuda")).to(network)
    vz, vz2 = (-torch.rand(2, shape[0], device="cuda") - 0.1).to(network)
    exact = [value.double() for value in (x, vx, vz, vx2, vz2)]
    rows = torch.linspace(0.5, 9.0, shape[0], device="cuda")  # on both sides of z_exp
    close = {"rtol": 2e-5, "atol": 2e-6}
    for z in (torch.tensor(30.0).cuda(), torch.tensor(1e-3).cuda(), rows):
        step = (z.double(), (0.8 * z).double(), 5.0, 5.0)
        euler = pf.euler_step(x, vx, vz, z, 0.8 * z)
        torch.testing.assert_close(euler.double(), reference.euler_step(*exact[:3], *step), **close)
        heun = pf.heun_step(x, vx, vz, vx2, vz2, z, 0.8 * z)
        torch.testing.assert_close(heun.double(), reference.heun_step(*exact, *step), **close)
        in_place = x.clone()
        assert pf.euler_step(in_place, vx, vz, z, 0.8 * z, out=in_place) is in_place
        assert torch.equal(in_place, euler)


def test_target_against_float64(backend: str) -> None:
    charges = pf.Charges(_images(500, 32).flatten(1))
    x, z = charges.values(slice(0, 20)) + 0.2 * torch.randn(20, 3072, device="cuda"), 0.3
    vx, vz = pf.pfgm_target(x, z, charges)
    with pf.use_backend("reference"):
        expected_x, expected_z = pf.pfgm_target(x.double(), z, pf.Charges(charges.values().double()))
    assert (vx - expected_x).norm(dim=1).max() <= 1e-5 * math.sqrt(3072)
    torch.testing.assert_close(vz.double(), expected_z, rtol=1e-5, atol=1e-6)
