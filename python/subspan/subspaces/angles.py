"""Principal angles between subspaces, and the vectors that form them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from subspan.subspaces import _groups, _pairs, _work
from subspan.subspaces.spaces import orthonormal, read_pair

__all__ = ["PrincipalAngles", "principal_angles"]


class PrincipalAngles(NamedTuple):
    """Result of :func:`principal_angles`.

    Attributes
    ----------
    angles : array, shape (..., q)
        Ascending, in [0, pi/2]; q is the smaller number of columns, and entries from the smaller
        dimension of a pair on are NaN.
    dims_a, dims_b : array of int64
        Dimensions of the subspaces, in the shapes of the leading axes of ``a`` and of ``b``.
    vectors_a, vectors_b : array, shape (..., n, q), or None
        Column i of each lies in its subspace, and the two form angle i; zero where the angle is
        NaN.
    """

    angles: Any
    dims_a: Any
    dims_b: Any
    vectors_a: Any = None
    vectors_b: Any = None


def principal_angles(
    a: Any, b: Any, *, pairs: str = "broadcast", vectors: bool = False
) -> PrincipalAngles:
    r"""Principal angles between column spaces, right for tiny angles too.

    .. math:: \cos\theta_i = \sigma_i(Q_A^T Q_B), \qquad
              \sin\theta_i = \sigma_{q+1-i}(Q_B - Q_A Q_A^T Q_B)

    for orthonormal bases of ``a`` and ``b``, :math:`i \le q = \min(\dim A, \dim B)`. Angles whose
    cosine is above :math:`\sqrt{1/2}` come from the sine, as an arccos cannot tell an angle below
    :math:`\sqrt{2 \epsilon}` from 0.

    Parameters
    ----------
    a, b : array (..., n, p), list of arrays (n, p_i), or Subspaces
        Spanning columns, orthonormal or not; float16, bfloat16, float32 or float64 of numpy, torch
        or cupy. Dependent columns lower the dimension (see `span`, which also takes other
        tolerances); no columns are a subspace of dimension 0.
    pairs : {"broadcast", "all"}
        Leading axes broadcast, or each of ``a`` meets each of ``b``: M and L subspaces give
        (M, L, q) angles. Bases are orthonormalised once for each subspace, not for each pair.
    vectors : bool
        Whether principal vectors are wanted too.

    Returns
    -------
    PrincipalAngles (angles, dims_a, dims_b, vectors_a, vectors_b)
        In a's library, on its device; float64 for float64, else float32.

    Raises
    ------
    InvalidArgumentError
        Ambient dimensions differ, leading axes do not broadcast, NaN or infinity.
    DtypeError
        Not arrays of one library and supported dtypes.
    UnsupportedError
        A torch tensor that requires a gradient.

    Notes
    -----
    ``4 n p^2`` flops for each subspace, ``2 n p q`` and the singular values of p x q for each pair;
    pairs that have a cosine above ``sqrt(1/2)`` take another ``2 n p q`` and the singular values of
    n x q. Where element meets element, Cholesky factors of Gram matrices take the place of QR for
    pairs of bases that are well conditioned (condition number up to 5, once columns have one
    length): one pass, and a second one for small angles. M x L products are one product of (M p, n)
    and (n, L q), in tiles of 16 MiB; nothing of size n x n is
    stored. The error is a few units of rounding, absolute. Vectors are worked out in float64.

    References
    ----------
    A. Bjorck, G. Golub, "Numerical methods for computing angles between linear subspaces", Math.
    Comp. 27, 1973. A. Knyazev, M. Argentati, "Principal angles between subspaces in an A-based
    scalar product", SIAM J. Sci. Comput. 23, 2002, algorithm 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import principal_angles
    >>> a = np.eye(4)[:, :2]
    >>> b = np.array([[1.0, 0.0], [0.0, 1.0], [1e-9, 0.0], [0.0, 1.0]])
    >>> principal_angles(a, b).angles
    array([1.00000000e-09, 7.85398163e-01])
    """
    function = "principal_angles"
    first, second = read_pair(function, a, b, wide=vectors)
    source, dtype = first.source, max(first.dtype, second.dtype)
    if not vectors:
        found = _pairs.measure(function, first, second, pairs)
        return PrincipalAngles(
            _work.give(source, found.theta, dtype),
            _work.give(source, found.dims_a),
            _work.give(source, found.dims_b),
        )
    sa = orthonormal(function, "a", first, signed=False)
    sb = orthonormal(function, "b", second, signed=False)
    dims = (_work.give(source, sa.dims), _work.give(source, sb.dims))
    sa, sb = _pairs.spread(function, sa, sb, pairs)
    lead, q = _pairs.joint_lead(function, sa, sb), min(sa.p, sb.p)
    theta = np.full((*lead, q), np.nan)
    n = int(sa.q.shape[-2])
    x, y = (_work.zeros(sa.q, (*lead, n, q)) for _ in range(2))
    for group in _groups.of_one_dimension(sa, sb, lead):
        principal = _pairs.principal(group.a, group.b)
        group.put(theta, principal.theta)
        group.put(x, principal.x)
        group.put(y, principal.y)
    return PrincipalAngles(
        *(_work.give(source, theta, dtype), *dims, *(_work.give(source, v, dtype) for v in (x, y)))
    )
