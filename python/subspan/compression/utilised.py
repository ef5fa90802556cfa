"""How much of a weight's rank its inputs and outputs use, and the weight cut to that."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import subspan
from subspan import _checks
from subspan.compression._inputs import Floats, grams_of, like, matrices_of, square_root
from subspan.compression.matrices import LowRank

__all__ = ["UtilisedRank", "utilised_rank"]


class UtilisedRank(NamedTuple):
    """Dimensions of inputs and outputs in use, and the projected weight."""

    inputs: int
    """Principal directions of the inputs up to the energy."""
    outputs: int
    """Of the outputs."""
    rank: int
    """The smaller of both."""
    utilisation: float
    """``rank / min(m, n)``."""
    projected: LowRank
    """``P_out W P_in`` as factors of that rank, with the error of the outputs."""


def utilised_rank(weight: Any, gram: Any, *, energy: float = 0.99) -> UtilisedRank:
    r"""Return the rank of a weight that the data use, by projecting on both sides.

    .. math:: W' = P_T W P_S

    S and T are the leading principal directions of inputs and outputs, each up to a share of the
    squared norm. The weight may have full rank and use little of it.

    Parameters
    ----------
    weight : array (m, n)
        float16, bfloat16, float32 or float64 of numpy, torch (CPU) or another library with DLPack.
    gram : array (n, n) or Moments
        Second moments of the inputs, not centred.
    energy : float in (0, 1]
        Share of the squared norm of inputs and of outputs that is to be kept.

    Returns
    -------
    UtilisedRank
        Counts, and the projected weight, whose error and total are those of the outputs. Its mean
        utilisation over layers is the measure of a model.

    Raises
    ------
    InvalidArgumentError, DtypeError
        Not a matrix, NaN or infinity, a Gram matrix that does not fit, energy out of range.

    Notes
    -----
    Two `eigh`, of order m and n, in float64.

    References
    ----------
    `arXiv:2407.04797 <https://arxiv.org/abs/2407.04797>`_.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import utilised_rank
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 10))
    >>> found = utilised_rank(rng.normal(size=(8, 10)), x.T @ x, energy=1.0)
    >>> found.inputs, found.outputs, found.utilisation
    (3, 3, 0.375)
    """
    function = "utilised_rank"
    _checks.ndim(function, "weight", weight, 2)
    (w,), _ = matrices_of(function, weight, None)
    m, n = w.shape
    grams = grams_of(function, gram, (), n, None)
    share = _checks.real(function, "energy", energy, low=0.0, high=1.0)
    root = square_root(grams)[0]
    s = _leading(grams[0], share)
    t = _leading(w @ root @ root.T @ w.T, share)
    if t.shape[1] <= s.shape[1]:
        left, right = t, t.T @ w @ s @ s.T
    else:
        left, right = t @ (t.T @ w @ s), s.T
    rank = left.shape[1]
    error = np.linalg.norm((w - left @ right) @ root)
    total = np.linalg.norm(w @ root)
    projected = LowRank(error, total, "", like(weight, left), like(weight, right))
    return UtilisedRank(s.shape[1], t.shape[1], rank, rank / min(m, n), projected)


def _leading(gram: Floats, share: float) -> Floats:
    """Return the fewest eigenvectors (n, k) that hold a share of the trace; one at least."""
    found = subspan.eigh(gram)
    values = np.maximum(found.values[::-1], 0.0)
    rest = np.append(np.cumsum(values[::-1])[::-1][1:], 0.0)  # beyond each place; smallest first
    allowed = (1.0 - share) + len(values) * np.finfo(np.float64).eps
    k = int(np.argmax(rest <= allowed * values.sum())) + 1
    return np.ascontiguousarray(found.vectors[:, ::-1][:, :k])
