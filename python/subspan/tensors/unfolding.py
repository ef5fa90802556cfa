r"""Tensors as matrices and back, and products with matrices, in the conventions of the field.

``"tensorly"``: the columns of an unfolding are the other modes in C order, the last of them
fastest, so that :math:`X_{(n)} = A_n (A_0 \odot \dots \odot A_{N-1})^T` without :math:`A_n`.
``"kolda"`` (Kolda and Bader 2009; pyttb, Tensor Toolbox): the first of the other modes fastest, and
:math:`X_{(n)} = A_n (A_{N-1} \odot \dots \odot A_0)^T`. Mixing them gives wrong fits without an
error. Modes count from 0 in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from subspan import _arrays, _checks
from subspan.errors import InvalidArgumentError
from subspan.tensors._reading import Array, dense, give, modes

__all__ = [
    "fold",
    "khatri_rao",
    "kronecker",
    "mode_product",
    "multi_mode_product",
    "unfold",
]

_CONVENTIONS = ("tensorly", "kolda")


def unfold(x: Any, mode: int, *, convention: str = "tensorly") -> Any:
    r"""Matrix of the fibres of a tensor along one mode.

    .. math:: X_{(n)} \in R^{I_n \times \prod_{m \ne n} I_m}

    Parameters
    ----------
    x : array (I_0, ..., I_{N-1})
        float32 or float64.
    mode : int
        Whose indices are the rows.
    convention : {"tensorly", "kolda"}
        Order of the columns: the last of the other modes fastest, or the first.

    Returns
    -------
    array (I_mode, the product of the others)
        In x's library; a view where strides allow.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        No such mode or convention; not a float array on the CPU.

    Notes
    -----
    A copy of x at most. Decompositions of this package need none: `subspan.mttkrp`.

    References
    ----------
    T. G. Kolda, B. W. Bader: Tensor decompositions and applications, SIAM Review 51 (2009), 2.4.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import unfold
    >>> x = np.arange(8.0).reshape(2, 2, 2)
    >>> unfold(x, 1).tolist()
    [[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]
    >>> unfold(x, 1, convention="kolda").tolist()
    [[0.0, 4.0, 1.0, 5.0], [2.0, 6.0, 3.0, 7.0]]
    """
    array = dense("unfold", "x", x)
    (n,) = modes("unfold", "mode", [mode], array.ndim)
    return give(x, matrix(array, n, _order("unfold", convention)))


def matrix(x: Array, mode: int, order: str = "C") -> Array:
    """Return the unfolding of a numpy array."""
    front = np.moveaxis(x, mode, 0)
    return front.reshape((x.shape[mode], -1), order="F" if order == "F" else "C")


def fold(x: Any, mode: int, shape: Sequence[int], *, convention: str = "tensorly") -> Any:
    """Tensor of a shape from its unfolding: the inverse of `unfold`.

    Parameters
    ----------
    x : array (I_mode, the product of the others)
        float32 or float64.
    mode : int
        Whose indices are the rows.
    shape : sequence of int
        Of the tensor.
    convention : {"tensorly", "kolda"}
        That of the unfolding.

    Returns
    -------
    array (I_0, ..., I_{N-1})
        In x's library; a view where strides allow.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        A matrix of another shape; as `unfold`.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import fold, unfold
    >>> x = np.arange(24.0).reshape(2, 3, 4)
    >>> bool((fold(unfold(x, 1), 1, x.shape) == x).all())
    True
    """
    array = dense("fold", "x", x)
    sizes = [_checks.integer("fold", "shape", extent, low=0) for extent in shape]
    (n,) = modes("fold", "mode", [mode], len(sizes))
    order = _order("fold", convention)
    others = [extent for m, extent in enumerate(sizes) if m != n]
    if array.shape != (sizes[n], prod(others)):
        raise InvalidArgumentError(
            f"[fold] x must be ({sizes[n]}, {prod(others)}) for shape {tuple(sizes)} and mode {n}, "
            f"got {array.shape}"
        )
    whole = array.reshape((sizes[n], *others), order="F" if order == "F" else "C")
    return give(x, np.moveaxis(whole, 0, n))


def khatri_rao(matrices: Sequence[Any], *, convention: str = "tensorly") -> Any:
    r"""Column-wise Kronecker product of matrices.

    .. math:: (A \odot B)_{(i, j), r} = A_{ir} B_{jr}

    Parameters
    ----------
    matrices : sequence of arrays (I_n, R)
        One or more, of one number of columns; in the order of the modes for either convention.
    convention : {"tensorly", "kolda"}
        Which mode is fastest along the rows: the last, as in the unfoldings of TensorLy, or the
        first, which is the product in reverse order, as in those of Kolda and Bader.

    Returns
    -------
    array (product of I_n, R)
        In the library of the first matrix.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        No matrices, other numbers of columns; as `unfold`.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import khatri_rao
    >>> a, b = np.array([[1.0], [2.0]]), np.array([[1.0], [10.0]])
    >>> khatri_rao([a, b]).ravel().tolist()
    [1.0, 10.0, 2.0, 20.0]
    >>> khatri_rao([a, b], convention="kolda").ravel().tolist()
    [1.0, 2.0, 10.0, 20.0]
    """
    found = _matrices("khatri_rao", matrices)
    if len({a.shape[1] for a in found}) > 1:
        raise InvalidArgumentError(
            f"[khatri_rao] matrices must have one number of columns, got shapes "
            f"{[a.shape for a in found]}"
        )
    if _order("khatri_rao", convention) == "F":
        found.reverse()
    out = found[0]
    for a in found[1:]:
        out = (out[:, None, :] * a[None, :, :]).reshape(-1, a.shape[1])
    return give(matrices[0], out)


def kronecker(matrices: Sequence[Any], *, convention: str = "tensorly") -> Any:
    r"""Kronecker product of matrices.

    .. math:: X_{(n)} = A_n G_{(n)} \Big(\bigotimes_{m \ne n} A_m\Big)^T

    of a Tucker tensor with core G, in either convention.

    Parameters
    ----------
    matrices : sequence of arrays (I_n, R_n)
        One or more, in the order of the modes for either convention.
    convention : {"tensorly", "kolda"}
        As `khatri_rao`.

    Returns
    -------
    array (product of I_n, product of R_n)
        In the library of the first matrix.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        As `khatri_rao`.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import kronecker
    >>> kronecker([np.array([[1.0, 2.0]]), np.array([[1.0], [10.0]])]).tolist()
    [[1.0, 2.0], [10.0, 20.0]]
    """
    found = _matrices("kronecker", matrices)
    if _order("kronecker", convention) == "F":
        found.reverse()
    out = found[0]
    for a in found[1:]:
        out = np.kron(out, a)
    return give(matrices[0], out)


def mode_product(x: Any, a: Any, mode: int) -> Any:
    r"""Product of a tensor with a matrix along one mode.

    .. math:: (X \times_n A)_{\dots j \dots} = \sum_{i} A_{ji} X_{\dots i \dots}

    Parameters
    ----------
    x : array (I_0, ..., I_{N-1})
        float32 or float64.
    a : array (J, I_mode)
        Of x's library and dtype.
    mode : int
        The mode whose extent becomes J.

    Returns
    -------
    array (..., J, ...)
        In x's library.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        A matrix that does not fit; as `unfold`.

    Notes
    -----
    2 J I flops for I elements, by BLAS on slices; x is not unfolded.

    References
    ----------
    Kolda, Bader (as `unfold`), 2.5.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import mode_product
    >>> mode_product(np.ones((2, 3, 4)), np.ones((1, 3)), 1).shape
    (2, 1, 4)
    """
    return _multiplied("mode_product", x, {mode: a}, False)


def multi_mode_product(x: Any, matrices: dict[int, Any], *, transposed: bool = False) -> Any:
    r"""Products of a tensor with matrices along several modes.

    .. math:: X \times_{n_1} A_{n_1} \times_{n_2} A_{n_2} \dots

    Parameters
    ----------
    x : array (I_0, ..., I_{N-1})
        float32 or float64.
    matrices : dict of mode to array (J_n, I_n)
        Of x's library and dtype.
    transposed : bool
        Take the matrices as (I_n, J_n): into the coordinates of bases, and not out of them.

    Returns
    -------
    array
        With J_n in place of I_n, in x's library.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        As `mode_product`.

    Notes
    -----
    The mode that shrinks most goes first.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import multi_mode_product
    >>> x, a = np.ones((2, 3, 4)), np.ones((1, 3))
    >>> multi_mode_product(x, {1: a, 2: np.ones((5, 4))}).shape
    (2, 1, 5)
    """
    return _multiplied("multi_mode_product", x, matrices, transposed)


def _multiplied(function: str, x: Any, matrices: dict[int, Any], transposed: bool) -> Any:
    array = dense(function, "x", x)
    found = {}
    keys = modes(function, "mode", list(matrices), array.ndim)
    for n, a in zip(keys, matrices.values(), strict=True):
        _arrays.require_same(function, x=x, a=a)
        one = dense(function, "a", a)
        one = one.T if transposed and one.ndim == 2 else one
        if one.ndim != 2 or one.shape[1] != array.shape[n] or one.dtype != array.dtype:
            raise InvalidArgumentError(
                f"[{function}] a must be a {array.dtype} matrix with {array.shape[n]} "
                f"{'rows' if transposed else 'columns'} for mode {n}, got {a.dtype} "
                f"{tuple(a.shape)}"
            )
        found[n] = one
    return give(x, products(array, found))


def products(x: Array, matrices: dict[int, Array]) -> Array:
    """Return the products of a numpy array, without checks."""
    for n in sorted(matrices, key=lambda n: matrices[n].shape[0] / max(matrices[n].shape[1], 1)):
        x = product(x, matrices[n], n)
    return x


def product(x: Array, a: Array, mode: int) -> Array:
    """Return the product of one mode: one matrix product, or one for each index before it."""
    before, after = prod(x.shape[:mode]), prod(x.shape[mode + 1 :])
    shape = (*x.shape[:mode], a.shape[0], *x.shape[mode + 1 :])
    if mode == x.ndim - 1:
        return (x.reshape(before, x.shape[mode]) @ a.T).reshape(shape)
    out: Array = np.matmul(a, x.reshape(before, x.shape[mode], after)).reshape(shape)
    return out


def _matrices(function: str, matrices: Sequence[Any]) -> list[Array]:
    if len(matrices) == 0:
        raise InvalidArgumentError(f"[{function}] matrices must be one or more, got none")
    _arrays.require_same(function, **{f"matrices[{n}]": a for n, a in enumerate(matrices)})
    found = [dense(function, f"matrices[{n}]", a) for n, a in enumerate(matrices)]
    for n, a in enumerate(found):
        _checks.ndim(function, f"matrices[{n}]", a, 2)
    return found


def _order(function: str, convention: str) -> str:
    _checks.choice(function, "convention", convention, _CONVENTIONS)
    return "C" if convention == "tensorly" else "F"
