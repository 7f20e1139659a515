"""On a GPU: the whole sampler as one captured graph gives the samples of the eager loop."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import pfgm_fast as pf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_graph_and_loop_agree(autocast: torch.dtype | None) -> None:
    from pfgm_fast.nn import DDPMpp, UNetConfig
    from pfgm_fast.sampling_graph import EulerGraph

    torch.manual_seed(0)
    net = DDPMpp(UNetConfig(3, 16, 32, (1, 2), 1, (8,), dropout=0.0)).cuda().eval()
    shape, x0 = (4, 3, 16, 16), 40 * torch.randn(4, 3, 16, 16).cuda()
    times = torch.logspace(math.log10(40.0), -3, 9, dtype=torch.float64).tolist()
    graph = EulerGraph(net, shape, "cuda", autocast=autocast)
    assert graph.reason is None
    got = graph(x0, times)
    x = x0
    with torch.no_grad():
        for z, z_next in itertools.pairwise(times):
            with torch.autocast("cuda", autocast, enabled=autocast is not None):
                vx, vz = net(x, torch.full((4,), z, device="cuda"))
            x = pf.euler_step(x, vx, vz, z, z_next)
    torch.testing.assert_close(got, x, rtol=1e-2 if autocast else 1e-4, atol=1e-2 if autocast else 1e-3)
    assert torch.equal(graph(x0, times), got)


def test_sample_captures_and_replays() -> None:
    from pfgm_fast.nn import DDPMpp, UNetConfig

    torch.manual_seed(0)
    net = DDPMpp(UNetConfig(3, 16, 32, (1, 2), 1, (8,), dropout=0.0)).cuda()
    x0 = 40 * torch.randn(4, 3, 16, 16).cuda()
    plain = pf.sample(net, x0.shape, steps=8, x0=x0)
    graph = pf.sample(net, x0.shape, steps=8, x0=x0, cuda_graph=True)
    assert graph.graph == "captured"
    assert graph.nfe == plain.nfe == 8
    torch.testing.assert_close(graph.x, plain.x, rtol=1e-4, atol=1e-3)
