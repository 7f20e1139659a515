"""selftest, and the check of a GPU backend at first use: what is wrong is seen, refused with the reason, and passed over by `auto`."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pfgm_fast as pf
from pfgm_fast.backends import cpu, reference
from pfgm_fast.cli import main
from pfgm_fast.errors import ArgumentError, BackendError
from pfgm_fast.ops import dispatch, first_use
from pfgm_fast.ops.schema import REFERENCE_ONLY, SCHEMAS, Query, function_name

needs_cpu = pytest.mark.skipif(cpu.unavailable() is not None, reason="the cpu backend is not built")


def _moved(operator: Callable[..., Any], by: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """An operator whose first output is changed."""

    def call(*arguments: Any) -> Any:
        out = operator(*arguments)
        return (by(out[0]), *out[1:]) if isinstance(out, tuple) else by(out)

    return call


def _device_module(**changed: Any) -> SimpleNamespace:
    """A stand-in for a GPU backend: the reference, with some of its functions changed."""
    module = SimpleNamespace(unavailable=lambda: None, refuses=lambda *_: None)
    for op in map(function_name, SCHEMAS):
        setattr(module, op, changed.get(op, getattr(reference, op)))
    return module


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Puts a stand-in in the place of `cuda`, which then serves CPU tensors first of all and is checked there."""
    real = dispatch.backend

    def place(**changed: Any) -> None:
        module = _device_module(**changed)
        monkeypatch.setattr(dispatch, "backend", lambda name: module if name == "cuda" else real(name))

    monkeypatch.setitem(dispatch.TABLE, "cpu", ("cuda", "reference"))
    on = lambda name, _: name in first_use.CHECKED and first_use.os.environ.get(first_use.ENVIRONMENT) != "0"  # noqa: E731
    monkeypatch.setattr(first_use, "due", on)
    _forget()
    yield place
    _forget()


def _forget() -> None:
    first_use._checked.cache_clear()
    for remembered in (dispatch._chosen, first_use.verdicts, first_use._lost):
        remembered.clear()


def _who_serves(op: str, dim: int, as_bytes: bool) -> str:
    x = torch.zeros(2, dim)
    charges = torch.zeros(3, dim, dtype=torch.uint8 if as_bytes else torch.float32)
    field = op in dispatch.FIELD_OPERATORS
    module = dispatch.choose(op, x, charges if field else None)
    return "reference" if module is reference else "cuda"


def test_a_right_backend_is_taken_for_everything(device) -> None:
    device()
    for op in {function_name(op) for op in SCHEMAS} - set(REFERENCE_ONLY):
        for dim, as_bytes in ((2, False), (40, False), (40, True)):
            assert _who_serves(op, dim, as_bytes) == "cuda"


def test_a_wrong_one_is_passed_over_where_it_is_wrong(device, monkeypatch: pytest.MonkeyPatch) -> None:
    def bytes_wrong(query: Query) -> Any:  # as if a byte were decoded by another rule
        out = reference.poisson_field(query)
        return (
            (out[0] + 1e-3, *out[1:]) if query.charges.dtype == torch.uint8 or query.x.shape[1] == 2 else out
        )

    device(poisson_field=bytes_wrong, euler_step=_moved(reference.euler_step, lambda x: x * float("nan")))
    assert _who_serves("poisson_field", 40, True) == "reference"
    assert _who_serves("poisson_field", 40, False) == "cuda"
    assert _who_serves("poisson_field", 2, True) == "reference"
    assert _who_serves("poisson_field", 2, False) == "reference"  # floats and bytes of small N are one kernel
    assert _who_serves("score", 40, True) == "cuda"
    assert _who_serves("euler_step", 40, False) == "reference"
    assert _who_serves("drift", 40, False) == "cuda"
    y, x = torch.randint(0, 256, (9, 40), dtype=torch.uint8), torch.randn(2, 40)
    exact = reference.poisson_field(pf.Charges(y).query(x, torch.ones(2), 1.0))[0]
    assert torch.equal(pf.poisson_field(x, 1.0, pf.Charges(y))[0], exact)
    said = r"cuda: its check at first use missed in poisson_field, bytes: error .*PFGM_FAST_SELFCHECK=0"
    with pf.use_backend("cuda"), pytest.raises(BackendError, match=said):
        pf.poisson_field(x, 1.0, pf.Charges(y))
    monkeypatch.setenv("PFGM_FAST_SELFCHECK", "0")
    with pf.use_backend("cuda"):
        assert not torch.equal(pf.poisson_field(x, 1.0, pf.Charges(y))[0], exact)


