"""A stand-in for the device, so that `make gpu` can be rehearsed: "cuda" means the CPU, the backend cuda is the C++ one.

    python -m benchmarks.gpu_stand_in MODULE [ARGUMENT...]

runs MODULE so. It finds what is wrong in the suite itself and in the Python of its tests: names, arguments, shapes, files. What
needs a device (streams, graphs, memory statistics, profiles) skips its test. Nothing that it prints is about a GPU.
"""

from __future__ import annotations

import runpy
import sys
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode

NEEDS_A_DEVICE = (
    *(
        "Stream",
        "stream",
        "graph",
        "CUDAGraph",
        "Event",
        "_sleep",
        "set_sync_debug_mode",
        "max_memory_allocated",
    ),
    *("memory_allocated", "reset_peak_memory_stats", "current_stream", "graphs", "memory_stats"),
)


def _here(value: Any) -> Any:
    """The same argument, on the CPU."""
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


class OnTheCPU(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(_here, args), **{name: _here(value) for name, value in (kwargs or {}).items()})


class Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, _here(device))


def _skip(*_: Any, **__: Any) -> NoReturn:
    import pytest

    pytest.skip("needs a device: this is a rehearsal")


def install() -> None:
    """For the rest of this process."""
    from pfgm_fast.backends import cpu, cuda, triton
    from pfgm_fast.ops import dispatch

    OnTheCPU().__enter__()
    torch.Generator = Generator  # type: ignore[misc]
    torch.Tensor.cuda = torch.Tensor.pin_memory = lambda self, *_, **__: self  # type: ignore[method-assign, assignment]
    properties = SimpleNamespace(
        name="stand-in", total_memory=4 << 30, multi_processor_count=2, major=8, minor=0
    )
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "get_device_capability": lambda *_: (8, 0),
        "get_device_name": lambda *_: "stand-in",
        "get_device_properties": lambda *_: properties,
        "is_current_stream_capturing": lambda: False,
        "get_sync_debug_mode": lambda: 0,
        **dict.fromkeys(NEEDS_A_DEVICE, _skip),
    }.items():
        setattr(torch.cuda, name, value)
    for name in ("unavailable", "refuses"):
        setattr(cuda, name, getattr(cpu, name))
    triton.unavailable = lambda: "a rehearsal without a device"  # type: ignore[assignment]
    cuda.__dict__["__getattr__"] = lambda name: getattr(cpu, name)
    dispatch.TABLE["cuda"] = dispatch.TABLE["cpu"]


if __name__ == "__main__":
    install()
    module, sys.argv = sys.argv[1], sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
