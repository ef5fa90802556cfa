"""Sums over rows, codes and reconstructions, of which every measure is a ratio."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.errors import InvalidArgumentError
from subspan.sae._entries import Entries, entries, rows_of
from subspan.sae._sums import Sums, nothing, ratio, sums_of

__all__ = ["CodeMetrics", "CodeStatistics"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class CodeMetrics:
    """Result of `CodeStatistics.results`.

    With e = x - x̂; sums and means go over all rows. What is 0 / 0 is NaN.
    """

    n_rows: int
    n_latents: int
    explained_variance: float
    """``1 - sum |e|^2 / sum |x - mean of x|^2``."""
    residual_variance: float
    """1 - sum of variances of e / sum of variances of x (dictionary_learning)."""
    saelens_compat: float
    """What SAELens 6.18 and SAEBench call explained variance; see `explained_variance`."""
    saelens_legacy: float
    """Mean of ``1 - |e|^2 / |x - mean of the batch|^2`` over rows; it depends on the batches."""
    mse: float
    """Mean of ``|e|^2``, which is summed over the width."""
    nmse: float
    """``sum |e|^2 / sum |x|^2``, with nothing centred."""
    openai_nmse: float
    """Mean of ``|e|^2 / |x|^2`` over rows."""
    cosine: float
    """Mean cosine of x and x̂; of a zero row 0."""
    l2_ratio: float
    """Mean of ``|x̂| / |x|``; rows shorter than 1e-4 count as of length 1."""
    relative_bias: float
    """``sum |x̂|^2 / sum <x, x̂>``, 1 where nothing is shrunk (Gated paper, equation 10)."""
    l0: float
    """Mean number of entries that are not zero."""
    l1: float
    """Mean sum of absolute values."""
    dead_fraction: float
    """Share of the latents that did not fire in the window."""
    dead_window: int
    """Number of last rows that ``dead_fraction`` looks at."""
    fires_above: float
    """A latent fires where its absolute value exceeds this."""
    density: Floats
    """(n,) share of the rows in which each latent fires."""
    mean_activation: Floats
    """(n,) mean absolute value where it fires, 0 if it never does."""
    max_activation: Floats
    """(n,) largest absolute value."""

    def denser_than(self, share: float) -> float:
        """Return the fraction of latents that fire in more than this share of the rows."""
        return float((self.density > _checks.real("denser_than", "share", share)).mean())

    def density_histogram(self, bins: Any = 50, *, floor: float = 1e-10) -> tuple[Ints, Floats]:
        """Return counts and edges of a histogram of log10 of the densities.

        Parameters
        ----------
        bins : int or array of edges
            As in `numpy.histogram`; a number of bins spans log10(floor)..0.
        floor : float
            Smaller densities, those of latents that never fire among them, count as this one.

        Returns
        -------
        tuple of array (bins,) int64, array (bins + 1,)
        """
        floor = _checks.real("density_histogram", "floor", floor, low=np.nextafter(0, 1), high=1)
        logs = np.log10(np.maximum(self.density, floor))
        return np.histogram(logs, bins, range=(np.log10(floor), 0.0))

    def scalars(self) -> dict[str, float]:
        """Return all measures that are one number."""
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in named.items() if not isinstance(value, np.ndarray)}


class CodeStatistics:
    """Accumulate rows, their codes and their reconstructions; batches and machines merge exactly.

    Codes stay sparse: memory is that of a few arrays of d and of n.

    Parameters
    ----------
    n_latents : int
    fires_above : float
        A latent fires where the absolute value of its code exceeds this: 0 by default, in OpenAI's
        training code 1e-3.

    Notes
    -----
    Sums are float64; means and variances merge as in Chan, Golub, LeVeque 1983, so a mean far from
    zero does not cancel. Each row costs about 20 d flops and a sort of its code.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae import Autoencoder
    >>> from subspan.sae.metrics import CodeStatistics
    >>> w_dec = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> sae = Autoencoder("topk", w_dec.T, w_dec, np.zeros(2), k=1)
    >>> x = np.array([[3.0, 1.0], [-3.0, 1.0], [0.0, -2.0]])
    >>> stats = CodeStatistics(sae.n_latents)
    >>> stats.update(x, sae.encode(x), sae.reconstruct(x)).results().explained_variance
    0.75
    """

    def __init__(self, n_latents: int, *, fires_above: float = 0.0) -> None:
        self.n_latents = _checks.integer("CodeStatistics", "n_latents", n_latents, low=1)
        self.fires_above = _checks.real("CodeStatistics", "fires_above", fires_above, low=0.0)
        self._sums: Sums | None = None
        self._l0 = 0
        self._l1 = 0.0
        self._fired: Ints = np.zeros(self.n_latents, np.int64)
        self._weight: Floats = np.zeros(self.n_latents)
        self._largest: Floats = np.zeros(self.n_latents)
        self._last: Ints = np.full(self.n_latents, -1, np.int64)  # the last row that it fired in

    @property
    def n_rows(self) -> int:
        """Number of rows so far."""
        return self._sums.rows if self._sums else 0

    def update(self, x: Any, code: Any, x_hat: Any) -> Self:
        """Add rows.

        Parameters
        ----------
        x : array (..., d)
            Rows of numpy, torch or cupy, of any float dtype.
        code : SparseCode or RaggedCode
            Their code; entries of one latent in one row add up.
        x_hat : array (..., d)
            Their reconstruction.

        Returns
        -------
        CodeStatistics
            Itself.

        Raises
        ------
        InvalidArgumentError
            Shapes or indices do not fit, or something is NaN or infinite; nothing is added.
        DtypeError
            An argument is no array, or ``code`` no code.
        """
        function = "CodeStatistics.update"
        found = entries(function, code, self.n_latents)
        rows = (
            rows_of(function, "x", x, found.n_rows),
            rows_of(function, "x_hat", x_hat, found.n_rows),
        )
        part = CodeStatistics(self.n_latents, fires_above=self.fires_above)
        part._sums = sums_of(function, *rows)
        part._count(found)
        return self.merge(part)

    def merge(self, other: "CodeStatistics") -> Self:
        """Add the rows of another, which come after these.

        Parameters
        ----------
        other : CodeStatistics

        Returns
        -------
        CodeStatistics
            Itself.

        Raises
        ------
        InvalidArgumentError
            The other is of another number of latents, width or ``fires_above``.
        """
        mine, its = ((s.n_latents, s.fires_above) for s in (self, other))
        if mine != its:
            raise InvalidArgumentError(
                "[CodeStatistics.merge] other must have n_latents and fires_above "
                f"{mine}, got {its}"
            )
        if other._sums is None:
            return self
        before = self._sums or nothing(len(other._sums.mean))
        if len(before.mean) != len(other._sums.mean):
            raise InvalidArgumentError(
                f"[CodeStatistics.merge] other must be of rows of width {len(before.mean)}, got "
                f"{len(other._sums.mean)}"
            )
        self._last = np.where(other._last >= 0, other._last + before.rows, self._last)
        self._sums = before + other._sums
        self._l0 += other._l0
        self._l1 += other._l1
        self._fired = self._fired + other._fired
        self._weight = self._weight + other._weight
        self._largest = np.maximum(self._largest, other._largest)
        return self

    def results(self, *, window: int | None = None) -> CodeMetrics:
        """Return all measures of the rows so far.

        Parameters
        ----------
        window : int, optional
            A latent is dead that did not fire in so many last rows; None: in all of them.

        Returns
        -------
        CodeMetrics

        Raises
        ------
        InvalidArgumentError
            There are no rows yet.
        """
        if self._sums is None or not self._sums.rows:
            raise InvalidArgumentError(
                "[CodeStatistics.results] update must be called with rows first, got 0 rows"
            )
        sums, rows = self._sums, self._sums.rows
        looked = rows
        if window is not None:
            window = _checks.integer("CodeStatistics.results", "window", window, low=1)
            looked = min(window, rows)
        error = sums.error_spread.sum() + rows * (sums.error_mean**2).sum()
        return CodeMetrics(
            n_rows=rows,
            n_latents=self.n_latents,
            explained_variance=sums.explained("variance"),
            residual_variance=sums.explained("residual_variance"),
            saelens_compat=sums.explained("saelens_compat"),
            saelens_legacy=sums.explained("saelens_legacy"),
            mse=float(error / rows),
            nmse=ratio(error, sums.square),
            openai_nmse=ratio(sums.square_ratio, sums.square_rows),
            cosine=sums.cosine / rows,
            l2_ratio=sums.length_ratio / rows,
            relative_bias=ratio(sums.recon_square, sums.product),
            l0=self._l0 / rows,
            l1=self._l1 / rows,
            dead_fraction=float((self._last < rows - looked).mean()),
            dead_window=looked,
            fires_above=self.fires_above,
            density=self._fired / rows,
            mean_activation=self._weight / np.maximum(self._fired, 1),
            max_activation=self._largest.copy(),
        )

    def _count(self, found: Entries) -> None:
        sizes = np.abs(found.values)
        self._l0, self._l1 = len(sizes), float(sizes.sum())
        np.maximum.at(self._largest, found.latents, sizes)
        fires = sizes > self.fires_above
        latents, n = found.latents[fires], self.n_latents
        self._fired = np.bincount(latents, minlength=n)
        self._weight = np.bincount(latents, sizes[fires], minlength=n).astype(np.float64)
        np.maximum.at(self._last, latents, found.rows[fires])
