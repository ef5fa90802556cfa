"""Best rank-one approximation of any tensor by the higher-order power method."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks, _multisets
from subspan.errors import ConvergenceError, InvalidArgumentError

__all__ = ["HOPM", "hopm"]

Array = npt.NDArray[Any]


class HOPM(NamedTuple):
    """A rank-one tensor, weight times the outer product of unit factors, and how it was found."""

    weight: float
    """Not negative."""
    factors: list[Any]
    """One unit vector for each axis; in all but the last the first entry at least half as large as
    the largest is positive."""
    error: float
    """``|T - weight outer product| / |T|``"""
    weights: npt.NDArray[np.float64]
    """(starts,) where each start ended; the first is that of the HOSVD."""
    iterations: npt.NDArray[np.int64]
    """(starts,) sweeps over all axes."""
    converged: npt.NDArray[np.bool_]
    """(starts,)"""


def hopm(
    t: Any,
    *,
    n_starts: int = 10,
    tol: float = 1e-14,
    max_iter: int = 1000,
    seed: int = 0,
    errors: str = "info",
) -> HOPM:
    r"""Find the best rank-one approximation of a tensor by alternating contractions.

    .. math:: \max_{\|u_k\| = 1} T(u_1, \dots, u_m), \qquad
        u_k \leftarrow T(u_1, .., \cdot, .., u_m) / \|\cdot\|

    Parameters
    ----------
    t : array (n_1, ..., n_m)
        m >= 2; float32 or float64 of numpy, torch or another library with DLPack, on the CPU.
        Worked on in float64.
    n_starts : int
        Random starts beside that of the HOSVD, the leading singular vector of each unfolding.
    tol : float
        A start ends when its weight has grown by less than this part in a sweep.
    max_iter : int
        Sweeps of a start at most.
    errors : {"info", "raise"}
        Starts that ran out of sweeps: in the record only, or ConvergenceError.

    Returns
    -------
    HOPM (weight, factors, error, weights, iterations, converged)
        Of the start with the greatest weight; it is a local maximum, not surely the global one.
        Factors in t's library and dtype.

    Raises
    ------
    InvalidArgumentError
        Fewer than two axes, an empty one, NaN or infinity.
    DtypeError, UnsupportedError
        Not an array; not float32 or float64; on a CUDA device.
    ConvergenceError
        With ``errors="raise"``.

    Notes
    -----
    A sweep is m products of T with all starts at once, 2 m n_1 ... n_m flops for each start. For
    symmetric tensors use `subspan.tensor_power`.

    References
    ----------
    L. De Lathauwer, B. De Moor, J. Vandewalle: On the best rank-1 and rank-(R1, ..., RN)
    approximation of higher-order tensors, SIAM J. Matrix Anal. Appl. 21 (2000), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import hopm
    >>> u, v, w = np.array([0.6, 0.8]), np.array([0.0, 1.0, 0.0]), np.array([1.0, 0.0])
    >>> found = hopm(5 * np.einsum("i,j,k->ijk", u, v, w))
    >>> round(found.weight, 12), [x.round(12).tolist() for x in found.factors]
    (5.0, [[0.6, 0.8], [0.0, 1.0, 0.0], [1.0, 0.0]])
    """
    name = "hopm"
    tensor = _multisets.floats(name, "t", t).astype(np.float64, copy=False)
    _checks.ndim(name, "t", tensor, 2, or_more=True)
    if 0 in tensor.shape:
        raise InvalidArgumentError(f"[{name}] t must have no empty axis, got shape {tensor.shape}")
    if not np.isfinite(tensor).all():
        raise InvalidArgumentError(
            f"[{name}] t must be finite, got NaN or infinity. Fill missing entries first"
        )
    n_starts = _checks.integer(name, "n_starts", n_starts, low=0)
    tol = _checks.real(name, "tol", tol, low=0, high=1)
    max_iter = _checks.integer(name, "max_iter", max_iter, low=1)
    raising = _checks.choice(name, "errors", errors, ("info", "raise")) == "raise"
    rng = np.random.default_rng(_checks.integer(name, "seed", seed, low=0))

    exponent = int(np.frexp(np.abs(tensor).max())[1])  # squares of entries must not overflow
    tensor = np.ascontiguousarray(np.ldexp(tensor, -exponent))
    factors = [
        np.hstack([_leading(tensor, axis), _unit(rng.standard_normal((n, n_starts)))])
        for axis, n in enumerate(tensor.shape)
    ]
    weights, iterations, converged = _climb(tensor, factors, tol, max_iter)
    if raising and not converged.all():
        raise ConvergenceError(
            f"[{name}] {int((~converged).sum())} of {len(converged)} starts did not converge in "
            f'{max_iter} sweeps. Raise max_iter, or pass errors="info"'
        )
    best = int(np.argmax(weights))
    weight, chosen = float(weights[best]), [x[:, best] for x in factors]
    for axis in range(len(chosen) - 1):
        x = chosen[axis]
        if x[np.argmax(np.abs(x) >= np.abs(x).max() / 2)] < 0:
            chosen[axis], chosen[-1] = -x, -chosen[-1]
    size = float(np.linalg.norm(tensor))
    rest = tensor - weight * _outer(chosen)
    dtype = _arrays.dtype_name(t)
    return HOPM(
        float(np.ldexp(weight, exponent)),
        [_arrays.from_numpy(t, np.ascontiguousarray(x, dtype)) for x in chosen],
        float(np.linalg.norm(rest)) / size if size else 0.0,
        np.ldexp(weights, exponent),
        iterations,
        converged,
    )


def _climb(
    tensor: Array, factors: list[Array], tol: float, max_iter: int
) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Sweep until no start grows; factors (n_k, starts) change in place."""
    count = factors[0].shape[1]
    weights = np.zeros(count)
    iterations = np.zeros(count, np.int64)
    converged = np.zeros(count, bool)
    live = np.arange(count)
    for _ in range(max_iter):
        before = weights[live]
        for axis in range(tensor.ndim):
            y = _contracted(tensor, [x[:, live] for x in factors], axis)
            size = np.sqrt(np.einsum("ns,ns->s", y, y))
            fine = size > 0  # a start in the null space stays where it is
            factors[axis][:, live[fine]] = y[:, fine] / size[fine]
            weights[live] = size
        iterations[live] += 1
        done = weights[live] - before <= tol * weights[live]
        converged[live[done]] = True
        live = live[~done]
        if not len(live):
            break
    return weights, iterations, converged


