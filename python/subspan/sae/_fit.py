"""How well rows are reconstructed: sums that grow chunk by chunk, for groups of rows."""

from typing import Any

import numpy as np

__all__ = ["Fit"]

_TINY = 1e-4  # a norm below it divides by 1: the ratio of two roundings says nothing


class Fit:
    """Reconstruction of rows x by x̂ in groups; all sums in float64.

    Squares are taken about the mean of the first chunk and moved to the mean of all rows at the
    end, so that a mean far from zero costs no digits.
    """

    def __init__(self, n_groups: int = 1) -> None:
        self._shift: np.ndarray | None = None
        self._n = np.zeros(n_groups, np.int64)
        self._sums = {
            name: np.zeros(n_groups)
            for name in ("error", "spread", "square", "cross", "made", "cosine", "ratio")
        }
        self._mean = np.zeros((n_groups, 1))

    def update(self, x: np.ndarray, x_hat: np.ndarray, group: np.ndarray | None = None) -> None:
        """Add rows (m, d) and their reconstructions; ``group`` (m,) are numbers of groups."""
        if not len(x):
            return
        x, x_hat = x.astype(np.float64), x_hat.astype(np.float64)
        if self._shift is None:
            self._shift = x.mean(axis=0)
            self._mean = np.zeros((len(self._n), x.shape[1]))
        where = np.zeros(len(x), np.int64) if group is None else group
        moved = x - self._shift
        square, made = _dot(x, x), _dot(x_hat, x_hat)
        cross = _dot(x, x_hat)
        norms, of_made = np.sqrt(square), np.sqrt(made)
        rows = {
            "error": _dot(x - x_hat, x - x_hat),
            "spread": _dot(moved, moved),
            "square": square,
            "cross": cross,
            "made": made,
            "cosine": cross / np.maximum(norms * of_made, np.finfo(np.float64).tiny),
            "ratio": of_made / np.where(norms < _TINY, 1.0, norms),
        }
        for name, values in rows.items():
            self._sums[name] += np.bincount(where, values, len(self._n))
        self._n += np.bincount(where, minlength=len(self._n))
        if len(self._n) == 1:
            self._mean[0] += moved.sum(axis=0)
        else:
            np.add.at(self._mean, where, moved)

    @property
    def n(self) -> int:
        """Rows so far."""
        return int(self._n.sum())

    def summary(self) -> dict[str, float]:
        """Return the metrics over all rows.

        ``explained_variance`` 1 - Σ‖x-x̂‖² / Σ‖x-x̄‖²; ``nmse`` Σ‖x-x̂‖² / Σ‖x‖² (not centred);
        ``mse`` per element; ``cosine`` and ``l2_ratio`` means over rows; ``bias``
        E‖x̂‖² / E[x·x̂], the relative reconstruction bias (Rajamanoharan et al. 2024,
        arXiv:2404.16014, equation 10).
        """
        total = {name: float(values.sum()) for name, values in self._sums.items()}
        n, width = max(self.n, 1), self._mean.shape[1]
        return {
            "explained_variance": 1 - _ratio(total["error"], self._spread().sum()),
            "nmse": _ratio(total["error"], total["square"]),
            "mse": total["error"] / (n * width),
            "cosine": total["cosine"] / n,
            "l2_ratio": total["ratio"] / n,
            "bias": _ratio(total["made"], total["cross"]),
        }

    def explained_variance_by_group(self) -> np.ndarray:
        """Return 1 - Σ‖x-x̂‖² / Σ‖x-x̄‖² of each group, x̄ of all rows; NaN for empty groups."""
        spread = self._spread()
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(spread > 0, 1 - self._sums["error"] / spread, np.nan)

    def counts(self) -> np.ndarray:
        """Return the rows of each group."""
        return self._n.copy()

    def _spread(self) -> np.ndarray:
        mean = self._mean.sum(axis=0) / max(self.n, 1)
        about: Any = self._sums["spread"] - 2 * self._mean @ mean + self._n * (mean @ mean)
        return np.asarray(np.maximum(about, 0.0))


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", a, b))


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan") if a > 0 else 0.0
