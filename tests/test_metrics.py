"""Metrics against known answers."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from pfgm_fast.errors import ArgumentError, CheckpointError, DataError, MissingPackageError
from pfgm_fast.metrics import (
    energy_distance,
    frechet_distance,
    inception_metrics,
    nearest_neighbors,
    precision_recall,
    sliced_wasserstein,
)


def test_energy_distance_in_one_dimension_is_scipys() -> None:
    """scipy's is the square root of twice the integral of (F − G)²: its square is ours."""
    a, b = torch.randn(300, 1), torch.randn(200, 1) * 1.3 + 0.4
    expected = stats.energy_distance(a.flatten().numpy(), b.flatten().numpy()) ** 2
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_energy_distance_is_zero_for_the_same_set_and_falls_with_its_size() -> None:
    x = torch.randn(500, 2, 3)
    assert energy_distance(x, x) == pytest.approx(0, abs=1e-9)
    near, far = torch.randn(500, 2, 3), torch.randn(500, 2, 3) + 0.5
    assert 0 < energy_distance(near, x) < 0.03 < energy_distance(far, x)


def test_nearest_neighbors_tell_copies_from_samples() -> None:
    data = torch.randn(400, 5)
    copies = nearest_neighbors(data[:50] + 1e-4, data)
    assert copies.nearest.tolist() == list(range(50))
    assert copies.ratio < 0.01
    fresh = nearest_neighbors(torch.randn(400, 5), data)
    assert fresh.ratio == pytest.approx(1.0, abs=0.15)


def test_sliced_wasserstein_of_a_shift() -> None:
    """A shift by s moves every projection by s·u; the mean of |u_1| on the sphere in N dimensions is known."""
    x = torch.randn(4000, 4)
    shifted = x + torch.tensor([2.0, 0, 0, 0])
    mean_abs = math.gamma(2) / (math.sqrt(math.pi) * math.gamma(2.5))
    got = sliced_wasserstein(shifted, x, 4000, torch.Generator().manual_seed(0))
    assert got == pytest.approx(2 * mean_abs, rel=0.03)


def test_frechet_distance_of_gaussians_has_a_closed_form() -> None:
    """For N(0, 1) and N(m, s²) in each of two dimensions: m² + (1 − s)², twice."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(40_000, 2, generator=generator), torch.randn(40_000, 2, generator=generator)
    assert frechet_distance(a, 3 * b + 1) == pytest.approx(2 * (1 + 4), rel=0.03)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_agrees_with_the_matrix_root() -> None:
    from scipy.linalg import sqrtm

    a, b = torch.randn(500, 5).double() @ torch.randn(5, 5).double(), torch.randn(400, 5).double()
    first, second = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    expected = (a.mean(0) - b.mean(0)).square().sum() + (
        first + second - 2 * sqrtm(first @ second).real
    ).trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_precision_and_recall_tell_quality_from_variety() -> None:
    data = torch.randn(800, 3)
    few = precision_recall(0.05 * torch.randn(800, 3), data)  # good but all alike
    wide = precision_recall(4 * torch.randn(800, 3), data)  # all of it, and much besides
    assert few.precision > 0.95 > 0.2 > few.recall
    assert wide.recall > 0.8 > 0.4 > wide.precision


def test_the_classifier_learns_is_cached_and_tells_noise_from_digits(tmp_path) -> None:
    from pfgm_fast.data import load
    from pfgm_fast.metrics.features import accuracy, cached_classifier, cached_features, features_of

    digits, held_out = load("digits").split(1400)
    net = cached_classifier(digits, tmp_path, epochs=6)
    assert accuracy(net, held_out) > 0.9
    again = cached_classifier(digits, tmp_path, epochs=6)
    values = held_out.charges().values()
    assert torch.equal(features_of(net, values), features_of(again, values))
    real = features_of(net, digits.charges().values())
    noisy = features_of(net, (values + 0.5 * torch.randn_like(values)).clamp(-1, 1))
    assert frechet_distance(noisy, real) > 4 * frechet_distance(features_of(net, values), real)
    kept = cached_features(net, digits, tmp_path)
    assert torch.equal(kept, real)
    next(tmp_path.glob("classifier-*")).write_bytes(b"not a file of tensors")
    with pytest.raises(CheckpointError, match="is not what was cached there"):
        cached_classifier(digits, tmp_path, epochs=6)


def test_statistics_are_computed_once_for_a_set_and_a_network(tmp_path, monkeypatch) -> None:
    from pfgm_fast.data import load
    from pfgm_fast.metrics import features

    digits = load("digits").select(torch.arange(40))
    torch.manual_seed(0)
    first, second = (features.Classifier(1, 10).eval() for _ in range(2))
    made = features.cached_features(first, digits, tmp_path)
    monkeypatch.setattr(features, "features_of", lambda *_: torch.zeros(40, features.FEATURES))
    assert torch.equal(features.cached_features(first, digits, tmp_path), made)
    assert float(features.cached_features(second, digits, tmp_path).abs().max()) == 0  # another network
    other = digits.select(torch.arange(39, -1, -1))
    assert float(features.cached_features(first, other, tmp_path).abs().max()) == 0  # another set
    for place in tmp_path.glob(f"features-{features.digest(digits.images)}-*"):
        save_file({"features": torch.zeros(3, 2)}, place)
    with pytest.raises(CheckpointError, match="is not the features that were expected"):
        features.cached_features(first, digits, tmp_path)


def test_inception_is_asked_with_local_weights_and_a_cache(tmp_path, monkeypatch) -> None:
    """With a stand-in for torch-fidelity that notes its arguments: the weights' path, bytes of images, a name for the data."""
    asked: list[dict] = []

    def calculate_metrics(**arguments):
        asked.append(arguments)
        return {"frechet_inception_distance": 3.0, "inception_score_mean": 2.0}

    monkeypatch.setitem(sys.modules, "torch_fidelity", SimpleNamespace(calculate_metrics=calculate_metrics))
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    with pytest.raises(DataError, match="no Inception weights at"):
        inception_metrics(images, images, tmp_path / "none.pth")
    weights = tmp_path / "weights.pth"
    weights.touch()
    found = inception_metrics(images, images, weights, tmp_path / "cache")
    assert found == {"fid": 3.0, "inception_score": 2.0}
    inception_metrics(images, images.flip(0), weights, tmp_path / "cache")
    inception_metrics(images, images, weights)
    assert asked[0]["feature_extractor_weights_path"] == str(weights)
    assert asked[0]["cache_root"] == str(tmp_path / "cache")
    assert asked[0]["input2_cache_name"] != asked[1]["input2_cache_name"]
    assert "input2_cache_name" not in asked[2]
    assert torch.equal(asked[0]["input1"][2], images[2])
    with pytest.raises(DataError, match="Inception takes"):
        inception_metrics(images[:, :1], images, weights)


