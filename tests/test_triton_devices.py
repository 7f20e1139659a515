"""Which devices and versions the Triton backend serves, and how often it compiles: without a GPU, and without compiling."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pfgm_fast.backends import triton as backend
from pfgm_fast.backends.triton import configs

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What is remembered of devices that are not here."""
    yield
    for remembered in (configs.refuses, configs._of_device, backend.unavailable):
        remembered.cache_clear()


def _device(monkeypatch: pytest.MonkeyPatch, hip: bool = False, **properties: Any) -> None:
    configs.refuses.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "7.0" if hip else None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**properties))


@pytest.mark.parametrize(
    ("capability", "served"),
    [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)],
)
def test_field_operators_are_refused_before_ampere(
    capability: tuple[int, int], served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _device(monkeypatch, major=capability[0], minor=capability[1])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    reason = backend.refuses("poisson_field", x, None)
    assert (reason is None) is served
    if reason:
        assert f"this GPU has {capability[0]}.{capability[1]}" in reason
    assert backend.refuses("euler_step", x, None) is None  # the steps need no product


@pytest.mark.parametrize(
    ("name", "served"),
    [
        ("gfx942:sramecc+:xnack-", True),
        ("gfx90a", True),
        ("gfx1100", False),
        ("gfx1201", False),
        ("gfx906", False),
    ],
)
def test_amd_is_served_where_its_table_fits(name: str, served: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _device(monkeypatch, hip=True, gcnArchName=name, major=9, minor=4)
    assert (configs.refuses(0) is None) is served


@needs_triton
@pytest.mark.parametrize("version", ["3.5.1", "3.4.0", "2.9"])
def test_an_old_triton_is_a_reason(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    backend.unavailable.cache_clear()
    monkeypatch.setattr(triton, "__version__", version)
    reason = backend.unavailable()
    assert reason is not None
    assert "needs Triton 3.6 or later" in reason
    assert version in reason


@needs_triton
def test_another_batch_or_data_set_compiles_nothing_new() -> None:
    """Sizes that vary from call to call are no constants: one compilation for each kernel and tile, whatever B and M."""
    from pfgm_fast.backends.triton import field
    from pfgm_fast.backends.triton.runtime import recorded

    table = replace(
        configs.TABLES["sm_90"],
        **{name: getattr(configs.TABLES["sm_90"], name)[-1:] for name in configs.PRODUCTS},
    )
    variants: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for dtype in (torch.uint8, torch.float32):
        for batch in (1, 2, 16, 17, 64, 100, 128):
            for count in (1, 16, 130, 1000, 1024, 50_000):
                call = field._example("poisson_field", dtype, (batch, count, 3072), False, 1.0)
                with recorded() as found:
                    field.serve_rows(call, table, 132)
                for c in found:
                    variants[c.kernel.__name__, str(dtype)].add(
                        repr((c.signature, c.constexprs, c.divisible, c.num_warps))
                    )
    assert len(variants) == 9
    assert {name: len(kinds) for name, kinds in variants.items() if len(kinds) > 1} == {}


@needs_triton
def test_contraction_is_said_at_each_launch_and_the_process_keeps_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    from pfgm_fast.backends.triton import runtime

    given: dict[str, Any] = {}

    class Kernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda **arguments: given.update(arguments)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # a machine without one asks for none either
    runtime.Launch("any", Kernel(), lambda _: 1, {}, {"BLOCK": 16}, 4, 1).run()
    assert given["enable_fp_fusion"] is True
    assert "TRITON_DEFAULT_FP_FUSION" not in os.environ
