"""What a command says: in the terminal's encoding, in one line where it fails, and not at all to a pipe that is closed."""

from __future__ import annotations

import argparse
import codecs
import os
import signal
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pfgm_fast import extras
from pfgm_fast.errors import PfgmError
from pfgm_fast.world import launched

TRACEBACK = "PFGM_FAST_TRACEBACK"
"""Environment variable: 1 gives the traceback of whatever fails."""
FAILED, INTERRUPTED, CLOSED = 2, 130, 141
"""Exit statuses: bad arguments, files or numbers; SIGINT and its like; the reader of the output went away (as SIGPIPE gives)."""
_ASCII = {
    "…": "...", "→": "->", "←": "<-", "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "≤": "<=", "≥": ">=", "±": "+-",
    "≈": "~", "∞": "inf", "‖": "||", "√": "sqrt ", "ε": "eps", "γ": "gamma", "σ": "sigma", "τ": "tau", "°": " deg",
    "‘": "'", "’": "'", "“": '"', "”": '"', "█": "#", "▌": "#", "µ": "u", "μ": "u",
}  # fmt: skip


def _plain(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: what the encoding lacks, in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = []
    for letter in error.object[error.start : error.end]:
        bare = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
        letters.append(_ASCII.get(letter) or bare or "?")
    return "".join(letters), error.end


codecs.register_error("pfgm_fast", _plain)


def any_encoding() -> None:
    """Standard output and error take any text: as it is where they can, in ASCII where they cannot."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and getattr(stream, "errors", "") in ("strict", "backslashreplace"):
            stream.reconfigure(errors="pfgm_fast")


class Parser(argparse.ArgumentParser):
    """argparse, with its errors in one line."""

    def error(self, message: str) -> NoReturn:
        said = f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n"
        self.exit(FAILED, said if launched().writer else None)


def rank() -> str:
    """ " [rank 1 of 4]" where torchrun started this process; else nothing."""
    here = launched()
    return f" [rank {here.rank} of {here.size}]" if here.size > 1 else ""


@contextmanager
def warnings_in_one_line(command: str) -> Iterator[None]:
    """The package's warnings, without the place in the code where they come from."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{command}: {one_line(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def one_line(text: str) -> str:
    return " ".join(text.split())


def failed(command: str, error: Exception) -> int:
    """Say in one line on standard error what went wrong. Returns the exit status."""
    if os.environ.get(TRACEBACK, "") not in ("", "0"):
        traceback.print_exception(error)
    try:
        print(f"{command}: {explained(error)}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        return closed()
    return FAILED


def explained(error: Exception) -> str:
    """One line for any error: ours as it is, the system's by its file, others by type and place."""
    text = one_line(str(error))
    if isinstance(error, PfgmError):
        return text
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "allocate memory" in text.lower():
        return f"out of memory ({text[:200] or 'no more from the system'}): try a smaller batch or count"
    if isinstance(error, ModuleNotFoundError) and error.name:
        name = error.name.split(".")[0]
        return f"the package {name} is missing: {extras.command(name)}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {place}: {text or 'no message'} ({TRACEBACK}=1 shows the traceback)"


def closed() -> int:
    """Nobody reads any more: no word, now or when Python flushes at its end. Returns the exit status."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                os.dup2(nowhere, stream.fileno())
            except (OSError, ValueError):
                continue
    os.close(nowhere)
    return CLOSED


def interrupted(command: str, error: KeyboardInterrupt) -> int:
    """Returns the exit status."""
    try:
        print(f"{command}: interrupted{f': {error}' if str(error) else ''}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        closed()
    return INTERRUPTED


def interruptible() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again, which `main` answers (see `pfgm_fast._command`)."""
    from pfgm_fast import _command

    if _command.quiet and signal.getsignal(signal.SIGINT) is _command.leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
