"""The errors of the package. Each is also a standard Python error, so that `except ValueError` keeps working."""

from __future__ import annotations

LONGEST = 1000
"""Characters of a message: what is longer quotes something endless, and is cut in the middle."""


class PfgmError(Exception):
    """Base class of every error that this package raises on purpose."""

    def __init__(self, message: str = "") -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 4 :]}"
        super().__init__(message)


class ArgumentError(PfgmError, ValueError):
    """A call's argument has a wrong shape, dtype, device or value; the message names it and what was expected."""


class BackendError(PfgmError, RuntimeError):
    """No backend can serve the call; the message holds the reason of every backend that was asked."""


class MissingPackageError(PfgmError, ImportError):
    """A package that only an extra brings is not installed; the message says what needs it, and how to install it."""


class DataError(PfgmError, ValueError):
    """A data set could not be read; the message names the file and what was expected."""


class CheckpointError(PfgmError, RuntimeError):
    """A checkpoint is truncated, corrupt or of another program; the message says what was expected."""


class RankError(PfgmError, RuntimeError):
    """Another process of a distributed run has gone; the message says what is lost, what stays, and how to go on."""


class SolverError(PfgmError, RuntimeError):
    """An adaptive solver cannot go on; the message says where and what may help."""


class NonFiniteError(PfgmError, ArithmeticError):
    """A training or a sampler gave numbers that are not finite; the message says where, and what to do."""


class DerivativeError(PfgmError, NotImplementedError):
    """A derivative, or a transform of torch.func, that an operator does not have; the message says which and why."""
