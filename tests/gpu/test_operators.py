"""On a GPU: the operators as PyTorch sees them: opcheck, torch.compile, CUDA graphs, streams, no hidden synchronisation."""

from __future__ import annotations

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.backends.cuda import hopper_path
from pfgm_fast.ops.schema import NETWORK_OPERATORS, SCHEMAS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest):
    from pfgm_fast.ops.dispatch import backend as module

    reason = module(request.param).unavailable()
    if reason is not None:
        if request.param == "cuda":
            pytest.fail(f"the CUDA backend does not run on this GPU: {reason}")
        pytest.skip(f"{request.param}: {reason}")
    with pf.use_backend(request.param):
        yield request.param


def _arguments(op: str, dim: int, as_bytes: bool) -> tuple[tuple, dict]:
    x, r = torch.randn(4, dim, device="cuda"), torch.rand(4, device="cuda") + 0.5
    y = torch.randint(0, 256, (90, dim), dtype=torch.uint8) if as_bytes else torch.randn(90, dim)
    charges = pf.Charges(y.cuda())
    query = charges.query(x, r, 1.0)
    z, z_next = torch.tensor(3.0).cuda(), torch.tensor(2.0).cuda()
    vx, vz = torch.randn(4, dim, device="cuda"), -torch.rand(4, device="cuda") - 0.5
    image = torch.randn(4, 12, dim, 3, device="cuda").to(memory_format=torch.channels_last)
    norm, sums = torch.rand(2, 12, device="cuda") + 0.5, torch.rand(2, 4, 3, device="cuda") + 0.5
    rows = torch.randn(4, 12, device="cuda")
    return {
        "group_norm_silu": ((image, *norm, 3, 1e-6, True, rows, None, None), {}),
        "group_norm_silu_backward": ((image, image, *norm, *sums, 3, True, None, rows, rows), {}),
        "second_moment": ((*query, torch.randn_like(x), 1), {}),
        "field_step": ((*query, 0.5 * r), {}),
        "normalize_field": ((x, r, 5.0), {}),
        "drift": ((vx, vz, z, 5.0, 5.0), {}),
        "euler_step": ((x, vx, vz, z, z_next, 5.0, 5.0), {}),
        "euler_step.out": ((x, vx, vz, z, z_next, 5.0, 5.0), {"out": torch.empty_like(x)}),
        "heun_step": ((x, vx, vz, vx + 0.1, vz, z, z_next, 5.0, 5.0), {}),
    }.get(op, (query, {}))


def _operator(op: str):
    packet = getattr(torch.ops.pfgm_fast, op.split(".")[0])
    return packet.out if op.endswith(".out") else packet.default


@pytest.mark.parametrize("dim", [6, 64])
@pytest.mark.parametrize("as_bytes", [False, True], ids=["float32", "bytes"])
@pytest.mark.parametrize("op", SCHEMAS)
def test_opcheck(backend: str, op: str, dim: int, as_bytes: bool) -> None:
    if backend == "cuda" and op in NETWORK_OPERATORS:
        pytest.skip("Triton's")
    args, kwargs = _arguments(op, dim, as_bytes)
    torch.library.opcheck(_operator(op), args, kwargs)


