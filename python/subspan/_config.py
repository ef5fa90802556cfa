"""Process-wide settings, and what this build and machine are."""

from __future__ import annotations

import platform
import sys
from typing import Any

from subspan import _checks
from subspan._ops import native
from subspan._ops._fresh import reserve

__all__ = ["cpu_level", "get_num_threads", "keep_memory", "set_num_threads", "show_config"]


def set_num_threads(n: int | None) -> None:
    """Set how many threads the primitives use.

    Takes precedence over ``SUBSPAN_NUM_THREADS``, ``OMP_NUM_THREADS`` and the CPUs that the process
    may run on, in this order. Results do not depend on it, but for large matrices (512 rows and
    columns or more) that are fewer than the threads in `svd`, `eigh` and `qr`, and for `PCA.fit`
    with as many columns, where the last bits may.

    Parameters
    ----------
    n : int or None
        1..1024; None returns to the default.

    Raises
    ------
    DtypeError, InvalidArgumentError
        n is no integer, or out of range.

    Examples
    --------
    >>> import subspan
    >>> subspan.set_num_threads(2)
    >>> subspan.get_num_threads()
    2
    >>> subspan.set_num_threads(None)
    """
    number = 0 if n is None else _checks.integer("set_num_threads", "n", n, low=1, high=1024)
    native.set_num_threads(number)


def get_num_threads() -> int:
    """Return how many threads the primitives use."""
    return native.get_num_threads()


def keep_memory(owner: Any, n_bytes: int) -> None:
    """Keep memory of gradients that was given back for the next ones, as long as the owner lives.

    For loops over weights whose gradients are larger than what is kept in any case: pages that are
    new cost more time than the gradients.
    """
    reserve(owner, n_bytes)


def cpu_level() -> str:
    """Return the instruction-set level in use: ``baseline``, ``v3`` (AVX2) or ``v4`` (AVX-512).

    The best one that the CPU has, unless ``SUBSPAN_CPU_LEVEL`` forces one.

    Raises
    ------
    InvalidArgumentError, UnsupportedError
        ``SUBSPAN_CPU_LEVEL`` names no level, or one that this CPU lacks.
    """
    return native.cpu_level()


def show_config() -> dict[str, str | int | bool]:
    """Return what this build and machine are, for bug reports and benchmark records.

    Examples
    --------
    >>> sorted(show_config())
    ['blas', 'cpu_level', 'cuda', 'numpy', 'platform', 'python', 'subspan', 'threads']
    """
    import numpy as np

    from subspan import __version__

    return {
        "subspan": __version__,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu_level": cpu_level(),
        "threads": get_num_threads(),
        "blas": native.blas_name(),
        "cuda": native.has_cuda(),
    }
