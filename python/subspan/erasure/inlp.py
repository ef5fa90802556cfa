"""Iterative null-space projection: remove what a linear probe reads, until it reads nothing."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from subspan import qr, svd, svdvals
from subspan._checks import integer, real
from subspan._moments_estimator import Fitted
from subspan._spectral import eigen_axes
from subspan.erasure._concept import Concept
from subspan.erasure._eraser import Floats, LinearEraser

__all__ = ["INLP"]


class INLP(LinearEraser):
    r"""Orthogonal projection away from the directions of linear probes, fitted one after another.

    .. math:: W_t = (P_t S P_t + \lambda I)^+ P_t C, \qquad
              P_{t+1} = I - \mathrm{orth}([W_1 \dots W_t])

    with :math:`S = \mathrm{Cov}(x)`, :math:`C = \mathrm{Cov}(x, z)`, z of unit covariance and
    :math:`P_1 = I`: ridge probes, whose span for labels is that of discriminant analysis. Each
    round removes up to k - 1 directions for k classes, until the best linear combination of the
    concept is explained to no more than ``tol``.

    Parameters
    ----------
    n_rounds : int or None
        At most so many rounds; None: until ``tol`` is met, or no direction is left.
    tol : float
        Stop when the largest share of variance of a linear combination of the concept that a probe
        explains (the square of the largest canonical correlation) is at most this, in [0, 1].
    ridge : float
        lambda as a part of the mean variance, >= 0.
    concept : {"auto", "labels", "values"}
        As for `LEACE`.

    Attributes
    ----------
    filters_, patterns_ : ndarray, shape (q, d)
        The removed directions, orthonormal, in the order of the rounds; they are one array.
    scores_ : ndarray, shape (rounds + 1,)
        Share explained before each round, and after the last.
    round_ranks_ : ndarray, shape (rounds,)
        Directions removed in each round; their sum is q.
    projection_, rank_, mean_, classes_, n_samples_, n_features_in_, moments_
        As for `LEACE`.

    Notes
    -----
    Works on moments alone: no pass over the rows for a round, which costs d (q + k) (k + q) flops
    after one eigendecomposition. Removing what a probe reads changes the covariance of the rest,
    so the next probe finds the concept again wherever features are correlated: expect tens of
    rounds, and larger changes than those of `LEACE`, which takes one step. The mean of the rows is
    kept.

    References
    ----------
    S. Ravfogel, Y. Elazar, H. Gonen, M. Twiton, Y. Goldberg: Null it out: guarding protected
    attributes by iterative nullspace projection. ACL 2020, algorithm 1 (there with support vector
    machines or logistic regression as probes).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.erasure import INLP
    >>> rng = np.random.default_rng(0)
    >>> z = rng.integers(0, 2, 500)
    >>> x = rng.normal(size=(500, 4)) + np.outer(z, [3.0, 1.0, 0.0, 0.0])
    >>> inlp = INLP(tol=1e-6).fit(x, z)
    >>> bool(inlp.scores_[0] > 0.5), bool(inlp.scores_[-1] <= 1e-6)
    (True, True)
    """

    scores_: Fitted[NDArray[Any]] = Fitted()
    round_ranks_: Fitted[NDArray[np.int64]] = Fitted()

    def __init__(
        self,
        n_rounds: int | None = None,
        *,
        tol: float = 1e-3,
        ridge: float = 1e-6,
        concept: Literal["auto", "labels", "values"] = "auto",
    ) -> None:
        self.n_rounds = n_rounds
        self.tol = tol
        self.ridge = ridge
        self.concept = concept

    def _check_params(self, n_features: int, n_samples: int | None) -> None:
        super()._check_params(n_features, n_samples)
        if self.n_rounds is not None:
            integer("INLP", "n_rounds", self.n_rounds, low=0)
        real("INLP", "tol", self.tol, low=0.0, high=1.0)
        real("INLP", "ridge", self.ridge, low=0.0, high=1e300)

    def _project(self, concept: Concept, function: str) -> tuple[Floats, Floats, dict[str, Any]]:
        root = concept.root(function)
        axes = eigen_axes(concept.rows, coarse=self._coarse(concept.rows))
        kept = axes.variances > axes.floor
        vectors = axes.components[kept]  # all that follows happens in their coordinates
        precision = 1.0 / (axes.variances[kept] + float(self.ridge) * axes.total / len(root))
        cross = vectors @ root
        plain = precision[:, None] * cross  # what the probe reads as long as nothing is removed
        if len(vectors) == 0:  # rows that are all equal hold nothing
            empty = np.zeros((0, len(root)))
            return empty, empty, _history([0.0], [])
        # The probe is a correlation over a deviation, and so is its rounding.
        noise = concept.noise(float(precision[-1] ** -0.5)) * float(precision[-1] ** 0.5)
        removed = np.zeros((len(vectors), 0))
        scores: list[float] = []
        ranks: list[int] = []
        while True:
            probe = _deflated(plain, precision, removed)
            scores.append(float(svdvals(cross.T @ probe)[0]))
            if scores[-1] <= self.tol or len(ranks) == self.n_rounds:
                break
            found, size, _ = svd(probe)[:3]
            new = found[:, size > noise][:, : len(vectors) - removed.shape[1]]
            if new.shape[1] == 0:
                break
            removed = qr(np.concatenate([removed, new], axis=1)).q
            ranks.append(new.shape[1])
        basis = removed.T @ vectors
        return basis, basis, _history(scores, ranks)


def _history(scores: list[float], ranks: list[int]) -> dict[str, Any]:
    return {"scores_": np.array(scores), "round_ranks_": np.array(ranks, dtype=np.int64)}


def _deflated(plain: Floats, precision: Floats, removed: Floats) -> Floats:
    """Return the ridge probe of what is left when orthonormal columns are removed.

    (P (S + l) P)^+ = K - K Q (Q^T K Q)^-1 Q^T K with K = (S + l)^-1, here diagonal.
    """
    if removed.shape[1] == 0:
        return plain
    spread = precision[:, None] * removed
    inner = removed.T @ spread
    result: Floats = plain - spread @ np.linalg.solve(inner, removed.T @ plain)
    return result
