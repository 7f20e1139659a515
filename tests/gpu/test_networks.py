"""On a GPU: the networks' own operator, by every backend that may serve it, against the reference in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pfgm_fast as pf
from pfgm_fast.backends import reference
from pfgm_fast.nn import DDPMpp, UNetConfig
from pfgm_fast.nn.layers import group_norm
from pfgm_fast.ops.dispatch import backend as backend_module

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
BARS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float64: 1e-12}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
}


@pytest.fixture(params=["reference", "triton"])
def backend(request: pytest.FixtureRequest):
    reason = backend_module(request.param).unavailable()
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    with pf.use_backend(request.param):
        yield request.param


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got.double().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("numbers", ["none", "add", "scale"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("size", [(3, 128, 4, 4), (2, 64, 31, 5)], ids=str)
def test_group_norm_silu(
    backend: str, size: tuple[int, ...], dtype: torch.dtype, layout: str, numbers: str
) -> None:
    draw = torch.Generator().manual_seed(0)
    kind = torch.promote_types(dtype, torch.float32)
    x = LAYOUTS[layout]((3 * torch.randn(size, generator=draw) + 5).to(dtype))
    rows = [torch.randn(size[:2], generator=draw, dtype=kind) for _ in range(3)]
    some = [row if numbers == ("add", "scale", "scale")[i] else None for i, row in enumerate(rows)]
    norm = [1 + 0.5 * torch.randn(size[1], generator=draw, dtype=kind) for _ in range(2)]
    want = torch.randn(size, generator=draw)
    args = [x, *norm, *some]
    ours = [None if t is None else t.cuda().requires_grad_() for t in args]
    exact = [None if t is None else t.double().requires_grad_() for t in args]
    got = torch.ops.pfgm_fast.group_norm_silu(*ours[:3], 16, 1e-6, True, *ours[3:])[0]
    expected = reference.group_norm_silu(*exact[:3], 16, 1e-6, True, *exact[3:])[0]  # type: ignore[arg-type]
    assert got.dtype == dtype and got.stride() == ours[0].stride()
    assert _error(got.detach(), expected.detach()) < BARS[dtype]
    found = torch.autograd.grad(got, [t for t in ours if t is not None], want.to(dtype).cuda())
    theirs = torch.autograd.grad(expected, [t for t in exact if t is not None], want.to(dtype).double())
    largest = max(float(t.norm()) for t in theirs)  # a sum that cancels is judged beside the others
    for mine, right in zip(found, theirs, strict=True):
        miss = float((mine.double().cpu() - right).norm())
        assert miss < BARS[dtype] * max(float(right.norm()), 1e-2 * largest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_module_takes_views(backend: str, dtype: torch.dtype) -> None:
    norm = group_norm(24).cuda()
    x = torch.randn(4, 48, 10, 6, device="cuda").to(dtype)
    for view in (x[:, ::2], x[:, :24], x[:, :24].transpose(2, 3), x[::2, 24:].to(memory_format=torch.channels_last), x[:1, :24].expand(4, -1, -1, -1)):  # fmt: skip
        expected = F.silu(F.group_norm(view.double().cpu(), 6, eps=1e-6))  # weight 1, bias 0
        assert _error(norm(view).detach(), expected) < BARS[dtype]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_a_network_forward_and_backward(backend: str, autocast: bool, last: bool) -> None:
    torch.manual_seed(0)
    net = DDPMpp(UNetConfig(3, 16, 32, (1, 2), 1, (8,), dropout=0.0))
    with torch.no_grad():  # its last layers begin at almost zero
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x, z = torch.randn(4, 3, 16, 16), torch.rand(4) + 0.5
    double = DDPMpp(net.config).double()
    double.load_state_dict(net.state_dict())
    with pf.use_backend("reference"):
        expected = double(x.double(), z.double())[0].detach()
    net.cuda().to(memory_format=torch.channels_last if last else torch.contiguous_format)
    with (
        torch.backends.cudnn.flags(allow_tf32=False),
        torch.autocast("cuda", torch.bfloat16, enabled=autocast),
    ):
        got, _ = net(x.cuda(), z.cuda())
    assert _error(got.detach(), expected) < (5e-2 if autocast else 1e-4)
    got.square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())