def test_one_that_breaks_is_passed_over_with_what_it_said(device) -> None:
    def illegal(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    device(log_density=illegal)
    assert _who_serves("log_density", 40, True) == "reference"
    with (
        pf.use_backend("cuda"),
        pytest.raises(BackendError, match=r"check at first use broke.*illegal memory"),
    ):
        pf.log_density(torch.zeros(2, 5), 1.0, torch.eye(5))


def test_a_lost_device_asks_for_a_new_process(device, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an illegal address no backend can serve there: `auto` does not go on, and every later call says why."""

    def illegal(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    device(log_density=illegal)
    assert _who_serves("poisson_field", 5, False) == "cuda"
    monkeypatch.setattr(first_use, "lost", lambda _: True)
    said = r"nothing more in this process, which must be restarted: cuda: .*broke in log_density, small N.*illegal memory"
    for _ in range(2):
        with pytest.raises(BackendError, match=said):
            pf.log_density(torch.zeros(2, 5), 1.0, torch.eye(5))
    with pytest.raises(BackendError, match="must be restarted"):
        pf.score(torch.zeros(2, 5), 1.0, torch.eye(5))
    assert "must be restarted" in pf.info()["devices"]["cpu"]


def test_info_shows_what_the_checks_came_to(device, capsys: pytest.CaptureFixture[str]) -> None:
    def bytes_wrong(query: Query) -> Any:
        out = reference.poisson_field(query)
        return (out[0] + 1e-3, *out[1:]) if query.charges.dtype == torch.uint8 else out

    device(poisson_field=bytes_wrong)
    facts = pf.info()
    assert facts["devices"]["cpu"] == "bytes: reference; floats: cuda; small N: cuda"
    verdicts = facts["checks"]
    assert verdicts["cuda: poisson_field, floats, float32 on cpu"] == "passed"
    assert "missed in poisson_field, bytes" in verdicts["cuda: poisson_field, bytes, float32 on cpu"]
    assert re.match(
        r"refused where its check missed \(1 of 3\): its check .* bytes", facts["backends"]["cuda"]
    )
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert "cuda: poisson_field, small N, float32 on cpu: passed" in said
    assert "none was made" not in said
    device()
    _forget()
    assert pf.info()["devices"]["cpu"] == "cuda"
    assert pf.info()["backends"]["cuda"] == "ok"
    assert len(pf.info()["checks"]) == 3


@pytest.mark.parametrize("op", first_use.BARS)
def test_every_operators_check_sees_an_error_of_a_thousandth(op: str) -> None:
    for title, shape in first_use.SMALL.items():
        x, r, charges = first_use.case(shape, torch.float32)
        exact = first_use.exact_of(x, r, charges, shape.aug_dim, torch.arange(shape.batch))
        expected = exact.of(op)
        right = first_use.result(
            getattr(reference, op)(*first_use.arguments(op, charges.query(x, r, shape.aug_dim)))
        )
        wrong = expected.clone()
        wrong[-1] *= 1 + 1e-3
        if op in ("posterior_mean", "field_step"):
            wrong[-1] += 1e-3 * exact.query.charges.norm(dim=1).max()
        if op == "poisson_field":  # whose bar is of the direction: (x − m, r)
            wrong[-1, 0] += 1e-3 * (expected[-1].norm() + r[-1])
        assert first_use.error_of(op, right, expected, exact.query) <= first_use.BARS[op], title
        assert first_use.error_of(op, wrong, expected, exact.query) > first_use.BARS[op], title
        wrong[0] = float("nan")
        assert not first_use.error_of(op, wrong, expected, exact.query) <= first_use.BARS[op], title


def test_the_check_leaves_the_random_numbers_alone(device) -> None:
    device()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert _who_serves("poisson_field", 40, True) == "cuda"
    assert torch.equal(torch.rand(3), expected)


# ---- selftest ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One small case, one that stands for the real ones."""
    from pfgm_fast.selftest import REAL

    for table, keep in ((first_use.SMALL, {"bytes, odd N"}), (REAL, {"4096 x 4096 x 2"})):
        for name in set(table) - keep:
            monkeypatch.delitem(table, name)


@needs_cpu
def test_what_is_installed_passes(few, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--json", str(tmp_path / "rows.json")]) == 0
    facts = json.loads((tmp_path / "rows.json").read_text())
    ran = {(row["backend"], row["case"]): row["error"] for row in facts["rows"] if row["error"] is not None}
    assert ran[("cpu", "bytes, odd N")] <= 1e-5
    assert ran[("cpu", "4096 x 4096 x 2")] <= 1e-5
    assert ("reference", "bytes, odd N") in ran
    assert "all passed" in capsys.readouterr().out


@needs_cpu
@pytest.mark.parametrize("kind", ["wrong", "nan", "differs", "breaks"])
def test_a_miss_is_said_and_is_the_exit_status(
    kind: str, few, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, right = [0], cpu.poisson_field

    def breaks(*_: Any) -> Any:
        raise RuntimeError("kernel image is invalid")

    def differs(query: Query) -> Any:
        calls[0] += 1
        return _moved(right, lambda x: x * (1 + 2e-7 * (calls[0] % 2)))(query)

    planted = {
        "wrong": _moved(cpu.score, lambda x: x * 1.01),
        "nan": _moved(cpu.score, lambda x: x.index_fill(0, torch.tensor([1]), float("nan"))),
        "differs": differs,
        "breaks": breaks,
    }[kind]
    monkeypatch.setattr(cpu, "poisson_field" if kind == "differs" else "score", planted, raising=False)
    assert main(["selftest", "--backend", "cpu"]) == 1
    said = capsys.readouterr().out
    assert "| cpu | cpu | bytes, odd N |" in said
    assert {"wrong": "| score |", "nan": "nan | score", "differs": "differ", "breaks": "kernel image"}[
        kind
    ] in said
    assert "MISSED" in said.splitlines()[-1]


@needs_cpu
def test_a_lost_device_is_one_miss(few, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after an illegal address says nothing of the other cases."""
    monkeypatch.setattr(cpu, "poisson_field", lambda *_: 1 / 0, raising=False)
    monkeypatch.setattr(importlib.import_module("pfgm_fast.selftest"), "lost", lambda device: True)
    report = pf.selftest(("cpu", "reference"))
    assert [row.ok for row in report.rows] == [False, True, True]
    assert all("restart Python" in row.note for row in report.rows[1:])


def test_time_that_is_up_and_backends_that_cannot_run_are_no_misses() -> None:
    report = pf.selftest(seconds=0)
    assert report.ok
    assert any(row.note == "not run: the time is up" for row in report.rows)
    assert re.search(
        r"^0 checks in 0 s: nothing could be checked; \d+ not run: the time was up$", str(report), re.M
    )
    assert all(row.note.startswith("does not run here: ") for row in report.rows if row.backend == "cuda")
    with pytest.raises(ArgumentError, match="backends must be"):
        pf.selftest(("nonsense",))
    assert main(["selftest", "--backend", "nonsense"]) == 2


def test_what_compiles_takes_its_turn_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a time that is up leaves out cases of Triton alone; the fused steps, too, begin none then."""
    real = dispatch.backend
    triton = SimpleNamespace(unavailable=lambda: None)
    monkeypatch.setattr(dispatch, "backend", lambda name: triton if name == "triton" else real(name))
    rows = pf.selftest(("triton", "reference"), seconds=0).rows
    assert [row.backend for row in rows] == sorted(row.backend for row in rows)  # reference before triton
    assert {row.backend for row in rows if row.case.startswith("steps")} == {"triton", "reference"}
    assert all(row.note == "not run: the time is up" for row in rows)
