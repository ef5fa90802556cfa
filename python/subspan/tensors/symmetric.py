"""Symmetric tensors: unique entries in packed form, and back; the symmetric part of any tensor."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks, _multisets

__all__ = ["symmetric_pack", "symmetric_unpack", "symmetrize"]


def symmetric_pack(a: Any, *, order: int | None = None, tol: float | None = None) -> Any:
    """Return the unique entries of symmetric tensors, as `subspan.tensor_power` reads them.

    Entry (i1, ..., im) with i1 <= ... <= im, in lexicographic order: for a matrix the upper
    triangle, row by row.

    Parameters
    ----------
    a : array (..., d, ..., d)
        Tensors in the last ``order`` axes; None: one tensor of all axes. float32 or float64.
    tol : float, optional
        Entries that should be equal may differ by this part of the largest; default 1e-8, for
        float32 1e-5.

    Returns
    -------
    array (..., C(d + order - 1, order))
        In a's library and dtype.

    Raises
    ------
    InvalidArgumentError
        A tensor that is not symmetric (the message says by how much), or not a cube.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import symmetric_pack
    >>> symmetric_pack(np.array([[1.0, 2.0], [2.0, 3.0]]))
    array([1., 2., 3.])
    """
    rows = _floats("symmetric_pack", a)
    _, order = _multisets.cube("symmetric_pack", "a", rows.shape, order)
    if order > 1 and rows.size:
        _multisets.require_symmetric("symmetric_pack", "a", rows, order, tol)
    return _arrays.from_numpy(a, _multisets.pack(rows, order))


def symmetric_unpack(packed: Any, order: int) -> Any:
    """Return the full tensors of unique entries: the way back from `symmetric_pack`.

    Parameters
    ----------
    packed : array (..., C(d + order - 1, order))
        float32 or float64.
    order : int
        From 1 on.

    Returns
    -------
    array (..., d, ..., d)
        Exactly symmetric, in packed's library and dtype.

    Raises
    ------
    InvalidArgumentError
        A last axis that fits no dimension.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import symmetric_unpack
    >>> symmetric_unpack(np.array([1.0, 2.0, 3.0]), 2)
    array([[1., 2.],
           [2., 3.]])
    """
    name = "symmetric_unpack"
    rows = _floats(name, packed)
    order = _checks.integer(name, "order", order, low=1)
    _checks.ndim(name, "packed", rows, 1, or_more=True)
    d = _multisets.dimension(name, "packed", rows.shape[-1], order)
    full = np.sort(np.indices((d,) * order).reshape(order, -1), axis=0)
    entries = rows[..., _multisets.positions(full.T, d)]
    return _arrays.from_numpy(packed, entries.reshape(*rows.shape[:-1], *(d,) * order))


def symmetrize(a: Any, *, order: int | None = None) -> Any:
    """Return the mean of a tensor over all permutations of its axes.

    The nearest symmetric tensor in the Frobenius norm; order! passes over the entries.

    Parameters
    ----------
    a : array (..., d, ..., d)
        Tensors in the last ``order`` axes; None: one tensor of all axes. float32 or float64.

    Returns
    -------
    array (..., d, ..., d)
        Exactly symmetric, in a's library and dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import symmetrize
    >>> symmetrize(np.array([[1.0, 4.0], [0.0, 3.0]]))
    array([[1., 2.],
           [2., 3.]])
    """
    rows = _floats("symmetrize", a)
    d, order = _multisets.cube("symmetrize", "a", rows.shape, order)
    lead = rows.ndim - order
    total = np.zeros(rows.shape, np.float64)
    count = 0
    for axes in permutations(range(lead, rows.ndim)):
        total += rows.transpose(*range(lead), *axes)
        count += 1
    # Sums in another order differ in the last bits: all take those of the sorted index.
    unique = (_multisets.pack(total, order) / count).astype(rows.dtype)
    full = np.sort(np.indices((d,) * order).reshape(order, -1), axis=0)
    entries = unique[..., _multisets.positions(full.T, d)]
    return _arrays.from_numpy(a, entries.reshape(rows.shape))


def _floats(function: str, a: Any) -> npt.NDArray[Any]:
    return _multisets.floats(function, "a", a)