def test_inception_says_what_is_missing(tmp_path) -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match="no Inception weights at"):
        inception_metrics(images, images, tmp_path / "none.pth")


def _all_metrics(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    near = nearest_neighbors(a, b)
    sliced = sliced_wasserstein(a, b, 64, torch.Generator().manual_seed(0))
    return [
        energy_distance(a, b),
        near.typical,
        near.ratio,
        sliced,
        frechet_distance(a, b),
        *precision_recall(a, b),
    ]


def test_metrics_do_not_depend_on_a_shift() -> None:
    """By 16,384, with values on a grid of 2⁻⁸ that float32 still holds exactly there."""
    grid = lambda x: (x * 256).round() / 256  # noqa: E731
    a, b = grid(torch.randn(150, 8)), grid(torch.randn(200, 8) * 1.2 + 0.3)
    expected = _all_metrics(a, b)
    assert 0 < expected[5] < 1
    for shift in (16_384.0, torch.tensor([16_384.0, -8192.0, 0, 0, 0, 4096.0, 0, 1.0])):
        assert _all_metrics(a + shift, b + shift) == pytest.approx(expected, rel=1e-6)
    assert _all_metrics(a.double() + 1e8, b.double() + 1e8) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_metrics_refuse_what_is_not_finite(value: float) -> None:
    a, b = torch.randn(40, 4), torch.randn(60, 4)
    bad = a.clone()
    bad[3, 1] = bad[7, 2] = bad[7, 3] = value
    for metric in (
        energy_distance,
        nearest_neighbors,
        sliced_wasserstein,
        frechet_distance,
        precision_recall,
    ):
        with pytest.raises(ArgumentError, match="2 of 40 rows of samples are not finite"):
            metric(bad, b)
        with pytest.raises(ArgumentError, match="2 of 40 rows of data are not finite"):
            metric(b, bad)
    from pfgm_fast.metrics.features import Classifier, features_of

    images = torch.zeros(3, 1, 8, 8)
    images[1] = value
    with pytest.raises(ArgumentError, match="1 of 3 images are not finite"):
        features_of(Classifier(1, 2).eval(), images)


@pytest.mark.parametrize("what", ["autocast", "float64", "short products"])
def test_metrics_do_not_depend_on_the_callers_settings(what: str) -> None:
    from pfgm_fast.data import load
    from pfgm_fast.metrics.features import features_of, train_classifier

    digits = load("digits").select(torch.arange(200))
    a, b = torch.randn(150, 8), torch.randn(200, 8) + 0.3

    def figures() -> list[float]:
        values = digits.charges().values()
        features = features_of(train_classifier(digits, epochs=1), values)
        return [*_all_metrics(a, b), float(features.double().sum())]

    expected = figures()
    precision = torch.get_float32_matmul_precision()
    try:
        if what == "float64":
            torch.set_default_dtype(torch.float64)
        if what == "short products":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
            found = figures()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(precision)
    assert found == expected


def test_precision_and_recall_say_how_many_are_needed() -> None:
    with pytest.raises(ArgumentError, match=r"need at least 4 samples .* got 3 and 50"):
        precision_recall(torch.randn(3, 2), torch.randn(50, 2))


def test_evaluate_asks_for_inception_before_it_draws(tmp_path, monkeypatch) -> None:
    from pfgm_fast.metrics import check_inception

    with pytest.raises(DataError, match="got images of 1 channels"):
        check_inception(1, tmp_path / "none.pth")
    weights = tmp_path / "weights.pth"
    weights.touch()
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # as if it were not installed
    with pytest.raises(MissingPackageError, match=r"needs torch-fidelity.*pfgm-fast\[fid\]"):
        check_inception(3, weights)
