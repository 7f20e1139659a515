"""The packages that this one does without until they are asked for, and the extra that brings each (pyproject.toml)."""

from __future__ import annotations

import importlib
from typing import Any

from pfgm_fast.errors import MissingPackageError

EXTRAS = {
    "triton": ("triton", "triton"),
    "matplotlib": ("matplotlib", "plots"),
    "sklearn": ("scikit-learn", "demo"),
    "torch.utils.tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "diffusers": ("diffusers", "diffusers"),
    "torch_fidelity": ("torch-fidelity", "fid"),
    "pykeops": ("pykeops", "bench"),
    "jax": ("jax", "bench"),
    "faiss": ("faiss-cpu", "bench"),
}
"""Module → its package, and the extra."""


def command(module: str, extra: str | None = None) -> str:
    """What brings a module: its extra (or a larger one that has it), else the package of its name."""
    package, own = EXTRAS.get(module, (module, None))
    extra = extra or own
    return f"pip install 'pfgm-fast[{extra}]'" if extra else f"pip install {package}"


def wanted(module: str, what: str, extra: str | None = None) -> Any:
    """Import a module that may be absent; `what` needs it ("figures need").

    Raises: MissingPackageError, one sentence that names the package and the extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = EXTRAS.get(module, (module, None))[0]
        lacks = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        absent = bool({lacks, lacks.split(".")[0]} & {module, package})
        broken = "" if absent else f", which cannot be imported here ({error})"
        raise MissingPackageError(f"{what} {package}{broken}: {command(module, extra)}") from error
