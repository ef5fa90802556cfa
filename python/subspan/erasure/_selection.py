"""Greedy choice of the blocks of columns without which a probe carries over to other domains."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan.erasure._concept import Concept, Floats
from subspan.errors import InvalidArgumentError


class Selection(NamedTuple):
    """Blocks in the order of their removal, and the score before and after each."""

    removed: list[int]
    scores: list[float]


def select(
    domains: Sequence[tuple[Any, Concept]],
    size: int,
    *,
    n_remove: int | None,
    ridge: float,
    function: str,
) -> Selection:
    """Remove blocks of ``size`` neighbouring columns, each time the one that scores best.

    The score of a choice is the mean over the domains of R^2 on a domain of the ridge probe fitted
    on all others. ``n_remove`` None: as long as it rises.
    """
    classes = None
    if domains[0][1].classes is not None:
        classes = np.unique(np.concatenate([concept.rows.group_labels for _, concept in domains]))
    held = [_HeldOut(name, domains, classes, ridge=ridge, function=function) for name, _ in domains]
    n_blocks = held[0].n_features // size
    removed: list[int] = []
    scores = [float(np.mean([domain.score() for domain in held]))]
    while len(removed) < (n_blocks - 1 if n_remove is None else n_remove):
        left = np.setdiff1d(np.arange(n_blocks), removed)
        columns = left[:, None] * size + np.arange(size)
        found = np.mean([domain.scores_without(columns) for domain in held], axis=0)
        best = int(np.argmax(found))
        if n_remove is None and not found[best] > scores[-1]:
            break
        for domain in held:
            domain.remove(columns[best])
        removed.append(int(left[best]))
        scores.append(float(found[best]))
    return Selection(removed, scores)


class _HeldOut:
    """The probe of all other domains, and its error on this one as columns are removed.

    With K = (S + l)^-1 of the others, W = K C, and S', C' the second moments here about the means
    there, the squared error is E = v - 2 <W, C'> + <W, S' W>. Removal of the columns J takes
    K_J A from W, A = K_JJ^-1 W_J, so that with N = K S' K and G = K (C' - S' W)

        E += 2 <A, G_J> + <A, N_JJ A>,  K -= K_J K_JJ^-1 K_J^T,  N = F N F^T,  G = F (G + N_J A),

    F = I - K_J K_JJ^-1 e_J^T: all candidates cost one inversion and a few products.
    """

    def __init__(
        self,
        name: Any,
        domains: Sequence[tuple[Any, Concept]],
        classes: NDArray[Any] | None,
        *,
        ridge: float,
        function: str,
    ) -> None:
        here, others = Concept(), Concept()
        for other, concept in domains:
            (here if other == name else others).merge(concept)
        there, test = others.regression(classes), here.regression(classes)
        if test.target_variance <= 0:
            raise InvalidArgumentError(
                f"[{function}] y must vary in every domain, got a single value in {name!r}"
            )
        self.n_features = len(there.mean)
        shrink = ridge * float(np.trace(there.covariance)) / self.n_features
        if shrink <= 0:
            raise InvalidArgumentError(
                f"[{function}] X must have variance outside of every domain, got rows that are all "
                f"equal outside of {name!r}"
            )
        apart, shift = test.mean - there.mean, test.target_mean - there.target_mean
        covariance = test.covariance + np.outer(apart, apart)
        cross = test.cross + np.outer(apart, shift)
        self.k = np.linalg.inv(there.covariance + shrink * np.eye(self.n_features))
        self.w = self.k @ there.cross
        self.n = self.k @ covariance @ self.k
        residual = cross - covariance @ self.w
        self.g = self.k @ residual
        self.variance = test.target_variance
        error = self.variance + shift @ shift - np.sum(self.w * (cross + residual))
        self.error = float(error)

    def score(self) -> float:
        return 1.0 - self.error / self.variance

    def scores_without(self, columns: NDArray[np.int64]) -> Floats:
        """Return the scores without each row of ``columns`` (candidates, size)."""
        inner = columns[:, :, None], columns[:, None, :]
        a = np.linalg.solve(self.k[inner], self.w[columns])
        change = 2.0 * np.sum(a * self.g[columns], axis=(1, 2))
        change += np.sum(a * (self.n[inner] @ a), axis=(1, 2))
        result: Floats = 1.0 - (self.error + change) / self.variance
        return result

    def remove(self, columns: NDArray[np.int64]) -> None:
        inner = np.ix_(columns, columns)
        a = np.linalg.solve(self.k[inner], self.w[columns])
        factor = np.linalg.solve(self.k[inner], self.k[columns]).T  # K_J K_JJ^-1
        self.error += float(2.0 * np.sum(a * self.g[columns]) + np.sum(a * (self.n[inner] @ a)))
        self.w = self.w - self.k[:, columns] @ a
        g = self.g + self.n[:, columns] @ a
        self.g = g - factor @ g[columns]
        self.k = self.k - factor @ self.k[columns]
        n = self.n - factor @ self.n[columns]
        self.n = n - n[:, columns] @ factor.T
