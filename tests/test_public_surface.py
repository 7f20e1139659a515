"""What a user meets: help() of every public name says it all, noise levels in r's place, named errors, types that mypy --strict accepts."""

from __future__ import annotations

import inspect
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pfgm_fast as pf

FIELDS = (pf.posterior_mean, pf.poisson_field, pf.log_density, pf.score, pf.field_divergence)

SOURCELESS = {
    "Charges": "a container",
    "DistributedCharges": "a container",
    "Samples": "a result",
    "Denoiser": "a mark on a network",
    "image_seeds": "this package's rule, stated there",
    "info": "a report",
    "selftest": "a report",
    "use_backend": "a switch",
    "plots.animation": "a picture",
    "plots.compare_grids": "a picture",
    "plots.figure_of": "matplotlib's figure in this package's style",
    "plots.finish": "writes a figure",
    "plots.image_grid": "a picture",
    "plots.loss_curve": "a picture",
    "plots.save_image": "writes a picture",
    "plots.to_bytes": "a picture",
    "plots.trajectories": "a picture",
}
"""Public names that follow no paper."""

RANGE = re.compile(r"[<>≥≤∈∞±]|\[|\bone of\b|\bof each\b|\bany number\b", re.IGNORECASE)
SHAPE = re.compile(r"\((?:[BMKL]|H')?(?:, [*\w +]+)*,?\)")
WORDS_OF_SOURCE = re.compile(r"arXiv \d{4}\.\d{4,5}|\b(?:19|20)\d\d\)")


def public() -> Iterator[tuple[str, Any]]:
    for name in pf.__all__:
        if name not in ("plots", "__version__"):
            yield name, getattr(pf, name)
    for name in pf.plots.__all__:
        yield f"plots.{name}", getattr(pf.plots, name)


NAMES = dict(public())
ERRORS = [name for name, value in NAMES.items() if isinstance(value, type) and issubclass(value, Exception)]
CALLS = [name for name in NAMES if name not in ERRORS]


def entries(doc: str) -> dict[str, str]:
    """Argument → what its entry under "Args:" or "Attributes:" says."""
    found: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ ].*\n|\n)*)", doc + "\n", re.MULTILINE):
        for names, said in re.findall(r"^ {4}([\w*][\w*, ]*): ((?:.*)(?:\n {8}.*)*)", section, re.MULTILINE):
            found.update(dict.fromkeys((n.strip("* ") for n in names.split(",")), said))
    return found


def parameters(value: Any) -> dict[str, inspect.Parameter]:
    return {n: p for n, p in inspect.signature(value).parameters.items() if n != "self"}


@pytest.mark.parametrize("name", CALLS)
def test_help_says_arguments_shapes_ranges_errors_and_source(name: str) -> None:
    value = NAMES[name]
    doc = inspect.getdoc(value) or ""
    assert doc == inspect.cleandoc(value.__doc__ or ""), "its own docstring, not one it inherits"
    said, signature = entries(doc), parameters(value)
    assert not signature.keys() - said.keys(), f"arguments without a word in: {doc}"
    assert not said.keys() - signature.keys(), "entries of arguments that there are not"
    for argument, parameter in signature.items():
        kind = str(parameter.annotation)
        if "Tensor" in kind:
            assert SHAPE.search(said[argument]) or "number" in said[argument], f"the shape of {argument}"
        if re.search(r"\b(float|int)\b", kind):
            assert RANGE.search(said[argument]), f"the range of {argument}: {said[argument]}"
    if signature and name != "Samples":
        raised = re.search(r"^Raises:\n((?:[ ].*\n?)+)", doc, re.MULTILINE)
        assert raised, "the errors it raises"
        for error in re.findall(r"^ {4}(\w+):", raised[1], re.MULTILINE):
            assert hasattr(pf, error) or error in ("OSError", "MissingPackageError"), error
    if name not in SOURCELESS:
        assert WORDS_OF_SOURCE.search(doc), "its source: a paper and an equation"


@pytest.mark.parametrize("name", ERRORS)
def test_help_of_an_error_says_when_and_what_its_message_holds(name: str) -> None:
    doc = inspect.getdoc(NAMES[name]) or ""
    assert doc.endswith(".") and (name == "PfgmError" or "message" in doc), doc


@pytest.mark.parametrize("name", [name for name in CALLS if isinstance(NAMES[name], type)])
def test_every_public_method_has_a_docstring(name: str) -> None:
    for attribute, member in vars(NAMES[name]).items():
        if not attribute.startswith("_") and (
            callable(member) or isinstance(member, (property, classmethod, staticmethod))
        ):
            assert inspect.getdoc(getattr(NAMES[name], attribute)), f"{name}.{attribute}"


