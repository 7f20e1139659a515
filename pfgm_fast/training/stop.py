"""Signals that end a training: the first asks for a stop after the current update, a second SIGINT stops at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """`stop` is called within; a signal that was ignored (nohup, a shell's background job) stays so; old handlers come back."""
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        stop()

    previous = {}
    try:
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread: signals are its business
        pass
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
