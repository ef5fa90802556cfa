"""Sums over all pairs of two kernels at once, without their matrices."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from subspan import _arrays, _checks
from subspan._ops import _gradients, _joint_gradients
from subspan._ops._batch import reshaped
from subspan._ops._kernel_arguments import require_reals, widths_of
from subspan.errors import InvalidArgumentError

__all__ = ["JointSums", "joint_kernel_sums"]

_NAME = "joint_kernel_sums"
_KERNELS = (
    *("distance", "sqdistance", "gaussian", "laplacian", "matern12", "matern32", "matern52"),
    *("cauchy", "rational_quadratic"),
)
_KNOWN = {"matern12": "laplacian"}  # as the core has it


class JointSums(NamedTuple):
    """What `joint_kernel_sums` returns, all float64."""

    joint: Any
    """(..., n) sums of the products of both kernels, for every row."""
    first: Any
    """(n,) sums of the kernel of x and y."""
    second: Any
    """(..., n) sums of the kernel of z and w."""


def joint_kernel_sums(
    x: Any,
    z: Any,
    y: Any = None,
    w: Any = None,
    *,
    kernels: tuple[str, str] = ("distance", "distance"),
    bandwidths: tuple[Any, Any] = (1.0, 1.0),
    alphas: tuple[float, float] = (1.0, 1.0),
) -> JointSums:
    r"""Sum two kernels and their product over all pairs, without forming either matrix.

    .. math:: \mathrm{joint}_i = \sum_j k(x_i, y_j)\, l(z_i, w_j), \quad
        \mathrm{first}_i = \sum_j k(x_i, y_j), \quad \mathrm{second}_i = \sum_j l(z_i, w_j)

    Distance covariance, HSIC and conditional divergences are made of these sums.

    Parameters
    ----------
    x : array (n, d)
        float32 or float64 of numpy, torch or another library with DLPack (CPU); any strides.
    z : array (..., n, q)
        A row for each of x. Leading axes: many second kernels against the same first one, whose
        values are made once.
    y : array (m, d) or None
        None: x itself.
    w : array (..., m, q) or None
        A row for each of y, leading axes as z. None: z itself, where y is None too.
    kernels : tuple of two str
        k and l: "distance", "sqdistance", "gaussian", "laplacian" (or "matern12"), "matern32",
        "matern52", "cauchy" or "rational_quadratic", as in `kernel_matvec`.
    bandwidths : tuple of two floats or arrays (d,) and (q,)
        > 0, of k and of l; inf leaves a coordinate out.
    alphas : tuple of two floats
        Of "distance" an exponent, in (0, 4]: D^alpha. Of "rational_quadratic" as there.

    Returns
    -------
    JointSums (joint, first, second)
        float64, in the library of x. For torch tensors differentiable once in x, z, y and w,
        without the matrices as well; at distance 0, where "laplacian" and powers of the distance
        below 2 have no derivative, it counts as 0.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, a bandwidth or an alpha is out of range, an unknown name.
    DtypeError
        An argument is no array, of another library or dtype than x, or not float32 or float64.
    UnsupportedError
        An array is on a CUDA device.

    Notes
    -----
    With r second kernels 2 n m (d + r q) flops and n m (1 + r) values, a gradient in x
    2 r n m (2 d + q); memory 8 n (1 + 2 r) bytes and at most 16 MiB of packed points. Accuracy is
    that of `kernel_matvec`: distances of centred points, values in the dtype of x, sums in it over
    128 points and in float64 beyond. Plain distances of single columns (d = q = 1), y and w None,
    take n log n steps, in float64.

    A result depends neither on the threads nor on the other rows of x and z. NaN or infinity in a
    row of x or z makes its sums NaN, in y or w all of them.

    References
    ----------
    G. J. Szekely, M. L. Rizzo, N. K. Bakirov: Measuring and testing dependence by correlation of
    distances, Annals of Statistics 35 (2007); for single columns X. Huo, G. J. Szekely: Fast
    computing for distance covariance, Technometrics 58 (2016).

    Examples
    --------
    >>> import numpy as np, subspan
    >>> x, z = np.array([[0.0], [1.0], [3.0]]), np.array([[0.0], [2.0], [1.0]])
    >>> subspan.joint_kernel_sums(x, z)
    JointSums(joint=array([5., 4., 5.]), first=array([4., 3., 5.]), second=array([3., 3., 2.]))
    """
    names = [
        _checks.choice(_NAME, "kernels", name, _KERNELS)
        for name in _pair("kernels", kernels, "names")
    ]
    exponents = [
        _alpha(alpha, name)
        for alpha, name in zip(_pair("alphas", alphas, "numbers"), names, strict=True)
    ]
    if (y is None) != (w is None):
        raise InvalidArgumentError(
            f"[{_NAME}] w must be given where y is, got {'y' if w is None else 'w'} alone"
        )
    arrays = _operands({"x": x, "z": z} if y is None else {"x": x, "z": z, "y": y, "w": w})
    *lead, n, _ = map(int, z.shape)
    of_x, of_z = (
        _joint_gradients.Kernel(
            _KNOWN.get(name, name),
            alpha,
            widths_of(_NAME, width, int(arrays[side].shape[-1]), argument="bandwidths", of=side),
        )
        for name, alpha, width, side in zip(
            names,
            exponents,
            _pair("bandwidths", bandwidths, "numbers or arrays"),
            "xz",
            strict=True,
        )
    )
    for side in set(arrays) & {"z", "w"}:
        arrays[side] = reshaped(arrays[side], (prod(lead), *map(int, arrays[side].shape[-2:])))
    sides = _joint_gradients.Sides(**arrays)
    tracked = any(map(_gradients.wanted, arrays.values()))
    add_up = _joint_gradients.differentiable if tracked else _joint_gradients.add_up
    joint, first, second = add_up(sides, of_x, of_z)
    joint, second = (out.reshape((*lead, n)) for out in (joint, second))
    return JointSums(*(_arrays.deliver(x, out) for out in (joint, first, second)))


def _pair(name: str, value: Any, what: str) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InvalidArgumentError(
            f"[{_NAME}] {name} must be a tuple of two {what}, one for x and one for z, got "
            f"{value!r}"
        )
    return value[0], value[1]


def _alpha(alpha: Any, kernel: str) -> float:
    number = _checks.real(_NAME, "alphas", alpha, high=4.0 if kernel == "distance" else 1e30)
    if number <= 0:
        raise InvalidArgumentError(f"[{_NAME}] alphas must be > 0, got {number}")
    return number


def _operands(arrays: dict[str, Any]) -> dict[str, Any]:
    """Return what the core can read, with shapes and dtypes that fit."""
    require_reals(_NAME, arrays)
    for name, array in arrays.items():
        _checks.ndim(_NAME, name, array, 2, or_more=name in "zw")
    shapes = {name: tuple(map(int, array.shape)) for name, array in arrays.items()}
    (n, d), of_z = shapes["x"], shapes["z"]
    if of_z[-2] != n:
        raise InvalidArgumentError(
            f"[{_NAME}] z must have {n} rows like x, got {of_z[-2]} (shape {of_z})"
        )
    if "y" in shapes:
        m, columns = shapes["y"]
        if columns != d:
            raise InvalidArgumentError(f"[{_NAME}] y must have {d} columns like x, got {columns}")
        if shapes["w"] != (*of_z[:-2], m, of_z[-1]):
            raise InvalidArgumentError(
                f"[{_NAME}] w must have shape {(*of_z[:-2], m, of_z[-1])}, the rows of y and all "
                f"else of z, got {shapes['w']}"
            )
    if 0 in of_z[:-2]:
        raise InvalidArgumentError(
            f"[{_NAME}] z must have leading axes without zeros, got shape {of_z}"
        )
    return {
        name: array if _gradients.wanted(array) else _arrays.exportable(_NAME, name, array)
        for name, array in arrays.items()
    }
