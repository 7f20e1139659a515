"""The training-free tools: nearest charges, effective number, truncation, memorisation, optimal loss."""

import json
import math

import numpy as np
import pytest
import torch

import pfgm_fast as pf
from pfgm_fast import data
from pfgm_fast.cli import main
from pfgm_fast.field import posterior
from pfgm_fast.studies import (
    edm_weight,
    effective_charges,
    memorization,
    nearest,
    nearest_charges,
    optimal_loss,
    truncated_mean,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def brute(x, values, k):
    distance = (x.double().flatten(1)[:, None] - values.double().flatten(1)).norm(dim=2)
    return distance.topk(k, dim=1, largest=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 5), (2500,)])
def test_nearest_charges_are_those_of_all_distances(dtype, shape):
    if dtype == torch.uint8:
        data = torch.randint(0, 256, (300, *shape), dtype=dtype, generator=generator())
    else:
        data = torch.randn(300, *shape, dtype=dtype, generator=generator())
    charges = pf.Charges(data)
    x = charges.values(slice(0, 9)) + 0.3 * torch.randn(
        9, *shape, dtype=charges.value_dtype, generator=generator(1)
    )
    distance, index = nearest_charges(x, charges, 5)
    expected = brute(x, charges.values(), 5)
    torch.testing.assert_close(distance, expected.values, rtol=1e-12, atol=1e-12)
    chosen = (x.double().flatten(1)[:, None] - charges.values(index.flatten()).double().view(9, 5, -1)).norm(
        dim=2
    )
    torch.testing.assert_close(chosen, expected.values, rtol=1e-12, atol=1e-12)


def test_nearest_charges_tell_near_duplicates_apart_that_products_confuse(monkeypatch):
    base = torch.full((1, 400), 30.0)
    data = base + 1e-5 * torch.randn(
        200, 400, generator=generator()
    )  # far from their products' rounding, near each other
    data = torch.cat([data, -data])  # the mean is 0: centring does not help
    x = data[:8].clone()
    distance, index = nearest_charges(x, data, 1)
    assert index[:, 0].tolist() == list(range(8))
    torch.testing.assert_close(distance, brute(x, data, 1).values, rtol=1e-9, atol=1e-12)
    # Without the proof the candidates of the rounded products would have been believed.
    monkeypatch.setattr(nearest, "_SPARE", 0)
    real = nearest._candidates
    monkeypatch.setattr(nearest, "_candidates", lambda *a: (*real(*a)[:2], torch.zeros(len(a[0]))))
    assert nearest_charges(x, data, 1)[1][:, 0].tolist() != list(range(8))


@pytest.mark.parametrize("k", [0, 41, 1.0])
def test_k_is_checked(k):
    with pytest.raises(pf.ArgumentError, match="from 1 to the number of charges, 40"):
        nearest_charges(torch.zeros(2, 3), torch.randn(40, 3), k)


def test_a_query_that_is_not_finite_is_refused():
    with pytest.raises(pf.ArgumentError, match="finite"):
        nearest_charges(torch.tensor([[0.0, math.nan]]), torch.randn(4, 2), 1)


def weights(x, charges, r, aug_dim):
    squares = (
        (x.double().flatten(1)[:, None] - charges.values(dtype=torch.float64).flatten(1)).square().sum(2)
    )
    if math.isinf(aug_dim):
        logits = -squares / (2 * r**2)
    else:
        logits = -0.5 * (charges.dim + aug_dim) * torch.log1p(squares / r**2)
    if charges.log_weights is not None:
        logits = logits + charges.log_weights
    return logits.softmax(1)


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, math.inf])
@pytest.mark.parametrize("weighted", [False, True])
def test_effective_charges_are_one_over_the_sum_of_squared_weights(aug_dim, weighted):
    data = torch.randn(120, 7, dtype=torch.float64, generator=generator())
    q = torch.rand(120, dtype=torch.float64, generator=generator(2)) + 0.1 if weighted else None
    charges = pf.Charges(data, weights=q)
    x = torch.randn(10, 7, dtype=torch.float64, generator=generator(1))
    for r in (0.1, 2.0, 50.0):
        expected = 1 / weights(x, charges, r, aug_dim).square().sum(1)
        torch.testing.assert_close(effective_charges(x, r, charges, aug_dim), expected, rtol=1e-8, atol=0)
        mean, partition = posterior(x, r, charges, aug_dim)
        assert torch.equal(mean, pf.posterior_mean(x, r, charges, aug_dim))
        found = effective_charges(x, r, charges, aug_dim, partition=partition)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("aug_dim", [1.0, 64.0, math.inf])
