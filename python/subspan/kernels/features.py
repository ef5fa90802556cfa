"""Random features of kernels: explicit maps whose inner products are k on average."""

from typing import Any

import numpy as np

from subspan import _arrays, _checks, qr
from subspan.errors import InvalidArgumentError
from subspan.kernels._kernel import DECREASING, Array, Floats, Kernel, generator, points

__all__ = ["FEATURED", "FeatureMap", "random_features"]

FEATURED = (*DECREASING, "exp_dot")

_STREAM = 1 << 33
_TILE = 1 << 20  # features of points that are there at a time


class FeatureMap:
    """Block `block` of the features of a seed: blocks are independent of each other."""

    def __init__(self, kernel: Kernel, d: int, rank: int, *, seed: int, block: int = 0) -> None:
        self.kernel, self.rank = kernel, rank
        rng = generator(seed, _STREAM + block)
        count = rank if kernel.name == "exp_dot" else rank // 2
        scales = np.sqrt(_mixture(kernel, count, rng))
        widths = kernel.widths(d)
        per_coordinate = np.sqrt(widths) if kernel.name == "exp_dot" else widths
        self.frequencies = _orthogonal(count, d, rng) * scales[:, None] / per_coordinate

    def of(self, x: Array, centre: Floats) -> Array:
        """Return the features [n, rank] of points; centre is one for all points of both sides."""
        if self.kernel.name == "exp_dot":
            wide = x.astype(np.float64)
            half = (wide * wide / self.kernel.widths(x.shape[1])).sum(1) / 2
            positive = np.exp(wide @ self.frequencies.T - half[:, None])
            return np.asarray(positive / np.sqrt(self.rank))
        angles = (x - centre).astype(x.dtype) @ self.frequencies.T.astype(x.dtype)
        out = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        out *= x.dtype.type(np.sqrt(2 / self.rank))
        return np.asarray(out)

    def multiply(self, x: Array, y: Array, v: Array) -> Floats:
        """Return features(x) (features(y)^T v), of some points at a time."""
        centre = y.mean(0, dtype=np.float64)
        step = max(1, _TILE // self.rank)
        inner = np.zeros((self.rank, v.shape[1]))
        for start in range(0, len(y), step):
            inner += self.of(y[start : start + step], centre).T @ v[start : start + step]
        out = np.empty((len(x), v.shape[1]))
        for start in range(0, len(x), step):
            out[start : start + step] = self.of(x[start : start + step], centre) @ inner
        return out


def random_features(
    x: Any,
    *,
    kernel: str = "gaussian",
    bandwidth: Any = 1.0,
    alpha: float = 1.0,
    rank: int = 256,
    seed: int = 0,
) -> Any:
    r"""Return features of points whose inner products are kernel values on average.

    .. math:: \mathbb E \langle \phi(x), \phi(y) \rangle = k(x, y)

    Parameters
    ----------
    x : array (n, d)
        float32 or float64 of numpy, torch or another library with DLPack (CPU); finite.
    kernel, bandwidth, alpha
        As in `subspan.kernel_matvec`; of the kernels that decrease with the distance, and
        "exp_dot".
    rank : int
        Number of features, even unless the kernel is "exp_dot".
    seed : int
        0 to 2^64 - 1: of all points that are to be compared, the same.

    Returns
    -------
    array (n, rank)
        In the library and dtype of x: cosines and then sines of random projections; of "exp_dot"
        exponentials, all positive.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, NaN or infinity, a name is unknown, rank is out of range.
    DtypeError
        x is no array, or not float32 or float64.
    UnsupportedError
        x is on a CUDA device, or requires a gradient.

    Notes
    -----
    2 n d rank flops. The error of an inner product is about the root of 1 / rank, of "exp_dot" much
    more where points are long. Directions are orthogonal within blocks of d, which lowers the
    variance; every kernel is a mixture of Gaussians, so the lengths are those of normal vectors,
    times the root of a gamma variable (Cauchy, rational quadratic) or over it (Matern: Student's
    t).

    References
    ----------
    A. Rahimi, B. Recht: Random features for large-scale kernel machines, NIPS 2007. F. X. Yu et
    al.: Orthogonal random features (2016), `arXiv:1610.09072 <https://arxiv.org/abs/1610.09072>`_.
    Positive ones: K. Choromanski et al.: Rethinking attention with Performers (2020),
    `arXiv:2009.14794 <https://arxiv.org/abs/2009.14794>`_, lemma 1.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.kernels import random_features
    >>> x = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> phi = random_features(x, rank=20_000)
    >>> bool(abs(phi[0] @ phi[1] - np.exp(-1)) < 0.02)
    True
    """
    function = "random_features"
    (rows,) = points(function, x=x)
    how = Kernel(kernel, bandwidth, alpha)
    d = rows.shape[1]
    how.check(function, d, FEATURED)
    rank = even(function, how, _checks.integer(function, "rank", rank, low=1))
    _checks.integer(function, "seed", seed, low=0, high=(1 << 64) - 1)
    out = FeatureMap(how, d, rank, seed=seed).of(rows, np.zeros(d))
    return _arrays.from_numpy(x, out.astype(rows.dtype, copy=False))


def even(function: str, kernel: Kernel, rank: int) -> int:
    """Return rank, where a kernel can have so many features."""
    if kernel.name != "exp_dot" and rank % 2:
        raise InvalidArgumentError(
            f"[{function}] rank must be even for {kernel.name!r}, whose features are pairs of a "
            f"cosine and a sine, got {rank}"
        )
    return rank


def _mixture(kernel: Kernel, count: int, rng: np.random.Generator) -> Floats:
    """Return variances g such that k(D) is the mean of exp(-g D^2 / 2)."""
    if kernel.name == "cauchy":
        return 2 * rng.standard_gamma(1.0, count)
    if kernel.name == "rational_quadratic":
        return rng.standard_gamma(kernel.alpha, count) / kernel.alpha
    smoothness = {"laplacian": 0.5, "matern12": 0.5, "matern32": 1.5, "matern52": 2.5}
    if kernel.name in smoothness:
        nu = smoothness[kernel.name]
        return nu / rng.standard_gamma(nu, count)
    return np.ones(count)  # the Gaussian, and the projections of "exp_dot"


def _orthogonal(count: int, d: int, rng: np.random.Generator) -> Floats:
    """Return rows that are normal vectors each, and orthogonal within blocks of d."""
    blocks = -(-count // d)
    q, r = qr(rng.standard_normal((blocks, d, d)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]  # as if drawn from all rotations
    lengths = np.sqrt(2 * rng.standard_gamma(d / 2, (blocks, d)))
    return np.asarray((q * lengths[:, :, None]).reshape(blocks * d, d)[:count])