@pytest.mark.parametrize("aug_dim", [1.0, 8.0, 2048.0, math.inf])
@pytest.mark.parametrize("function", FIELDS, ids=lambda f: f.__name__)
def test_sigma_stands_for_r(function: Any, aug_dim: float) -> None:
    """r = σ√D, and σ itself where D is infinite: as a number, () and (B,); charges by name or by place."""
    generator = torch.Generator().manual_seed(0)
    x, charges = torch.randn(5, 3, generator=generator), torch.randn(9, 3, generator=generator)
    sigma = torch.rand(5, generator=generator) + 0.1
    r = sigma if math.isinf(aug_dim) else sigma * math.sqrt(aug_dim)
    expected = function(x, r, charges, aug_dim)
    for got in (
        function(x, None, charges, aug_dim, sigma=sigma),
        function(x, sigma=sigma, charges=charges, aug_dim=aug_dim),
    ):
        torch.testing.assert_close(got, expected)
    one = function(x, float(r[0]), charges, aug_dim)
    for number in (float(sigma[0]), sigma[0]):
        torch.testing.assert_close(
            function(x, sigma=number, charges=charges, aug_dim=aug_dim), one, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("function", FIELDS, ids=lambda f: f.__name__)
def test_what_sigma_refuses(function: Any) -> None:
    x, charges = torch.randn(4, 3), torch.randn(9, 3)
    with pytest.raises(pf.ArgumentError, match=r"one of r and sigma.*got both"):
        function(x, 1.0, charges, sigma=1.0)
    with pytest.raises(pf.ArgumentError, match=r"one of r and sigma.*got neither"):
        function(x, charges=charges)
    with pytest.raises(pf.ArgumentError, match="charges are missing"):
        function(x, sigma=1.0)
    for bad in (0.0, -1.0, math.nan, torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.ones(3), "1"):
        with pytest.raises(pf.ArgumentError, match="sigma must be"):
            function(x, sigma=bad, charges=charges, aug_dim=4.0)
    with pytest.raises(pf.ArgumentError, match="aug_dim"):
        function(x, sigma=1.0, charges=charges, aug_dim=0)


def test_sigma_is_differentiable_and_compiles() -> None:
    x, charges = torch.randn(4, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    sigma = torch.full((4,), 0.7, dtype=torch.float64, requires_grad=True)
    (by_sigma,) = torch.autograd.grad(
        pf.log_density(x, sigma=sigma, charges=charges, aug_dim=9.0).sum(), sigma
    )
    r = (3 * sigma).detach().requires_grad_()
    (by_r,) = torch.autograd.grad(pf.log_density(x, r, charges, 9.0).sum(), r)
    torch.testing.assert_close(by_sigma, 3 * by_r)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seed": -1}, "seed must be an integer ≥ 0; got -1"),
        ({"seed": 1.5}, "seed must be an integer ≥ 0"),
        ({"seeds": 3}, "seeds must be a sequence"),
        ({"seeds": [0, 1]}, "seeds must be one for each image"),
        ({"seed": 0, "seeds": [0, 1, 2, 3]}, "give one of generator, seed and seeds"),
        ({"generator": 3}, "generator must be a torch.Generator; got int"),
        ({"device": "gpu"}, "device 'gpu': "),
        ({"device": "cuda:99"}, "device 'cuda:99': "),
        ({"aug_dim": 0}, r"aug_dim \(D\) must be a number in \(0, inf\]; got 0"),
        ({"aug_dim": 2.0, "method": pf.PFGM()}, "aug_dim .* belongs to PFGMpp"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_sample_names_what_is_wrong(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(pf.ArgumentError, match=said):
        pf.sample(lambda x, z: (-x, -z), (4, 2), steps=2, **wrong)


@pytest.mark.slow
def test_user_code_passes_mypy_strict(tmp_path: Path) -> None:
    """py.typed and the annotations: the ten lines, a loop with targets, a trainer, the denoiser; and what is wrong is seen."""
    pytest.importorskip("mypy", reason="mypy is of the extra [dev]")
    here = Path(__file__).parent
    good = (here / "typed_user.py").read_text()
    wrong = good + "\npf.posterior_mean(x, sigma='one', charges=charges)  # a mistake\n"
    for name, text in (("good", good), ("wrong", wrong)):
        (tmp_path / f"{name}.py").write_text(text)
    options = ["--strict", "--no-error-summary", "--follow-imports=silent", "--ignore-missing-imports"]
    command = [
        sys.executable,
        "-m",
        "mypy",
        *options,
        "--cache-dir",
        str(here.parent / ".mypy_cache"),
        "good.py",
        "wrong.py",
    ]
    # An editable install is found by a hook that mypy does not run.
    environment = os.environ | {"MYPYPATH": str(Path(pf.__file__).parent.parent)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    lines = found.stdout.splitlines()
    assert not found.stderr and [line for line in lines if not line.startswith("wrong.py")] == [], (
        found.stdout
    )
    assert len(lines) == 1 and 'Argument "sigma"' in lines[0], found.stdout
