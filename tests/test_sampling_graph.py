"""EulerGraph without a GPU: the captured step run one by one; what it says and refuses. Capture is tested in tests/gpu."""

from __future__ import annotations

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.methods import PFGM, VPSDE
from pfgm_fast.sampling_graph import EulerGraph


def _net(x: torch.Tensor, z: torch.Tensor, labels: torch.Tensor | None = None):
    """The true field of one charge at the origin (of labels, elsewhere), as a network would give it."""
    centre = 0.0 if labels is None else labels.float().view(-1, *[1] * (x.dim() - 1))
    field, dim = x - centre, x[0].numel()
    length = (field.flatten(1).square().sum(1) + z * z).sqrt() + 5.0
    return -(dim**0.5) * field / length.view(-1, *[1] * (x.dim() - 1)), -(dim**0.5) * z / length


def test_without_a_gpu_it_says_so_and_gives_the_same_samples() -> None:
    shape, x0 = (5, 3, 4), 40 * torch.randn(5, 3, 4)
    graph = EulerGraph(_net, shape, "cpu")
    assert graph.reason is not None
    assert "cpu" in graph.reason
    times = PFGM().flow(_net).grid(20)
    expected = pf.sample(_net, shape, solver="euler", steps=20, x0=x0.clone()).x
    first, again = graph(x0, times), graph(x0, times)
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(first, again)
    assert first.data_ptr() != again.data_ptr()


def test_labels_reach_the_network() -> None:
    shape, labels = (4, 6), torch.tensor([0, 1, 2, 3])
    graph = EulerGraph(_net, shape, "cpu", labels=labels)
    plain = EulerGraph(_net, shape, "cpu")
    x0, times = torch.randn(shape), [10.0, 8.0, 6.0]
    assert torch.equal(graph(x0, times)[0], plain(x0, times)[0])
    assert not torch.equal(graph(x0, times)[1:], plain(x0, times)[1:])


def test_what_does_not_fit_is_refused() -> None:
    graph = EulerGraph(_net, (2, 3), "cpu", most_steps=4)
    with pytest.raises(pf.ArgumentError, match="x0 must have shape"):
        graph(torch.zeros(3, 3), [2.0, 1.0])
    for times in ([1.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]):
        with pytest.raises(pf.ArgumentError, match="2 to 5 values"):
            graph(torch.zeros(2, 3), times)


def test_sample_falls_back_with_its_reason_and_the_same_samples() -> None:
    shape, x0 = (5, 12), 40 * torch.randn(5, 12)
    plain = pf.sample(_net, shape, steps=15, x0=x0)
    asked = pf.sample(_net, shape, steps=15, x0=x0, cuda_graph=True)
    assert plain.graph is None
    assert asked.graph is not None
    assert "need a CUDA device" in asked.graph
    assert asked.nfe == plain.nfe == 15
    torch.testing.assert_close(asked.x, plain.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("solver 'euler', not 'heun'", {"solver": "heun"}),
        ("not for the method 'vp'", {"method": VPSDE()}),
        ("record=True", {"record": True}),
        ("float32", {"x0": torch.ones(2, 12, dtype=torch.float64)}),
    ],
)
def test_what_no_graph_serves_runs_step_by_step(reason: str, options: dict) -> None:
    out = pf.sample(_net, (2, 12), steps=3, cuda_graph=True, **options)
    assert out.graph is not None
    assert reason in out.graph
    assert out.nfe >= 3


def test_the_true_field_needs_no_graph() -> None:
    out = pf.sample(pf.Charges(torch.randn(4, 3)), (2, 3), steps=3, cuda_graph=True)
    assert out.graph == "the true field takes no network: its steps are single operators already"


def test_autocast_that_holds_outside_reaches_the_network() -> None:
    seen = []

    def net(x: torch.Tensor, z: torch.Tensor):
        seen.append(torch.is_autocast_enabled("cpu"))
        return _net(x, z)

    with torch.autocast("cpu", torch.bfloat16):
        pf.sample(net, (2, 12), steps=2, cuda_graph=True)
    pf.sample(net, (2, 12), steps=2, cuda_graph=True)
    assert seen == [True, True, False, False]
