"""Centred kernel alignment: linear, Gaussian or any kernel; biased or unbiased; in minibatches."""

from typing import Any, Self

import numpy as np

from subspan import _checks
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.similarity._hsic import Float64, normalised, prepare
from subspan.similarity._layers import read_pair, read_sides
from subspan.similarity._progress import Steps
from subspan.similarity._tiles import Kernel

__all__ = ["MinibatchCKA", "cka"]


def cka(
    x: Any,
    y: Any,
    *,
    kernel: str | Kernel = "linear",
    bandwidth: float = 1.0,
    unbiased: bool = False,
) -> float:
    r"""Centred kernel alignment of two sets of features of the same samples.

    .. math:: \mathrm{CKA} = \frac{\mathrm{HSIC}(K, L)}
              {\sqrt{\mathrm{HSIC}(K, K)\,\mathrm{HSIC}(L, L)}}, \qquad
              \mathrm{HSIC}(K, L) = \operatorname{tr} K H L H

    With the linear kernel and centred columns this is
    :math:`\|X^T Y\|_F^2 / (\|X^T X\|_F \|Y^T Y\|_F)`.

    Parameters
    ----------
    x : array (N, d)
        float16, bfloat16, float32 or float64; row i of x and of y is the same sample.
    y : array (N, e)
    kernel : {"linear", "rbf"} or callable
        ``"rbf"``: :math:`\exp(-|a - b|^2 / 2\sigma^2)`. A callable takes numpy rows (p, d) and
        (q, d), as they came in, and returns the values (p, q) of a symmetric kernel.
    bandwidth : float
        Of ``"rbf"``: sigma as a multiple of the median distance between rows (of 1024 evenly spread
        rows where there are more).
    unbiased : bool
        The estimator of Song et al. in all three places, which is zero on average for independent
        features however few the samples. Needs 4 rows.

    Returns
    -------
    float
        0 to 1, 1 for features that are equal up to rotation and scale (linear, rbf). Unbiased: it
        may be negative. NaN if all rows of x or of y are equal.

    Raises
    ------
    InvalidArgumentError
        Shapes, options; NaN or infinity (named).
    DtypeError
        Not an array; not floating point.

    Notes
    -----
    Linear: 2 N d e flops, or N^2 (d + e) by the kernels where that is less. Other kernels: by
    tiles. No array of N x N either way. Columns are centred before anything is multiplied; sums of
    more than 4096 products are in float64.

    References
    ----------
    S. Kornblith, M. Norouzi, H. Lee, G. Hinton: Similarity of neural network representations
    revisited. ICML 2019, equations 1 to 4. L. Song, A. Smola, A. Gretton, J. Bedo, K. Borgwardt:
    Feature selection via dependence maximization. JMLR 13 (2012), equation 5 (unbiased).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.similarity import cka
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 10))
    >>> rotation, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    >>> round(cka(x, 3 * x @ rotation + 5), 6)
    1.0
    """
    sides = read_pair("cka", x, y)
    made = prepare("cka", sides, Steps(), kernel=kernel, bandwidth=bandwidth, unbiased=unbiased)
    return float(made.matrix(Steps())[0, 0])


