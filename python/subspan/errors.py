"""Every exception that subspan raises on purpose.

Each class also derives from the built-in exception that a caller would catch without knowing
subspan, so ``except ValueError`` keeps working. The kinds mirror ``subspan::error_kind`` in C++.
"""

__all__ = [
    "ConvergenceError",
    "DeviceError",
    "DtypeError",
    "FileFormatError",
    "InternalError",
    "InvalidArgumentError",
    "OutOfMemoryError",
    "OutputError",
    "SubspanError",
    "UnsupportedError",
]


class SubspanError(Exception):
    """Base class of every error that subspan raises on purpose."""


class InvalidArgumentError(SubspanError, ValueError):
    """An argument has the wrong value, shape or range."""


class DtypeError(SubspanError, TypeError):
    """An argument has the wrong type, dtype, array library or device."""


class UnsupportedError(SubspanError, NotImplementedError):
    """The request is meaningful, but this build, machine or device cannot serve it."""


class ConvergenceError(SubspanError, ArithmeticError):
    """An iteration stopped before it reached its tolerance."""


class DeviceError(SubspanError, RuntimeError):
    """The accelerator or its driver reported a failure."""


class OutOfMemoryError(SubspanError, MemoryError):
    """Memory for scratch space could not be had."""


class FileFormatError(SubspanError, ValueError):
    """A file is truncated, damaged, or not what its name says."""


class OutputError(SubspanError, OSError):
    """A file or folder cannot be written; what was there before is still there."""


class InternalError(SubspanError, RuntimeError):
    """A fault of subspan itself; please report it."""
