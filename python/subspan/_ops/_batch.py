"""What svd, eigh and qr share: a batch of matrices with any leading axes, policies, status."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks

__all__ = ["Batch"]


class Batch:
    """Matrices of ``a`` (..., m, n) as one batch axis, and outputs with the leading axes put back.

    Leading axes of one stride are joined in place; others (a broadcast, say) are copied by the
    array's own library.
    """

    def __init__(self, function: str, a: Any, *, nonfinite: str, errors: str = "raise") -> None:
        self.function = function
        self.source = a
        rows = _arrays.exportable(function, "a", a)
        _checks.ndim(function, "a", a, 2, or_more=True)
        self.nonfinite = _checks.choice(
            function, "nonfinite", nonfinite, ("raise", "propagate", "ignore")
        )
        self.raising = _checks.choice(function, "errors", errors, ("raise", "info")) == "raise"
        shape = tuple(int(extent) for extent in a.shape)
        self.lead, (self.m, self.n) = shape[:-2], shape[-2:]
        self.k = min(self.m, self.n)
        self.size = prod(self.lead)
        if not hasattr(rows, "reshape"):  # an array-API array has no methods of the kind
            rows = rows.__array_namespace__().reshape(rows, (self.size, self.m, self.n))
        self.rows = rows.reshape((self.size, self.m, self.n))
        self.info: npt.NDArray[np.int32] = np.zeros(self.size, np.int32)

    def empty(self, *shape: int) -> Any:
        """Output [batch, *shape] in the caller's library."""
        return _arrays.empty_like_on(self.source, (self.size, *shape))

    def deliver(self, out: Any) -> Any:
        """Give an output its leading axes and the caller's library."""
        return _arrays.deliver(self.source, out.reshape((*self.lead, *out.shape[1:])))

    def status(self) -> npt.NDArray[np.int32]:
        """Return info with the leading axes."""
        return self.info.reshape(self.lead)
