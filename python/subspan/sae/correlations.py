"""How latents of two codes of the same rows vary together, without making the codes dense."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan._arrays import to_numpy
from subspan.errors import InvalidArgumentError, UnsupportedError
from subspan.sae._entries import Entries, entries

__all__ = ["FeatureCorrelations", "feature_correlations"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FeatureCorrelations:
    """Result of `feature_correlations`: all n_a n_b correlations, in little memory."""

    n_rows: int
    products: Any
    """Scipy CSR array (n_a, n_b), sums over rows of products, where there is any."""
    mean_a: Floats
    """(n_a,)"""
    mean_b: Floats
    """(n_b,)"""
    deviation_a: Floats
    """(n_a,) standard deviations, 0 for latents that never change."""
    deviation_b: Floats
    """(n_b,)"""

    def pairs(self, latents_a: Any, latents_b: Any) -> Floats:
        """Return the correlations of pairs of latents; NaN where one never changes.

        Parameters
        ----------
        latents_a, latents_b : array of int (m,)

        Returns
        -------
        array (m,)
        """
        at_a, at_b = (np.asarray(to_numpy(x), np.int64) for x in (latents_a, latents_b))
        products = np.asarray(self.products[at_a, at_b]).ravel()
        covariance = products / self.n_rows - self.mean_a[at_a] * self.mean_b[at_b]
        scale = self.deviation_a[at_a] * self.deviation_b[at_b]
        out: Floats = np.full(len(scale), np.nan)
        np.divide(covariance, scale, out=out, where=scale > 0)
        return out

    def to_dense(self) -> Floats:
        """Return all correlations, (n_a, n_b): n_a n_b numbers."""
        covariance = self.products.toarray() / self.n_rows - np.outer(self.mean_a, self.mean_b)
        scale = np.outer(self.deviation_a, self.deviation_b)
        out: Floats = np.full(scale.shape, np.nan)
        np.divide(covariance, scale, out=out, where=scale > 0)
        return out

    def nearest(self) -> tuple[Ints, Floats]:
        """Return, for every latent of b, the latent of a that correlates most, and how much.

        Returns
        -------
        tuple of array (n_b,) int64, array (n_b,)
            -1 and NaN for latents that never change, or if none of a does; the smaller index of
            equals. Several latents of b may have the same one.
        """
        n_b = len(self.mean_b)
        found, best = np.full(n_b, -1, np.int64), np.full(n_b, np.nan)
        alive = np.flatnonzero(self.deviation_a > 0)
        if not len(alive):
            return found, best
        # Latents that are never active together correlate by -(mean_a / dev_a) (mean_b / dev_b).
        apart_a = self.mean_a[alive] / self.deviation_a[alive]
        orders = {sign: alive[np.argsort(sign * apart_a, kind="stable")] for sign in (1, -1)}
        together = self.products.tocsc()
        for j in np.flatnonzero(self.deviation_b > 0):
            stored = together.indices[together.indptr[j] : together.indptr[j + 1]]
            order = orders[1 if self.mean_b[j] >= 0 else -1]
            among = order[: len(stored) + 1]
            first = among[~np.isin(among, stored)][:1]
            tried = np.union1d(stored[self.deviation_a[stored] > 0], first).astype(np.int64)
            values = self.pairs(tried, np.full(len(tried), j))
            found[j], best[j] = tried[np.argmax(values)], values.max()
        return found, best


def feature_correlations(
    code_a: Any, code_b: Any, n_a: int, n_b: int | None = None
) -> FeatureCorrelations:
    """Return the Pearson correlations of all latents of one code with all of another.

    ``(mean(f_i g_j) - mean(f_i) mean(g_j)) / (dev(f_i) dev(g_j))`` over rows

    Parameters
    ----------
    code_a : SparseCode or RaggedCode
        Of n_a latents.
    code_b : SparseCode or RaggedCode
        Of the same rows, by another autoencoder.
    n_a : int
    n_b : int, optional
        n_a by default.

    Returns
    -------
    FeatureCorrelations

    Raises
    ------
    InvalidArgumentError
        The codes have no rows or not the same number of them, an index is out of range, or a value
        is NaN or infinite.
    DtypeError
        An argument is no code.
    UnsupportedError
        scipy is not installed.

    Notes
    -----
    One product of sparse matrices: rows times k_a times k_b flops, and memory for the pairs that
    are ever active together. A dense computation takes rows times n_a times n_b.

    Universality of latents: Lan et al. 2024, `arXiv:2410.06981
    <https://arxiv.org/abs/2410.06981>`_; there with 1e-8 added to deviations.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan import SparseCode
    >>> from subspan.sae.correlations import feature_correlations
    >>> code = SparseCode(np.ones((4, 1)), np.array([[0], [1], [1], [2]]))
    >>> other = SparseCode(np.ones((4, 1)), np.array([[2], [0], [0], [1]]))
    >>> feature_correlations(code, other, 3).nearest()
    (array([1, 2, 0]), array([1., 1., 1.]))
    """
    function = "feature_correlations"
    n_a = _checks.integer(function, "n_a", n_a, low=1)
    n_b = n_a if n_b is None else _checks.integer(function, "n_b", n_b, low=1)
    a = entries(function, code_a, n_a, name="code_a")
    b = entries(function, code_b, n_b, name="code_b")
    if a.n_rows != b.n_rows or not a.n_rows:
        raise InvalidArgumentError(
            f"[{function}] code_b must have the rows of code_a, at least 1, got {b.n_rows} and "
            f"{a.n_rows}"
        )
    try:
        from scipy.sparse import csr_array
    except ImportError as error:
        raise UnsupportedError(
            f"[{function}] needs the package 'scipy', got an import error ({error}). "
            "Install it with: pip install scipy"
        ) from error
    first, second = (
        csr_array((code.values, (code.rows, code.latents)), shape=(code.n_rows, n))
        for code, n in ((a, n_a), (b, n_b))
    )
    products = (first.T @ second).tocsr()
    products.sort_indices()
    return FeatureCorrelations(a.n_rows, products, *_moments(a, b, n_a, n_b))


def _moments(a: Entries, b: Entries, n_a: int, n_b: int) -> tuple[Floats, ...]:
    """Return means of a and b, then deviations of a and b."""
    means, deviations = [], []
    for code, n in ((a, n_a), (b, n_b)):
        mean = np.bincount(code.latents, code.values, n) / code.n_rows
        # Centred before squaring: what is left of a constant latent is rounding.
        centred = (code.values - mean[code.latents]) ** 2
        active = np.bincount(code.latents, minlength=n)
        square = np.bincount(code.latents, centred, n) + (code.n_rows - active) * mean**2
        deviation = np.sqrt(square / code.n_rows)
        means.append(mean)
        deviations.append(np.where(deviation > 1e-14 * np.abs(mean), deviation, 0.0))
    return (*means, *deviations)
