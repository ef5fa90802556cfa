"""Products of the columns of tall matrices, one pair or many."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from subspan import _arrays, _checks, _core
from subspan._ops import _gradients
from subspan._ops._batch import broadcast, reshaped
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

__all__ = ["Grams", "gram", "gram_inner", "grams"]


class Grams(NamedTuple):
    """All products of two stacks of columns."""

    xx: Any
    """(..., p, p) x^T x, exactly symmetric."""
    xy: Any
    """(..., p, q) x^T y."""
    yy: Any
    """(..., q, q) y^T y, exactly symmetric."""


def gram(x: Any, y: Any = None) -> Any:
    r"""Products of columns, batched over the leading axes.

    .. math:: X^T Y \quad\text{or}\quad X^T X

    Parameters
    ----------
    x : array (..., n, p)
        float32 or float64 of numpy, torch, cupy or another library with DLPack (CUDA: torch and
        cupy, whose own product is taken); any strides.
    y : array (..., n, q), optional
        Of x's library, dtype and device. Leading axes broadcast with those of x. Without y the
        result is exactly symmetric.

    Returns
    -------
    array (..., p, q), or (..., p, p) without y
        In x's library, dtype and device. NaN and infinity spread as in any sum.

    Raises
    ------
    InvalidArgumentError
        Shapes that do not fit.
    DtypeError
        Not arrays of one library, dtype and device; not float32 or float64.
    UnsupportedError
        Arrays on a CUDA device that are neither of torch nor of cupy.

    Notes
    -----
    2 n p q flops; half of that without y. Where min(p, q) is at most 128, register tiles read both
    matrices in place, and the bits depend neither on strides, nor on the batch, nor on the number
    of threads; above, BLAS multiplies on one thread per block, and strides may show in the last
    bits. The sums of 256 rows are added up in order, so that errors grow with n / 256. Transposed
    views make it any product of many matrices: ``gram(a.mT, w)`` is ``a @ w``. Tensors that require
    a gradient have one.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> x = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> subspan.gram(x)
    array([[35., 44.],
           [44., 56.]])
    >>> subspan.gram(x, np.ones((3, 1)))
    array([[ 9.],
           [12.]])
    """
    if y is None:
        lead, left, _ = _operands("gram", x, None)
        if _on_device(left):
            product = left.swapaxes(-1, -2) @ left
            return (product + product.swapaxes(-1, -2)) / 2
        alone = _gradients.detached(left)
        return _gradients.multiplied(left, None, lambda: _product(alone, None, lead))
    lead, left, right = _operands("gram", x, y)
    if _on_device(left):
        return left.swapaxes(-1, -2) @ right
    pair = _gradients.detached(left), _gradients.detached(right)
    return _gradients.multiplied(left, right, lambda: _product(*pair, lead))


def grams(x: Any, y: Any) -> Grams:
    r"""All products of the columns of pairs of matrices, each of which is read once.

    .. math:: X^T X, \quad X^T Y, \quad Y^T Y

    Parameters
    ----------
    x, y : array (..., n, p), (..., n, q)
        As for `gram`, of equal leading axes.

    Returns
    -------
    Grams (xx, xy, yy)
        With the bits of `gram`.

    Raises
    ------
    InvalidArgumentError, DtypeError
        As `gram`.
    UnsupportedError
        As `gram`; a torch tensor that requires a gradient.

    Notes
    -----
    ``n (p + q)^2`` flops.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> x, y = np.eye(3)[:, :2], np.ones((3, 1))
    >>> [part.tolist() for part in subspan.grams(x, y)]
    [[[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]], [[3.0]]]
    """
    x, y = _arrays.exportable("grams", "x", x), _arrays.exportable("grams", "y", y)
    if tuple(x.shape[:-2]) != tuple(y.shape[:-2]):
        raise InvalidArgumentError(
            f"[grams] y must have the leading axes of x {tuple(x.shape[:-2])}, got "
            f"{tuple(y.shape[:-2])}"
        )
    lead, left, right = _operands("grams", x, y)
    if _on_device(left):
        return Grams(gram(left), gram(left, right), gram(right))
    p, q = int(left.shape[-1]), int(right.shape[-1])
    flat = [_flat(a, lead) for a in (left, right)]
    size = prod(lead)
    out = [_arrays.empty_like_on(left, (size, *shape)) for shape in ((p, p), (p, q), (q, q))]
    _core.grams(*flat, *out)
    return Grams(*(_arrays.deliver(x, part.reshape((*lead, *part.shape[1:]))) for part in out))


def gram_inner(xs: Sequence[Any]) -> Any:
    r"""Inner products of the Gram matrices of the rows of many matrices, none of them stored.

    .. math:: M_{lm} = \langle X_l X_l^T, X_m X_m^T \rangle = \|X_l^T X_m\|_F^2

    Parameters
    ----------
    xs : sequence of L arrays (n, d_l)
        float32 or float64 of numpy, torch or another library with DLPack (CPU), all of one library
        and dtype, with any number of columns; any strides.

    Returns
    -------
    array (L, L) float64
        In the library of xs; exactly symmetric. NaN and infinity spread as in any sum.

    Raises
    ------
    InvalidArgumentError
        No matrices, or not of equal numbers of rows.
    DtypeError
        Not arrays of one library and dtype; not float32 or float64.
    UnsupportedError
        Arrays on a CUDA device; a torch tensor that requires a gradient.

    Notes
    -----
    ``n^2 d`` flops for each matrix and ``n^2 L^2 / 2`` for all pairs, where products of columns
    take ``2 n d^2`` for each pair: less for many matrices of few rows. Tiles of one triangle of all
    ``X_l X_l^T``, at most 512 x 512 of each, are multiplied while they are in cache. Sums of up to
    4096 entries are in the dtype of xs, all others in float64. The bits do not depend on the number
    of threads.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> x, y = np.eye(3)[:, :2], np.ones((3, 1))
    >>> subspan.gram_inner([x, y])
    array([[2., 2.],
           [2., 9.]])
    """
    name = "gram_inner"
    if not isinstance(xs, (list, tuple)):
        raise DtypeError(f"[{name}] xs must be a list or tuple of arrays, got {type(xs).__name__}")
    if not xs:
        raise InvalidArgumentError(f"[{name}] xs must have at least one array, got none")
    _arrays.require_same(name, **{f"xs[{i}]": x for i, x in enumerate(xs)})
    dtype = _arrays.dtype_name(xs[0])
    if dtype not in {"float32", "float64"}:
        raise DtypeError(f"[{name}] xs must be float32 or float64, got {dtype}. Convert them first")
    found = []
    for i, x in enumerate(xs):
        _checks.ndim(name, f"xs[{i}]", x, 2)
        if _arrays.dtype_name(x) != dtype:
            raise DtypeError(
                f"[{name}] xs[{i}] must be {dtype} as xs[0], got {_arrays.dtype_name(x)}"
            )
        if int(x.shape[0]) != int(xs[0].shape[0]):
            raise InvalidArgumentError(
                f"[{name}] xs[{i}] must have {int(xs[0].shape[0])} rows as xs[0], "
                f"got {int(x.shape[0])}"
            )
        found.append(_arrays.exportable(name, f"xs[{i}]", x))
    out = _arrays.empty_like_on(found[0], (len(xs), len(xs)), "float64")
    _core.gram_inner(found, out)
    return _arrays.deliver(xs[0], out)


def _product(x: Any, y: Any, lead: tuple[int, ...]) -> Any:
    """Of arrays on the CPU; ``y`` None: of x with itself."""
    p, q = int(x.shape[-1]), int((x if y is None else y).shape[-1])
    out = _arrays.empty_like_on(x, (prod(lead), p, q))
    _core.gram(_flat(x, lead), None if y is None else _flat(y, lead), out)
    return _arrays.deliver(x, out.reshape((*lead, p, q)))


def _flat(x: Any, lead: tuple[int, ...]) -> Any:
    return reshaped(broadcast(x, (*lead, *x.shape[-2:])), (prod(lead), *map(int, x.shape[-2:])))


def _on_device(x: Any) -> bool:
    return _arrays.device_of(x) != "cpu"


def _operands(function: str, x: Any, y: Any) -> tuple[tuple[int, ...], Any, Any]:
    """Return the leading axes of the result, and both arrays as they can be read."""
    given = {"x": x} if y is None else {"x": x, "y": y}
    _arrays.require_same(function, **given)
    found = {}
    for name, a in given.items():
        _checks.ndim(function, name, a, 2, or_more=True)
        if (dtype := _arrays.dtype_name(a)) not in {"float32", "float64"}:
            raise DtypeError(
                f"[{function}] {name} must be float32 or float64, got {dtype}. Convert it first"
            )
        library = _arrays.library_of(a)
        if _on_device(a) and library not in {"torch", "cupy"}:
            raise UnsupportedError(
                f"[{function}] {name} must be of torch or cupy to be on a CUDA device, got "
                f"{library}. Hand it over by torch.from_dlpack"
            )
        found[name] = a if _gradients.wanted(a) else _arrays.exportable(function, name, a)
    if y is None:
        return tuple(map(int, x.shape[:-2])), found["x"], None
    if _arrays.dtype_name(y) != _arrays.dtype_name(x):
        raise DtypeError(
            f"[{function}] y must be {_arrays.dtype_name(x)} as x, got {_arrays.dtype_name(y)}"
        )
    try:
        lead = np.broadcast_shapes(tuple(x.shape[:-2]), tuple(y.shape[:-2]))
    except ValueError:
        lead = None
    if lead is None or int(x.shape[-2]) != int(y.shape[-2]):
        raise InvalidArgumentError(
            f"[{function}] y must be (..., n, q) with n = {int(x.shape[-2])} and leading axes that "
            f"broadcast with {tuple(x.shape[:-2])}, got shape {tuple(y.shape)}"
        )
    return tuple(map(int, lead)), found["x"], found["y"]
