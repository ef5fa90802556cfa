"""Centred products ``(x - centre) @ matrix + offset``, and rows less such a product of low rank.

The rows are taken in blocks, so that no centred copy of the data is ever made, and every step
uses the library (numpy, torch, cupy), the device and the dtype of the rows. Centring comes before
the product: far from the origin, ``x @ m - centre @ m`` would subtract two large numbers and lose
the digits that ``x - centre`` keeps.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan._arrays import dtype_name, empty_like_on, library_of
from subspan._rows import raise_nonfinite, row_blocks


def centred_product(
    x: Any,
    centre: NDArray[np.float64] | None,
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64] | None = None,
    *,
    function: str,
) -> Any:
    """Return ``(x - centre) @ matrix + offset`` in the library, device and dtype of ``x``.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, shape (n, d)
        Rows, any strides; half precision is multiplied in float32.
    centre : ndarray of float64, shape (d,), or None
        Subtracted from every row. For rows below float64 it is split into a float32 value and
        its remainder, so that its rounding does not shift the result.
    matrix : ndarray of float64, shape (d, k)
        Right factor.
    offset : ndarray of float64, shape (k,), or None
        Added to every row of the result.
    function : str
        Name of the public function, for the error message.

    Returns
    -------
    array of the dtype of ``x``, shape (n, k)

    Raises
    ------
    InvalidArgumentError
        If a row has NaN or infinity.

    Notes
    -----
    2 n d k flops; scratch of one block (8 MiB of float64 on a CPU, 128 MiB on a device) besides
    the result. A torch tensor that requires a gradient goes through in one piece, since autograd
    keeps the whole anyway, and the result is differentiable.
    """
    product = _product(x, centre, matrix, offset)
    return _by_blocks(x, lambda rows, _: product(rows), matrix.shape[1], function)


def low_rank_residual(
    x: Any,
    centre: NDArray[np.float64],
    right: NDArray[np.float64],
    left: NDArray[np.float64],
    *,
    function: str,
) -> Any:
    """Return ``x - ((x - centre) @ right) @ left``, by blocks as `centred_product`.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, shape (n, d)
        Rows.
    centre : ndarray of float64, shape (d,)
    right : ndarray of float64, shape (d, q)
    left : ndarray of float64, shape (q, d)
    function : str
        Name of the public function, for the error message.

    Returns
    -------
    array of the dtype of ``x``, shape (n, d)

    Raises
    ------
    InvalidArgumentError
        If a row has NaN or infinity.
    """
    product, factor = _product(x, centre, right, None), _like(x, left, _compute(x))
    return _by_blocks(x, lambda rows, _: rows - product(rows) @ factor, x.shape[1], function)


def shifted(x: Any, shift: Callable[[int, int], NDArray[np.float64]], *, function: str) -> Any:
    """Return ``x - shift(start, stop)`` for the rows start to stop - 1, by blocks as above.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, shape (n, d)
        Rows.
    shift : function
        Gives what is subtracted from some rows, ndarray (stop - start, d).
    function : str
        Name of the public function, for the error message.

    Returns
    -------
    array of the dtype of ``x``, shape (n, d)

    Raises
    ------
    InvalidArgumentError
        If a row has NaN or infinity.
    """
    compute = _compute(x)

    def difference(rows: Any, start: int) -> Any:
        return rows - _like(x, shift(start, start + len(rows)), compute)

    return _by_blocks(x, difference, x.shape[1], function)


def scaled(
    x: Any, factor: NDArray[np.float64], offset: NDArray[np.float64], *, function: str
) -> Any:
    """Return ``x * factor + offset``, column by column, by blocks as above.

    Parameters
    ----------
    x : array of float16, bfloat16, float32 or float64, shape (n, d)
        Rows.
    factor, offset : ndarray of float64, shape (d,)
    function : str
        Name of the public function, for the error message.

    Returns
    -------
    array of the dtype of ``x``, shape (n, d)

    Raises
    ------
    InvalidArgumentError
        If a row has NaN or infinity.
    """
    times, plus = _like(x, factor, _compute(x)), _like(x, offset, _compute(x))
    return _by_blocks(x, lambda rows, _: rows * times + plus, x.shape[1], function)


def _compute(x: Any) -> type:
    """Return the type of the arithmetic: half precision is multiplied in float32."""
    return np.float64 if dtype_name(x) == "float64" else np.float32


def _product(
    x: Any,
    centre: NDArray[np.float64] | None,
    matrix: NDArray[np.float64],
    offset: NDArray[np.float64] | None,
) -> Callable[[Any], Any]:
    """Return the function rows -> (rows - centre) @ matrix + offset for rows like ``x``."""
    compute = _compute(x)
    start_at = None
    if centre is not None:
        high: Any = centre.astype(compute)
        start_at = _like(x, high, compute)
        # The remainder is small beside the spread of the rows, so it may go in after the product.
        low = (centre - high) @ matrix
        offset = -low if offset is None else offset - low
    factor = _like(x, matrix, compute)
    shift = None if offset is None or not offset.any() else _like(x, offset, compute)

    def product(rows: Any) -> Any:
        y = (rows if start_at is None else rows - start_at) @ factor
        return y if shift is None else y + shift

    return product


def _by_blocks(x: Any, step: Callable[[Any, int], Any], width: int, function: str) -> Any:
    """Return ``step(rows, start)`` of the rows of ``x``, cast for the arithmetic, in blocks."""
    library, compute = library_of(x), _compute(x)
    if library == "torch" and x.requires_grad and sys.modules["torch"].is_grad_enabled():
        y = step(_cast(x, compute), 0)
        _check_block(x.detach(), y.detach(), 0, function)
        return y.to(x.dtype)
    x = np.asarray(x) if library == "numpy" else x.detach() if library == "torch" else x
    out = empty_like_on(x, (x.shape[0], width))
    for start, stop in row_blocks(x):
        # No warnings: what is not finite is refused below, and an overflow of the result, say of
        # float16, is infinity, the correct rounding.
        with np.errstate(over="ignore", invalid="ignore"):
            y = step(_cast(x[start:stop], compute), start)
            _check_block(x[start:stop], y, start, function)
            out[start:stop] = y
    return out


def _check_block(block: Any, y: Any, start: int, function: str) -> None:
    # A non-finite entry makes its row of the product non-finite, so the small side is scanned.
    if library_of(y) == "torch":
        finite = bool(sys.modules["torch"].isfinite(y).all())
    elif library_of(y) == "cupy":
        finite = bool(sys.modules["cupy"].isfinite(y).all())
    else:
        finite = bool(np.isfinite(y).all())
    if not finite:
        raise_nonfinite(block, start, function)


def _like(x: Any, values: NDArray[np.float64], compute: type) -> Any:
    """Return ``values`` in the library and on the device of ``x``."""
    values = np.array(values, dtype=compute, order="C")  # own and writable, as torch asks
    if library_of(x) == "torch":
        return sys.modules["torch"].from_numpy(values).to(x.device)
    if library_of(x) == "cupy":
        return sys.modules["cupy"].asarray(values)
    return values


def _cast(block: Any, compute: type) -> Any:
    if library_of(block) == "torch":
        torch = sys.modules["torch"]
        return block.to(torch.float64 if compute is np.float64 else torch.float32)
    return block.astype(compute, copy=False)