class MinibatchCKA:
    r"""CKA of all pairs of layers from minibatches, which need not be kept.

    .. math:: \frac{\sum_b \mathrm{HSIC}_1(K_b, L_b)}
              {\sqrt{\sum_b \mathrm{HSIC}_1(K_b, K_b)\,\sum_b \mathrm{HSIC}_1(L_b, L_b)}}

    with the unbiased estimator on every batch b, so that the average does not depend on the size of
    the batches. States of disjoint batches merge by addition.

    Parameters
    ----------
    kernel : "linear" or callable
        As for `cka`. A Gaussian needs the same width in all batches: give it as a callable.

    Attributes
    ----------
    count : int
        Batches so far.

    Notes
    -----
    An update costs what `compare` with CKA does on these rows. The state holds L1 x L2 + L1 + L2
    numbers.

    References
    ----------
    T. Nguyen, M. Raghu, S. Kornblith: Do wide and deep networks learn the same things? ICLR 2021,
    equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.similarity import MinibatchCKA
    >>> rng = np.random.default_rng(0)
    >>> a, b = MinibatchCKA(), MinibatchCKA()
    >>> for state in (a, b):
    ...     x = rng.normal(size=(64, 8))
    ...     state = state.update([x, x[:, :4], rng.normal(size=(64, 8))])
    >>> a.merge(b).matrix().shape
    (3, 3)
    """

    def __init__(self, *, kernel: str | Kernel = "linear") -> None:
        if not callable(kernel):
            _checks.choice("MinibatchCKA", "kernel", kernel, ("linear",))
        self.kernel = kernel
        self.count = 0
        self._sums: tuple[Float64, Float64, Float64] | None = None

    def update(self, xs: Any, ys: Any | None = None) -> Self:
        """Add a batch.

        Parameters
        ----------
        xs : sequence of arrays (n, d_i)
            Layers, 4 rows at least.
        ys : sequence of arrays (n, e_j), optional
            Other layers of the same samples; without, xs are compared with themselves.

        Returns
        -------
        MinibatchCKA
            self

        Raises
        ------
        InvalidArgumentError, DtypeError
            As `cka`; another number of layers than before. The state is as it was.
        """
        sides = read_sides("MinibatchCKA.update", xs, ys)
        made = prepare("MinibatchCKA.update", sides, Steps(), kernel=self.kernel, unbiased=True)
        cross, left, right = (part / (sides.n * (sides.n - 3)) for part in made.hsic())
        if self.kernel == "linear":  # back from the scale of this batch to that of the rows
            a, b = (np.array([layer.scale**2 for layer in side]) for side in (sides.x, sides.y))
            cross, left, right = cross * np.outer(a, b), left * a**2, right * b**2
        parts = cross, left, right
        if self._sums is not None:
            if self._sums[0].shape != parts[0].shape:
                raise InvalidArgumentError(
                    f"[MinibatchCKA.update] xs and ys must have {self._sums[0].shape} layers as "
                    f"before, got {parts[0].shape}"
                )
            parts = _added(self._sums, parts)
        self._sums = parts
        self.count += 1
        return self

    def merge(self, other: "MinibatchCKA") -> Self:
        """Add the batches of another state, which is left as it is.

        Raises
        ------
        DtypeError, InvalidArgumentError
            ``other`` is no MinibatchCKA, or has another number of layers or another kernel.
        """
        if not isinstance(other, MinibatchCKA):
            raise DtypeError(
                f"[MinibatchCKA.merge] other must be a MinibatchCKA, got {type(other).__name__}"
            )
        if other.kernel is not self.kernel and other.kernel != self.kernel:
            raise InvalidArgumentError(
                f"[MinibatchCKA.merge] other must have the kernel {self.kernel!r}, "
                f"got {other.kernel!r}"
            )
        if other._sums is None:
            return self
        if self._sums is not None and self._sums[0].shape != other._sums[0].shape:
            raise InvalidArgumentError(
                f"[MinibatchCKA.merge] other must have {self._sums[0].shape} layers, "
                f"got {other._sums[0].shape}"
            )
        self._sums = other._sums if self._sums is None else _added(self._sums, other._sums)
        self.count += other.count
        return self

    def matrix(self) -> Float64:
        """Return CKA (L1, L2); NaN where a layer does not vary within batches.

        Raises
        ------
        InvalidArgumentError
            There was no batch yet.
        """
        if self._sums is None:
            raise InvalidArgumentError("[MinibatchCKA.matrix] there must be a batch, got none")
        return normalised(*self._sums)


def _added(
    a: tuple[Float64, Float64, Float64], b: tuple[Float64, Float64, Float64]
) -> tuple[Float64, Float64, Float64]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
