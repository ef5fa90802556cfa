"""Pairs of mixed dimensions, taken apart into batches of one dimension.

Zero columns of a padded basis would mix with principal vectors of right angles, whose products are
zero too; so what needs vectors works on bases without padding, one batch for each combination of
dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan.subspaces import _work
from subspan.subspaces.spaces import Spaces

__all__ = ["Group", "of_one_dimension"]


class Group(NamedTuple):
    """Bases of pairs that have the same two dimensions, without padding."""

    a: Any
    b: Any
    lead: tuple[int, ...]
    places: NDArray[np.int64] | None
    """Numbers of the pairs among all; None: all of them, with leading axes that broadcast."""

    def put(self, out: Any, values: Any) -> None:
        """Write ``values`` (pairs of the group, ..., k) to the leading columns of ``out``."""
        columns = (..., slice(0, int(values.shape[-1])))
        if self.places is None:
            out[columns] = values
            return
        flat = out.reshape(
            prod(self.lead), *out.shape[len(self.lead) :]
        )  # a view: out is ours, in C order
        rows = _work.take(flat, self.places)
        rows[columns] = values
        _work.put(flat, self.places, rows)


def of_one_dimension(a: Spaces, b: Spaces, lead: tuple[int, ...]) -> Iterator[Group]:
    """Yield the groups of pairs whose leading axes broadcast to ``lead``."""
    if prod(lead) == 0:
        return
    if np.ptp(a.dims) == 0 and np.ptp(b.dims) == 0:
        p, q = int(a.dims.flat[0]), int(b.dims.flat[0])
        yield Group(a.q[..., :p], b.q[..., :q], lead, None)
        return
    of_a, of_b = (
        np.broadcast_to(np.arange(prod(s.lead)).reshape(s.lead), lead).reshape(-1) for s in (a, b)
    )
    both = np.stack([a.dims.reshape(-1)[of_a], b.dims.reshape(-1)[of_b]], axis=-1)
    kinds, member = np.unique(both, axis=0, return_inverse=True)
    qa, qb = a.flat(), b.flat()
    for kind, (p, q) in enumerate(kinds.tolist()):
        places = np.flatnonzero(member.reshape(-1) == kind)
        left, right = _work.take(qa, of_a[places]), _work.take(qb, of_b[places])
        yield Group(left[..., :p], right[..., :q], lead, places)