def test_truncation_states_what_it_leaves_out_and_keeps_its_bound(aug_dim):
    charges = pf.Charges(torch.randn(200, 6, dtype=torch.float64, generator=generator()))
    x = torch.randn(12, 6, dtype=torch.float64, generator=generator(1))
    for r in (0.3, 3.0):
        w = weights(x, charges, r, aug_dim)
        found = truncated_mean(x, r, charges, 20, aug_dim)
        rest = 1 - w.topk(20, dim=1).values.sum(1)
        torch.testing.assert_close(found.left_out, rest.clamp(min=0), rtol=1e-6, atol=1e-12)
        error = (found.mean - pf.posterior_mean(x, r, charges, aug_dim)).norm(dim=1)
        assert bool((error <= found.bound + 1e-12).all())
        assert bool(
            (found.bound[rest > 0.01] < 40 * error[rest > 0.01] + 1).all()
        )  # a bound, not a platitude
    everything = truncated_mean(x, 0.3, charges, 200, aug_dim)
    torch.testing.assert_close(everything.mean, pf.posterior_mean(x, 0.3, charges, aug_dim))


def test_memorised_samples_are_found_and_new_ones_are_not():
    data = torch.randn(100, 12, generator=generator())
    data = torch.cat([data, data[:30], data[:30]])  # images that the data hold three times
    copies = data[:20] + 0.01 * torch.randn(20, 12, generator=generator(1))
    new = torch.randn(20, 12, generator=generator(2))
    found = memorization(torch.cat([copies, new]), data)
    assert found.copies.tolist() == [True] * 20 + [False] * 20
    assert found.fraction == 0.5
    assert (found.nearest[:20] % 100 % 30 < 30).all() and bool((found.ratio <= 1).all())
    first, second = brute(new, data[:100], 2).values.unbind(1)
    torch.testing.assert_close(found.ratio[20:], first / second, rtol=1e-9, atol=0)


def test_memorisation_of_data_that_are_one_point_is_refused():
    with pytest.raises(pf.ArgumentError, match="all data points are equal"):
        memorization(torch.zeros(2, 3), torch.ones(9, 3))


def test_optimal_loss_of_two_points_is_the_integral():
    """Two charges at ±1 on a line under Gaussian noise: E(y − tanh(x/σ²))², by quadrature."""
    data = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(2000, 1)
    (found,) = optimal_loss(data, [0.8], queries=4000, batch=1000, effective_queries=0)
    noise = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    density = torch.exp(-0.5 * noise**2) / math.sqrt(2 * math.pi)
    error = (1 - torch.tanh((1 + 0.8 * noise) / 0.8**2)) ** 2
    expected = float(torch.trapezoid(error * density, noise))
    assert abs(found.loss - expected) < 4 * found.standard_error
    assert found.standard_error < 0.04 * expected
    assert found.effective is None and found.queries == 4000


def test_optimal_loss_lies_between_nothing_and_the_data_variance_and_its_d_limit_is_diffusion():
    charges = pf.Charges(torch.randn(300, 8, generator=generator()))
    results = optimal_loss(charges, [0.01, 1.0, 200.0], [1e6, math.inf], queries=300)
    variance = float(charges.sq_norms.mean()) / 8
    for low, middle, high in (results[:3], results[3:]):
        assert low.loss < 1e-6 < middle.loss < high.loss
        assert high.loss == pytest.approx(variance, rel=0.02)
        assert low.effective == pytest.approx(1, abs=1e-6) and high.effective == pytest.approx(300, rel=0.02)
    assert results[1].loss == pytest.approx(results[4].loss, abs=4 * results[4].standard_error)
    assert edm_weight(0.5, 0.5) == pytest.approx(8.0)


