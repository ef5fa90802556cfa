"""Grassmann manifolds of p-dimensional subspaces of R^n, on bases (n, p): never n x n."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import subspan
from subspan import _arrays, _checks
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.subspaces import _pairs, _work
from subspan.subspaces._work import Floats
from subspan.subspaces.spaces import Spaces, orthonormal, read, read_pair, uniform, upright

__all__ = ["exp", "geodesic", "log", "transport"]


def log(a: Any, b: Any) -> Any:
    r"""Tangent vector at ``a`` of the shortest geodesic to ``b``.

    .. math:: \Delta = (Y - X \cos\Theta) \, \frac{\Theta}{\sin\Theta} \, U^T

    of principal vectors X = A U in the span of ``a`` and Y in the span of ``b``. :math:`A^T
    \Delta = 0`, and :math:`\|\Delta\|_F` is the geodesic distance.

    Parameters
    ----------
    a, b : array (..., n, p), list of arrays, or Subspaces
        Of one dimension p; leading axes broadcast. An orthonormal ``a`` is A; otherwise A is the
        basis that ``span(a)`` returns.

    Returns
    -------
    array (..., n, p)
        In a's library; float64 for float64, else float32.

    Raises
    ------
    InvalidArgumentError
        Several dimensions; as `principal_angles`.
    DtypeError, UnsupportedError
        As `principal_angles`.

    Notes
    -----
    O(n p^2), in float64. At an angle of pi/2 there are two shortest geodesics, and one of them is
    taken; right up to there.

    References
    ----------
    T. Bendokat, R. Zimmermann, P.-A. Absil, "A Grassmann manifold handbook", arXiv:2011.13699,
    algorithm 5.3.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import log
    >>> log(np.array([[1.0], [0.0]]), np.array([[1.0], [1.0]])).round(4).tolist()
    [[0.0], [0.7854]]
    """
    source, dtype, sa, sb = _two("log", a, b)
    return _work.give(source, tangents(_pairs.principal(sa.q, sb.q)), dtype)


def tangents(found: _pairs.Principal) -> Any:
    """Tangent vectors to the second subspaces at the bases of the first."""
    return (found.lift * _pairs.row(found.lift, _theta_over_sin(found.theta))) @ _work.swap(found.u)


def exp(a: Any, delta: Any, t: Any = 1.0) -> Any:
    r"""Subspaces at times ``t`` of the geodesic that leaves ``a`` with velocity ``delta``.

    .. math:: A R \cos(t\Sigma) R^T + Q \sin(t\Sigma) R^T, \qquad \Delta = Q \Sigma R^T

    Parameters
    ----------
    a : array (..., n, p), or Subspaces of one dimension
        An orthonormal ``a`` is A; otherwise A is the basis that ``span(a)`` returns.
    delta : array (..., n, p)
        Tangent vector at A: ``A^T delta = 0``, to the square root of rounding.
    t : float or array_like (...)
        Times; an array adds its axes before the last two.

    Returns
    -------
    array (..., n, p), or (..., *t.shape, n, p)
        Orthonormal bases, in a's library; float64 for float64, else float32.

    Raises
    ------
    InvalidArgumentError
        ``delta`` is not tangent at A or has another shape; NaN or infinity.
    DtypeError, UnsupportedError
        As `principal_angles`.

    Notes
    -----
    O(n p^2), in float64; re-orthonormalised.

    References
    ----------
    A. Edelman, T. A. Arias, S. T. Smith, "The geometry of algorithms with orthogonality
    constraints", SIAM J. Matrix Anal. Appl. 20, 1998, theorem 2.3.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import exp
    >>> exp(np.array([[1.0], [0.0]]), np.array([[0.0], [np.pi / 2]]), 0.5).round(4).tolist()
    [[0.7071], [0.7071]]
    """
    source, dtype, sa, d = _with_tangent("exp", a, "delta", delta)
    return _work.give(source, moved(sa.q, d, _times("exp", t)), dtype)


def moved(a: Any, delta: Any, t: Floats) -> Any:
    """End points of geodesics, orthonormal."""
    q, s, rh = _work.svd(delta)
    ar, q, rh = (_with_times(x, t) for x in (a @ _work.swap(rh), q, rh))
    arc = t[..., None] * _with_times_host(_work.host(s), t)
    end = (ar * _pairs.row(ar, np.cos(arc)) + q * _pairs.row(q, np.sin(arc))) @ rh
    basis, r = subspan.qr(end, nonfinite="ignore")
    return upright(basis, _work.host(r))


def geodesic(a: Any, b: Any, t: Any) -> Any:
    r"""Subspaces at times ``t`` of the shortest geodesic from ``a`` (t = 0) to ``b`` (t = 1).

    .. math:: \left(X \cos t\Theta + (Y - X \cos\Theta) \frac{\sin t\Theta}{\sin\Theta}\right) U^T

    Parameters
    ----------
    a, b : array (..., n, p), list of arrays, or Subspaces
        As for `log`.
    t : float or array_like (...)
        Times, also outside [0, 1]; an array adds its axes before the last two.

    Returns
    -------
    array (..., n, p), or (..., *t.shape, n, p)
        Orthonormal bases that move without turning within the subspace: that of ``t = 0`` is A.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        As `log`.

    Notes
    -----
    O(n p^2), in float64. The same as ``exp(A, log(A, b), t)``, with one decomposition less.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import geodesic
    >>> geodesic(np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]]), 1 / 3).round(4).tolist()
    [[0.866], [0.5]]
    """
    source, dtype, sa, sb = _two("geodesic", a, b)
    times = _times("geodesic", t)
    found = _pairs.principal(sa.q, sb.q)
    x, rest, ut = (_with_times(y, times) for y in (found.x, found.lift, _work.swap(found.u)))
    theta = _with_times_host(found.theta, times)
    arc = times[..., None] * theta
    # sin(t theta) / sin(theta), t where theta is 0.
    share = times[..., None] * np.sinc(arc / np.pi) * _theta_over_sin(theta)
    return _work.give(
        source, (x * _pairs.row(x, np.cos(arc)) + rest * _pairs.row(rest, share)) @ ut, dtype
    )


def transport(a: Any, delta: Any, w: Any, t: Any = 1.0) -> Any:
    r"""Tangent vectors ``w`` at ``a``, moved in parallel along the geodesic of ``delta``.

    .. math:: W + \left(Q (\cos t\Sigma - I) - A R \sin t\Sigma\right) Q^T W,
              \qquad \Delta = Q \Sigma R^T

    Parameters
    ----------
    a : array (..., n, p), or Subspaces of one dimension
        As for `exp`.
    delta, w : array (..., n, p)
        Tangent vectors at A.
    t : float or array_like (...)
        Times, as for `exp`.

    Returns
    -------
    array (..., n, p), or (..., *t.shape, n, p)
        Tangent at the basis ``exp(a, delta, t)``, with the inner products of what was moved.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        As `exp`.

    Notes
    -----
    O(n p^2), in float64.

    References
    ----------
    Edelman, Arias, Smith (as `exp`), theorem 2.4.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import transport
    >>> a, delta = np.array([[1.0], [0.0]]), np.array([[0.0], [np.pi / 2]])
    >>> transport(a, delta, delta).round(4).tolist()
    [[-1.5708], [0.0]]
    """
    source, dtype, sa, d = _with_tangent("transport", a, "delta", delta)
    _, _, _, moving = _with_tangent("transport", a, "w", w)
    times = _times("transport", t)
    q, s, rh = _work.svd(d)
    ar, q, moving = (_with_times(x, times) for x in (sa.q @ _work.swap(rh), q, moving))
    arc = times[..., None] * _with_times_host(_work.host(s), times)
    turn = q * _pairs.row(q, np.cos(arc) - 1) - ar * _pairs.row(ar, np.sin(arc))
    return _work.give(source, moving + turn @ (_work.swap(q) @ moving), dtype)


class _Two(NamedTuple):
    source: Any
    dtype: str
    a: Spaces
    b: Spaces


def _two(function: str, a: Any, b: Any) -> _Two:
    first, second = read_pair(function, a, b, wide=True)
    sa, sb = orthonormal(function, "a", first), orthonormal(function, "b", second)
    _pairs.joint_lead(function, sa, sb)
    sa, sb = uniform(function, ("a", sa), ("b", sb))
    return _Two(first.source, max(first.dtype, second.dtype), sa, sb)


def _with_tangent(function: str, a: Any, name: str, delta: Any) -> tuple[Any, str, Spaces, Any]:
    given = read(function, "a", a, wide=True)
    (sa,) = uniform(function, ("a", orthonormal(function, "a", given)))
    unit = _work.unit_of(function, name, delta)
    _arrays.require_same(function, a=given.source, **{name: delta})
    d = _work.lift(function, name, delta, wide=True)
    if tuple(d.shape[-2:]) != tuple(sa.q.shape[-2:]):
        raise InvalidArgumentError(
            f"[{function}] {name} must have shape (..., {sa.q.shape[-2]}, {sa.p}) as the basis of "
            f"a, got {tuple(d.shape)}"
        )
    try:
        np.broadcast_shapes(sa.lead, tuple(d.shape[:-2]))
    except ValueError:
        raise InvalidArgumentError(
            f"[{function}] {name} must have leading axes that broadcast with those of a, got "
            f"{tuple(d.shape[:-2])} and {sa.lead}"
        ) from None
    inside = _work.swap(sa.q) @ d
    off = float(_work.host((inside * inside).sum())) ** 0.5
    size = float(_work.host((d * d).sum())) ** 0.5
    if not np.isfinite(size):
        raise InvalidArgumentError(f"[{function}] {name} must be finite, got NaN or infinity")
    if off > max(unit, given.unit) ** 0.5 * size:
        raise InvalidArgumentError(
            f"[{function}] {name} must be tangent, A^T {name} = 0, got a part of {off / size:.2g} "
            f"along the basis of a. Project it: {name} - A @ (A.T @ {name})"
        )
    dtype = "float64" if unit < 2.0**-50 else "float32"
    return given.source, max(given.dtype, dtype), sa, d - sa.q @ inside


def _times(function: str, t: Any) -> Floats:
    if not hasattr(t, "shape") and not isinstance(t, (list, tuple)):
        t = np.array(_checks.real(function, "t", t))
    times = np.asarray(_arrays.to_numpy(t))
    if times.dtype.kind not in "fiu":
        raise DtypeError(f"[{function}] t must be real numbers, got dtype {times.dtype}")
    if not np.isfinite(times).all():
        raise InvalidArgumentError(f"[{function}] t must be finite, got NaN or infinity")
    return times.astype(np.float64)


def _with_times(x: Any, t: Floats) -> Any:
    """Room for the axes of t before the last two."""
    return x.reshape(*x.shape[:-2], *(1,) * t.ndim, *x.shape[-2:])


def _with_times_host(x: Floats, t: Floats) -> Floats:
    return x.reshape(*x.shape[:-1], *(1,) * t.ndim, x.shape[-1])


def _theta_over_sin(theta: Floats) -> Floats:
    return 1 / np.sinc(theta / np.pi)
