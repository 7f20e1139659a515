"""Other people's checkpoints and function names, over this package's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfgm_fast.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from pfgm_fast.methods import Method


def load_any(
    path: str | Path, which: str = "ema", image_size: int | tuple[int, int] | None = None, **options: Any
) -> tuple[nn.Module, Method]:
    """(network, method) of a file of EDM, PFGM++, Poisson_flow or score_sde_pytorch, or of a run's folder, whichever it is.

    The network is in evaluation mode on the CPU; `net` and `method` go into `pf.sample(net, shape, method=method)`. A file of PFGM's gives
    a `nn.DDPMpp`, any other a denoiser `(x, sigma, labels=None)`. which: "ema", or "net" for the weights themselves.
    image_size: where the file does not tell it (Poisson_flow, score_sde). options: of `score_sde.load_checkpoint`, such as sde="subvp".
    Raises: CheckpointError where it is none of them, with what was found.
    """
    from pfgm_fast.compat import checkpoint, edm, modules, score_sde
    from pfgm_fast.compat.unpickler import load
    from pfgm_fast.methods import PFGM

    if which not in ("ema", "net"):
        raise ArgumentError(f"which must be 'ema' or 'net'; got {which!r}")
    path = Path(path)
    if path.is_dir():
        from pfgm_fast.training import load_network

        net, method, _ = load_network(path, 0 if which == "ema" else None)
        return net, method
    loaded = load(path)
    if edm.is_ours(loaded):
        denoiser = edm.network(loaded, str(path), which)
        return denoiser, edm.method_of(denoiser)
    if not modules.is_ours(loaded):
        raise CheckpointError(
            f"{path} holds {edm.described(loaded)}; {edm.EXPECTED}; or a checkpoint of Newbeeer/Poisson_flow or "
            "yang-song/score_sde_pytorch: a dict with 'model' (names 'module.all_modules.…') and 'ema'"
        )
    found = modules.modules_of(loaded, path, score_sde.EXPECTED, ema=False)
    if modules.is_pfgm(found):
        return checkpoint.network(loaded, path, image_size, which == "ema"), PFGM()
    denoiser = score_sde.network(loaded, path, image_size, which == "ema", **options)
    return denoiser, edm.method_of(denoiser)


def network_config(net: Any) -> Any:
    """The `nn.UNetConfig` of a network that `load_any` gave."""
    return getattr(net, "model", net).config


load = load_any
"""The same, for `pfgm_fast.compat.load(path)`."""

__all__ = ["load", "load_any", "network_config"]
