"""The error of an approximate product, measured on rows that are made exactly."""

from dataclasses import dataclass

import numpy as np

from subspan.kernels._kernel import Array, Floats, Kernel, generator

__all__ = ["ROWS", "ProductInfo", "RowError"]

ROWS = 256
_STREAM = 1 << 32  # apart from the streams of those that are measured


@dataclass(frozen=True)
class ProductInfo:
    """What a product was made with, and how far off it is.

    Parameters
    ----------
    method : {"exact", "cutoff", "nystrom", "rff", "sparse"}
        What was used: "auto" chooses, and "sparse" falls back to "exact".
    error : float
        Estimate from above of the relative error, the largest of all right-hand sides; 0 where
        nothing was approximated, though rounding was.
    norm : str
        What error is: ``norm2(out - K v) / norm2(K v)`` of a column, with how it was found.
    bound : float
        Where there is one, a bound on the largest singular value of K less its approximation: of
        "nystrom" the trace of the residual, which is known exactly (rectangular: the root of the
        product of the traces of both sides). Else NaN.
    rank : int
        Landmarks or random features; 0 where there are none.
    pairs : int
        Entries of K that were made, but for those that measure; of "cutoff" they are not counted.
    samples : int
        Rows (of "sparse", columns) that the error was estimated from.
    """

    method: str
    error: float
    norm: str
    bound: float
    rank: int
    pairs: int
    samples: int


@dataclass(frozen=True, eq=False)
class RowError:
    """Measures approximations of K(x, y) v."""

    kernel: Kernel
    x: Array
    y: Array
    v: Array
    seed: int

    def of(self, out: Array, draw: int, weights: Floats | None = None) -> tuple[float, int]:
        """Return the relative error and the number of rows that were made for it.

        With all rows where there are few. Otherwise rows are drawn, half of them by the weights,
        and two standard errors are added. By the weights, as an error may sit in few rows, and
        where the residual is known, those are the rows of large residuals. The norm of K v is that
        of out, corrected by what the rows show.
        """
        n = len(self.x)
        shares = np.full(n, 1 / n)
        if n <= ROWS:
            chosen = np.arange(n)
        else:
            if weights is not None and 0 < weights.sum() < np.inf:
                shares = 0.5 * shares + 0.5 * weights / weights.sum()
                shares /= shares.sum()
            chosen = generator(self.seed, _STREAM + draw).choice(n, ROWS, p=shares)
        exact = self.kernel.multiply(self.x[chosen], self.y, self.v).astype(np.float64)
        came = out[chosen].astype(np.float64)
        missed = (exact - came) ** 2 / shares[chosen, None]
        gained = (exact**2 - came**2) / shares[chosen, None]
        square, norm = missed.mean(0), (out.astype(np.float64) ** 2).sum(0) + gained.mean(0)
        if n > ROWS:
            square = square + 2 * missed.std(0, ddof=1) / np.sqrt(len(chosen))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(square > 0, square / np.maximum(norm, 0), 0.0)
        return float(np.sqrt(ratio.max(initial=0.0))), len(chosen)
