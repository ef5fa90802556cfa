"""The k largest or smallest elements of every row."""

from __future__ import annotations

import functools
import sys
from math import prod
from typing import Any, NamedTuple

from subspan import _arrays, _checks, _core
from subspan._ops._batch import reshaped
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["TopK", "topk"]

_DTYPES = {
    *("float16", "bfloat16", "float32", "float64"),
    *("int8", "uint8", "int16", "int32", "int64"),
}


class TopK(NamedTuple):
    """``values[..., j] = x[..., indices[..., j]]``."""

    values: Any
    """(..., k) elements of x, bit for bit."""
    indices: Any
    """(..., k) int64."""


def topk(x: Any, k: int, *, largest: bool = True, sorted: bool = True) -> TopK:
    """Return the k largest or smallest elements along the last axis, with their indices.

    The order is total: the better value first, of equal values (-0.0 equals 0.0) the smaller index
    first, NaN after all numbers in either direction. So the result is one and the same for any
    number of threads, any batch and any layout.

    Parameters
    ----------
    x : array (..., n)
        float16, bfloat16, float32, float64, int8, uint8, int16, int32 or int64 of numpy, torch,
        cupy (CUDA) or another library with DLPack (CPU); any strides, read-only too.
    k : int
        1..n.
    largest : bool
        False: the smallest.
    sorted : bool
        Best first. False: in ascending order of the index.

    Returns
    -------
    TopK (values, indices)
        In x's library; values in its dtype, indices int64. Values of a torch tensor that requires a
        gradient have one, which goes to the elements that were selected.

    Raises
    ------
    InvalidArgumentError
        k is not in 1..n, or x has no axis.
    DtypeError
        x is no array or of a dtype that is not served, or k is no integer.
    UnsupportedError
        x is on a CUDA device and of neither torch nor cupy, or there is no CUDA library.

    Notes
    -----
    O(n) for each row in any order of its elements: one pass with a threshold where k is at most
    n / 8 and at most 4096, selection by digits of the keys otherwise; then the order of the k. Rows
    are spread over our threads, and so are the parts of long rows where there are few.

    On a CUDA device the results are the same to the bit, made on the current stream without waiting
    for the device: by one pass with a threshold for k up to 2048 (1024 for types of 64 bits), by
    sorting the rows beyond.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> values, indices = subspan.topk(np.array([3.0, np.nan, 7.0, 3.0]), 3)
    >>> values
    array([7., 3., 3.])
    >>> indices
    array([2, 0, 3])
    """
    if _arrays.require_array("topk", "x", x) == "torch":
        torch = sys.modules["torch"]
        if x.requires_grad and torch.is_grad_enabled():
            return TopK(*_differentiable().apply(x, k, largest, sorted))
    return _topk(x, k, largest, sorted)


def _topk(x: Any, k: int, largest: bool, sorted: bool) -> TopK:
    rows = _arrays.exportable("topk", "x", x)
    _checks.ndim("topk", "x", x, 1, or_more=True)
    if (name := _arrays.dtype_name(x)) not in _DTYPES:
        raise DtypeError(
            "[topk] x must be a float of up to 64 bits, a signed integer or uint8, "
            f"got {name}. Convert it first"
        )
    _arrays.require_memory("topk", "x", x)
    lead = tuple(int(extent) for extent in x.shape[:-1])
    n = int(x.shape[-1])
    if n == 0:
        raise InvalidArgumentError(
            f"[topk] x must have elements along its last axis, got shape {tuple(x.shape)}"
        )
    k = _checks.integer("topk", "k", k, low=1, high=n)
    first = _first_joined(rows, lead)
    outer, inner = prod(lead[:first]), prod(lead[first:])
    values = _arrays.empty_like_on(x, (outer, inner, k))
    indices = _arrays.empty_like_on(x, (outer, inner, k), "int64")
    _core.topk(
        reshaped(rows, (outer, inner, n)),
        values,
        indices,
        bool(largest),
        bool(sorted),
        _arrays.stream_of(x),
    )
    return TopK(
        _arrays.deliver(x, values.reshape((*lead, k))),
        _arrays.deliver(x, indices.reshape((*lead, k))),
    )


def _first_joined(rows: Any, lead: tuple[int, ...]) -> int:
    """Return the first of the last leading axes that lie in memory like one.

    The core takes two axes of rows, so these are one and what comes before is the other: a
    transposed batch is read in place.
    """
    if len(lead) == 2:
        return 1
    strides = rows.stride() if hasattr(rows, "stride") else getattr(rows, "strides", None)
    if strides is None:
        return 0
    first = max(len(lead) - 1, 0)
    while first > 0 and strides[first - 1] == strides[first] * lead[first]:
        first -= 1
    return first


@functools.cache
def _differentiable() -> Any:
    """Return the autograd function; made once, where torch is there."""
    import torch

    class Selection(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(x: Any, k: int, largest: bool, sorted: bool) -> tuple[Any, Any]:
            return tuple(_topk(x.detach(), k, largest, sorted))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, Any]) -> None:
            ctx.shape = inputs[0].shape
            ctx.save_for_backward(output[1])
            ctx.mark_non_differentiable(output[1])

        @staticmethod
        def backward(ctx: Any, of_values: Any, _: Any) -> tuple[Any, None, None, None]:
            # Made of torch's own operations, so a second derivative comes with it.
            (indices,) = ctx.saved_tensors
            zeros = of_values.new_zeros(ctx.shape)
            return zeros.scatter(-1, indices, of_values), None, None, None

    return Selection
