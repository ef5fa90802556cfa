"""Matricised tensors times Khatri-Rao products, without matrices or Khatri-Rao products."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from subspan import _arrays, _checks, _core
from subspan._ops._batch import broadcast, reshaped
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["mttkrp"]

_NAME = "mttkrp"


def mttkrp(x: Any, factors: Sequence[Any], mode: int | tuple[int, ...]) -> Any:
    r"""Contract a tensor with the columns of factors in all modes but one (MTTKRP).

    .. math:: M_{ir} = \sum_{i_n = i} x_{i_0 \dots i_{N-1}} \prod_{m \ne n} A^{(m)}_{i_m r}
              \;=\; \left(X_{(n)} \bigodot_{m \ne n} A^{(m)}\right)_{ir}

    batched over the leading axes. It is the step of every decomposition into outer products, and
    the gradient of their inner product with x.

    Parameters
    ----------
    x : array (..., I_0, ..., I_{N-1})
        Tensors of order N >= 2, the number of factors; float32 or float64 of numpy, torch or
        another library with DLPack (CPU); any strides.
    factors : sequence of N arrays (..., I_n, R)
        Of x's library and dtype. Leading axes of all arrays broadcast: a tensor without leading
        axes is shared by all members of a batch, which then cost one pass over it. What belongs to
        ``mode`` is not read, and may be None.
    mode : int, or tuple of adjacent modes in order
        What is left over, negative from the end. With several, a partial product, from which the
        products of each of them follow by small sums.

    Returns
    -------
    array (..., I_mode, R), or (..., I_a, ..., I_b, R) for several modes
        In x's library and dtype. NaN and infinity spread as in any sum.

    Raises
    ------
    InvalidArgumentError
        Shapes that do not fit; no mode, or modes that are not adjacent; fewer than two factors.
    DtypeError
        Not arrays of one library and dtype; not float32 or float64.
    UnsupportedError
        An array on a CUDA device; a torch tensor that requires a gradient.

    Notes
    -----
    2 I R flops for I elements. x is read where it lies, in the order of its strides (for several
    modes of which one stride does not lead through all, a copy): its innermost modes are contracted
    by register tiles, the others by small weighted sums; neither an unfolding nor a Khatri-Rao
    product of more than 4096 rows is formed. A column depends neither on the others, nor on the
    batch, nor on the number of threads.

    References
    ----------
    A.-H. Phan, P. Tichavsky, A. Cichocki: Fast alternating LS algorithms for high order
    CANDECOMP/PARAFAC tensor factorizations, IEEE Trans. Signal Process. 61 (2013), section III.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> x = np.arange(12.0).reshape(2, 3, 2)
    >>> factors = [np.ones((2, 1)), np.array([[1.0], [0.0], [2.0]]), np.array([[1.0], [1.0]])]
    >>> subspan.mttkrp(x, factors, 0)
    array([[19.],
           [55.]])
    >>> subspan.mttkrp(x, factors, (0, 1)).shape
    (2, 3, 1)
    """
    given = _listed(factors)
    order = len(given)
    kept = _modes(mode, order)
    arrays = {f"factors[{n}]": a for n, a in enumerate(given) if n not in kept}
    _arrays.require_same(_NAME, x=x, **arrays)
    _checks.ndim(_NAME, "x", x, order, or_more=True)
    if (dtype := _arrays.dtype_name(x)) not in {"float32", "float64"}:
        raise DtypeError(f"[{_NAME}] x must be float32 or float64, got {dtype}. Convert it first")
    shape = tuple(int(extent) for extent in x.shape)
    lead, sizes = shape[: len(shape) - order], shape[len(shape) - order :]
    columns = _columns(arrays)
    for name, a in arrays.items():
        extent = sizes[int(name[8:-1])]
        if _arrays.dtype_name(a) != dtype:
            raise DtypeError(
                f"[{_NAME}] {name} must be {dtype} as x, got {_arrays.dtype_name(a)}. "
                "Convert it first"
            )
        if tuple(a.shape[-2:]) != (extent, columns):
            raise InvalidArgumentError(
                f"[{_NAME}] {name} must be (..., {extent}, {columns}), as its mode of x and the "
                f"first of the factors have it, got shape {tuple(a.shape)}"
            )
    leads = {"x": lead, **{name: tuple(a.shape[:-2]) for name, a in arrays.items()}}
    try:
        whole = np.broadcast_shapes(*leads.values())
    except ValueError:
        raise InvalidArgumentError(f"[{_NAME}] leading axes must broadcast, got {leads}") from None
    return _product(x, given, kept, lead=tuple(map(int, whole)), sizes=sizes, columns=columns)


def _product(
    x: Any,
    factors: list[Any],
    kept: range,
    *,
    lead: tuple[int, ...],
    sizes: tuple[int, ...],
    columns: int,
) -> Any:
    """Of what has been checked; kept modes become one."""
    size, merged = prod(lead), prod(sizes[kept.start : kept.stop])
    joined = (*sizes[: kept.start], merged, *sizes[kept.stop :])
    tensor = _arrays.exportable(_NAME, "x", x)
    own = tuple(map(int, tensor.shape[: len(tensor.shape) - len(sizes)]))
    if prod(own) == 1:  # for all members: read once for many of them, if by a stride of 0
        tensor = broadcast(reshaped(tensor, (1, *joined)), (size, *joined))
    else:
        tensor = broadcast(reshaped(tensor, (*own, *joined)), (*lead, *joined))
        tensor = reshaped(tensor, (size, *joined))
    flat = [
        None
        if n in kept
        else reshaped(
            broadcast(_arrays.exportable(_NAME, f"factors[{n}]", a), (*lead, sizes[n], columns)),
            (size, sizes[n], columns),
        )
        for n, a in enumerate(factors)
    ]
    flat = [*flat[: kept.start], None, *flat[kept.stop :]]
    out = _arrays.empty_like_on(x, (size, merged, columns))
    _core.mttkrp(tensor, flat, kept.start, out)
    return _arrays.deliver(x, out.reshape((*lead, *sizes[kept.start : kept.stop], columns)))


def _listed(factors: Any) -> list[Any]:
    if not isinstance(factors, (list, tuple)):
        raise DtypeError(
            f"[{_NAME}] factors must be a list or tuple of arrays, one for each mode, got "
            f"{type(factors).__name__}"
        )
    if len(factors) < 2:
        raise InvalidArgumentError(
            f"[{_NAME}] factors must be two or more, one for each mode, got {len(factors)}"
        )
    return list(factors)


def _modes(mode: Any, order: int) -> range:
    """Return the kept modes, adjacent and from 0."""
    several = isinstance(mode, (tuple, list))
    if several and not mode:
        raise InvalidArgumentError(f"[{_NAME}] mode must name a mode, got ()")
    found = [
        _checks.integer(_NAME, "mode", n, low=-order, high=order - 1) % order
        for n in (mode if several else (mode,))
    ]
    kept = range(found[0], found[0] + len(found))
    if found != list(kept):
        raise InvalidArgumentError(
            f"[{_NAME}] mode must be one mode, or adjacent ones in order, got {mode}"
        )
    if len(kept) == order:
        raise InvalidArgumentError(
            f"[{_NAME}] mode must leave a mode to contract, got all {order} modes"
        )
    return kept


def _columns(arrays: dict[str, Any]) -> int:
    for name, a in arrays.items():
        _arrays.require_array(_NAME, name, a)
        _checks.ndim(_NAME, name, a, 2, or_more=True)
    return int(next(iter(arrays.values())).shape[-1])