def _contracted(tensor: Array, factors: list[Array], axis: int) -> Array:
    """(n_axis, starts): the tensor contracted with all factors but one, for each start."""
    shape, last = tensor.shape, tensor.ndim - 1
    if axis != last:  # the first product is one matrix product for all starts
        part = (tensor.reshape(-1, shape[last]) @ factors[last]).reshape(*shape[:last], -1)
        left = list(range(last))
    else:
        part = (tensor.reshape(shape[0], -1).T @ factors[0]).reshape(*shape[1:], -1)
        left = list(range(1, last + 1))
    for k in reversed(left):
        if k != axis:
            part = np.einsum("anbs,ns->abs", _split(part, left.index(k)), factors[k])
            part = part.reshape(*(shape[j] for j in left if j != k), -1)
            left.remove(k)
    return part


def _split(part: Array, at: int) -> Array:
    """(before, n, after, starts) of an array whose axis `at` is n."""
    shape = part.shape
    before, after = int(np.prod(shape[:at])), int(np.prod(shape[at + 1 : -1]))
    return part.reshape(before, shape[at], after, shape[-1])


def _leading(tensor: Array, axis: int) -> Array:
    """Leading left singular vector (n, 1) of an unfolding, from its Gram matrix."""
    rows = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    vectors = np.linalg.eigh(rows @ rows.T)[1]
    return vectors[:, -1:]


def _unit(x: Array) -> Array:
    found: Array = x / np.linalg.norm(x, axis=0)
    return found


def _outer(vectors: list[Array]) -> Array:
    product = vectors[0]
    for x in vectors[1:]:
        product = product[..., None] * x
    return product