@pytest.mark.parametrize("dim", [2, 64])
@pytest.mark.parametrize("as_bytes", [False, True], ids=["float32", "bytes"])
@pytest.mark.parametrize("op", SCHEMAS)
def test_captured_in_a_graph_and_replayed_on_new_inputs(
    backend: str, op: str, dim: int, as_bytes: bool
) -> None:
    args, kwargs = _arguments(op, dim, as_bytes)
    if backend == "cuda" and op in NETWORK_OPERATORS:
        pytest.skip("Triton's")
    function = _operator(op)
    x = args[0]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(2):
            function(*args, **kwargs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = function(*args, **kwargs)
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected = function(*args, **kwargs)
    if op.endswith(".out"):  # what the graph wrote has just been overwritten: replay once more
        expected, captured = kwargs["out"].clone(), kwargs["out"]
        graph.replay()
    torch.cuda.synchronize()
    for got, value in zip(_tuple(captured), _tuple(expected), strict=True):
        assert torch.equal(got, value)


@pytest.mark.parametrize("kind", ["bytes", "float32", "hopper"])
def test_the_tensor_core_ways_are_captured(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes that fill the device: the first digit alone with what is decided on the device behind it, float charges' digits."""
    if kind == "hopper":
        if not hopper_path():
            pytest.skip("needs a Hopper GPU and a library built for 9.0a")
    else:
        monkeypatch.setenv("PFGM_FAST_CUDA_HOPPER", "0")
    y = torch.randn(18000, 80) if kind == "float32" else torch.randint(0, 256, (18000, 80), dtype=torch.uint8)
    charges = pf.Charges(y.cuda())
    x, z = (
        charges.values(slice(0, 100)) + 0.3 * torch.randn(100, 80, device="cuda"),
        torch.full((100,), 0.3).cuda(),
    )
    with pf.use_backend("cuda"):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(2):
                pf.pfgm_target(x, z, charges)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = pf.pfgm_target(x, z, charges)
        for growth in (0.1, 3.0):  # few charges with a weight, then many
            x.copy_(charges.values(slice(200, 300)) + growth * torch.randn(100, 80, device="cuda"))
            z.fill_(growth)
            graph.replay()
            for got, expected in zip(captured, pf.pfgm_target(x, z, charges), strict=True):
                assert torch.equal(got, expected)


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize(("batch", "count"), [(20, 500), (70, 17000)], ids=str)
@pytest.mark.parametrize("as_bytes", [False, True], ids=["float32", "bytes"])
def test_nothing_waits_for_the_device(backend: str, as_bytes: bool, batch: int, count: int) -> None:
    charges = pf.Charges(
        torch.randint(0, 256, (count, 192), dtype=torch.uint8).cuda()
        if as_bytes
        else torch.randn(count, 192).cuda()
    )
    x, z, vz = torch.randn(batch, 192).cuda(), (torch.rand(batch) + 0.5).cuda(), -torch.ones(batch).cuda()
    z_next = 0.9 * z
    pf.pfgm_target(x, z, charges)  # builds what is built on first use
    pf.euler_step(x, x, vz, z, z_next)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        pf.pfgm_target(x, z, charges)
        pf.euler_step(x, x, vz, z, z_next)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used(backend: str) -> None:
    charges, x = pf.Charges(torch.randn(3000, 256).cuda()), torch.randn(64, 256).cuda()
    expected = pf.posterior_mean(x, 1.0, charges)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        shifted = x + 1
        got = pf.posterior_mean(shifted - 1, 1.0, charges)
    side.synchronize()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_compiles_whole(backend: str) -> None:
    charges = pf.Charges(torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8).cuda())

    def step(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        vx, vz = pf.pfgm_target(x, z, charges)
        return pf.euler_step(x, vx, vz, z, 0.9 * z).square().sum(1)

    x, z = torch.randn(5, 3, 8, 8).cuda(), (torch.rand(5) + 1).cuda()
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(x, z), step(x, z), rtol=1e-5, atol=1e-5)


def test_gradients(backend: str) -> None:
    charges = pf.Charges(torch.randn(40, 30).cuda())
    x = torch.randn(4, 30).cuda().requires_grad_()
    pf.log_density(x, 0.8, charges).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, pf.score(x.detach(), 0.8, charges), rtol=1e-4, atol=1e-4)


def test_info_says_how_it_was_built(backend: str) -> None:
    if backend != "cuda":
        pytest.skip("the CUDA library's own strings")
    from pfgm_fast.backends.cuda import build_info

    info = build_info()
    assert info is not None
    assert info["nvcc"][0].isdigit()
    assert info["architectures"][0].isdigit()
    assert info["hopper"] in ("yes", "no")