def test_optimal_loss_of_classes_is_below_that_of_all():
    labels = torch.arange(2000) % 2
    data = torch.randn(2000, 5, generator=generator()) + 6 * labels[:, None]
    charges = pf.Charges(data, labels=labels)
    every, own = (optimal_loss(charges, [3.0], conditional=c, queries=2000)[0] for c in (False, True))
    assert own.loss < every.loss - 3 * every.standard_error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigmas": [0.0]}, "sigma"),
        ({"sigmas": [1.0], "aug_dims": [-1.0]}, "aug_dim"),
        ({"sigmas": [1.0], "conditional": True}, "labels"),
    ],
)
def test_bad_arguments_of_the_optimal_loss(arguments, message):
    with pytest.raises(pf.ArgumentError, match=message):
        optimal_loss(torch.randn(10, 2), **arguments)


def test_the_command_writes_table_picture_and_figures_of_the_same_numbers(tmp_path, capsys):
    arguments = ["study", "optimal-loss", "--points", "3", "--queries", "64", "--aug-dim", "1", "inf"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    points = json.loads((tmp_path / "optimal-loss.json").read_text())["points"]
    assert [(p["aug_dim"], p["queries"]) for p in points] == [(1.0, 64)] * 3 + [("inf", 64)] * 3
    table = (tmp_path / "optimal-loss.md").read_text()
    assert table in capsys.readouterr().out
    assert all(f"{p['loss']:.3g} ± {p['standard_error']:.1g}" in table for p in points)
    assert (tmp_path / "optimal-loss.png").stat().st_size > 10_000


def test_an_optimal_loss_that_was_stopped_goes_on(tmp_path, capsys):
    arguments = ["study", "optimal-loss", "--points", "2", "--queries", "64", "--out", str(tmp_path)]
    assert main([*arguments, "--aug-dim", "1"]) == 0
    (kept,) = tmp_path.glob("optimal-loss-*.jsonl")
    before = kept.read_text()
    marked = before.replace('"loss": 0.', '"loss": 7.')  # as no measurement would give it
    assert marked != before
    kept.write_text(marked + '{"sigma": 0.0')  # cut off while it was written
    assert main([*arguments, "--aug-dim", "1", "inf"]) == 0
    losses = [p["loss"] for p in json.loads((tmp_path / "optimal-loss.json").read_text())["points"]]
    assert [loss >= 7 for loss in losses] == [
        line.count('"loss": 7.') > 0 for line in marked.splitlines()
    ] + [False] * 2
    assert len(kept.read_text().splitlines()) == 4
    assert main([*arguments, "--aug-dim", "1", "--seed", "1"]) == 0
    assert all(p["loss"] < 7 for p in json.loads((tmp_path / "optimal-loss.json").read_text())["points"])


def test_the_memorization_command_finds_copies(tmp_path, capsys):
    digits = data.load("digits").images
    new = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8, generator=generator())
    np.savez(tmp_path / "data.npz", images=digits[:200].numpy())
    np.savez(tmp_path / "samples.npz", images=torch.cat([digits[:5], new]).numpy())
    files = [
        str(tmp_path / "samples.npz"),
        "--data",
        str(tmp_path / "data.npz"),
        "--json",
        str(tmp_path / "j"),
    ]
    assert main(["study", "memorization", *files]) == 0
    assert "copies         5 (33.33%)" in capsys.readouterr().out
    rows = json.loads((tmp_path / "j").read_text())["samples"]
    assert [row["nearest"] for row in rows[:5]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("option", [["--aug-dim", "0"], ["--aug-dim", "x"], ["--sigma-min", "90"]])
def test_bad_options_of_the_optimal_loss_are_one_line(option, capsys):
    try:
        status = main(["study", "optimal-loss", *option])
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and option[0] in capsys.readouterr().err
