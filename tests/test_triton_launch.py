"""How launches reach the GPU: once through Triton, which compiles, then straight to what that gave. A stand-in is launched."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]
VALUES = (
    *(0, 1, 2, 15, 16, 2**31 - 16, 2**31 - 1, 2**31, 2**31 + 1, 2**40 - 1, 2**63, -1, -16, -(2**31) - 16),
    *(None, True, 1.0, 2.5),
    *(torch.zeros(9, dtype=dtype)[start:] for dtype in (torch.uint8, torch.float32) for start in (0, 1)),
)


class _Kernel:
    """Says what reached it: `compilations` through Triton, `launches` straight."""

    arg_names = ("a", "b", "BLOCK")

    def __init__(self) -> None:
        self.compilations: list[dict[str, Any]] = []
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile_and_launch(**arguments: Any) -> Any:
            self.compilations.append(arguments | {"grid": grid})
            return self.straight

        return compile_and_launch

    @property
    def straight(self) -> Any:
        kernel = self

        class Compiled:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                return lambda *arguments: kernel.launches.append((grid, *arguments))

        return Compiled()


def test_what_triton_tells_apart_is_told_apart() -> None:
    from triton.backends.compiler import BaseBackend
    from triton.runtime.jit import native_specialize_impl

    from pfgm_fast.backends.triton.runtime import specialized

    def of_triton(value: object) -> object:
        return native_specialize_impl(BaseBackend, value, False, True, True)

    assert len({str(of_triton(value)) for value in VALUES}) > 8
    for a, b in itertools.combinations(VALUES, 2):
        assert of_triton(a) == of_triton(b) or specialized(a) != specialized(b), (a, b)


def test_a_launch_is_compiled_once_and_again_where_its_arguments_ask_for_it() -> None:
    from pfgm_fast.backends.triton.runtime import Launch

    kernel, memory = _Kernel(), torch.zeros(64)

    def launch(b: int, a: torch.Tensor = memory, block: int = 8, warps: int = 4) -> None:
        Launch(
            "stand-in", kernel, lambda c: c["BLOCK"] + b, {"b": b, "a": a}, {"BLOCK": block}, warps, 1
        ).run_compiled((b, 1, 1), {"num_warps": warps}, 0)

    launch(3)
    launch(5)
    launch(7, torch.ones(64))
    assert len(kernel.compilations) == 1
    assert kernel.compilations[0] == {"a": memory, "b": 3, "BLOCK": 8, "num_warps": 4, "grid": (3, 1, 1)}
    assert [launch[0] for launch in kernel.launches] == [(5, 1, 1), (7, 1, 1)]
    assert kernel.launches[0][1:] == (memory, 5, 8)
    for n, other in enumerate(
        ({"b": 16}, {"b": 1}, {"b": 3, "a": memory[1:]}, {"b": 3, "block": 16}, {"b": 3, "warps": 8})
    ):
        launch(**other)
        assert len(kernel.compilations) == n + 2
    assert len(kernel.launches) == 2
