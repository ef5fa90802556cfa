"""What primitives on matrices share: a batch with any leading axes, policies, status."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from subspan import _arrays, _checks
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

__all__ = ["Batch", "broadcast", "reshaped"]

_DTYPES = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}
_NONFINITE, _ERRORS = ("raise", "propagate", "ignore"), ("raise", "info")


class Batch:
    """Matrices of ``a`` (..., m, n) as one batch axis, and outputs with the leading axes put back.

    Leading axes of one stride are joined in place; others (a broadcast, say) are copied by the
    array's own library. ``name`` is that of the argument in messages.
    """

    def __init__(
        self, function: str, a: Any, *, nonfinite: str, errors: str = "raise", name: str = "a"
    ) -> None:
        self.function = function
        self.source = a
        # Small matrices come one at a time, too: what a call costs is asked for once.
        self.library = _arrays.require_array(function, name, a)
        self.rows = (
            np.asarray(a) if self.library == "numpy" else _arrays.exportable(function, name, a)
        )
        self.dtype = _arrays.dtype_name(a)
        _checks.ndim(function, name, a, 2, or_more=True)
        if self.dtype not in _DTYPES:
            raise DtypeError(
                f"[{function}] {name} must be float32 or float64, got {self.dtype}. "
                "Convert it first"
            )
        on_cpu = self.library == "numpy" or _arrays.device_of(a) == "cpu"
        if not on_cpu and self.library not in {"torch", "cupy"}:
            raise UnsupportedError(
                f"[{function}] {name} must be of torch or cupy to be on a CUDA device, got "
                f"{self.library}. Hand it over by torch.from_dlpack"
            )
        self.nonfinite = _checks.choice(function, "nonfinite", nonfinite, _NONFINITE)
        self.raising = _checks.choice(function, "errors", errors, _ERRORS) == "raise"
        *lead, self.m, self.n = map(int, a.shape)
        self.lead = tuple(lead)
        self.k = min(self.m, self.n)
        self.size = prod(lead)
        if len(lead) != 1:
            self.rows = reshaped(self.rows, (self.size, self.m, self.n))
        self.stream = 0 if on_cpu else _arrays.stream_of(a)
        # Beside the data, so that nobody has to wait for a device to hear how it went.
        self.info: Any = (
            np.zeros(self.size, np.int32)
            if on_cpu
            else _arrays.empty_like_on(a, (self.size,), "int32")
        )

    def require_square(self) -> None:
        """Raise unless the matrices are square."""
        if self.m != self.n:
            raise InvalidArgumentError(
                f"[{self.function}] a must be square in its last two axes, got {self.m} x {self.n}"
            )

    def empty(self, *shape: int) -> Any:
        """Output [batch, *shape] in the caller's library."""
        if self.library == "numpy":
            return np.empty((self.size, *shape), _DTYPES[self.dtype])
        return _arrays.empty_like_on(self.source, (self.size, *shape))

    def deliver(self, out: Any) -> Any:
        """Give an output its leading axes and the caller's library."""
        if len(self.lead) != 1:
            out = out.reshape((*self.lead, *out.shape[1:])) if self.lead else out[0]
        return out if self.library == "numpy" else _arrays.deliver(self.source, out)

    def status(self) -> Any:
        """Return info with the leading axes; on the device that the matrices are on."""
        return self.info.reshape(self.lead)


def reshaped(rows: Any, shape: tuple[int, ...]) -> Any:
    """``rows`` in another shape, by its own library: a view where its strides allow."""
    if tuple(rows.shape) == shape:
        return rows
    if hasattr(rows, "reshape"):
        return rows.reshape(shape)
    if hasattr(rows, "__array_namespace__"):  # the standard has functions, no such methods
        return rows.__array_namespace__().reshape(rows, shape)
    return _arrays.to_numpy(rows).reshape(shape)


def broadcast(rows: Any, shape: tuple[int, ...]) -> Any:
    """``rows`` with axes of one element repeated, by its own library: a view."""
    if tuple(rows.shape) == shape:
        return rows
    if hasattr(rows, "broadcast_to"):  # torch
        return rows.broadcast_to(shape)
    if hasattr(rows, "__array_namespace__"):  # cupy among them
        return rows.__array_namespace__().broadcast_to(rows, shape)
    return np.broadcast_to(_arrays.to_numpy(rows), shape)
