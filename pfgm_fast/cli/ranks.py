"""Commands under torchrun: train, sample, evaluate and study share their work; rank 0 alone writes and speaks."""

from __future__ import annotations

import argparse
import contextlib
import os
import warnings
from collections.abc import Iterator

from pfgm_fast.errors import ArgumentError
from pfgm_fast.world import joined, launched


@contextlib.contextmanager
def taking_part(options: argparse.Namespace) -> Iterator[None]:
    """The process group, while a command runs. Raises: ArgumentError for a command that does not share its work."""
    if launched().size == 1:
        yield
        return
    if not getattr(options, "shares", False):
        raise ArgumentError("this command runs in one process: start it without torchrun")
    from pfgm_fast.cli.options import device

    with contextlib.ExitStack() as stack:
        if not launched().writer:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        stack.enter_context(joined(device(options)))
        yield
