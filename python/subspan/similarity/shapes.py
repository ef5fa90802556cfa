"""Procrustes distances and the shape metrics between them and canonical correlations."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks, qr
from subspan.similarity._bases import bases, rank_cut
from subspan.similarity._layers import Floats, Layer, Sides, read_pair
from subspan.similarity._pairs import nuclear_norms
from subspan.similarity._progress import Steps

__all__ = ["procrustes"]

Float64 = NDArray[np.float64]
_KINDS = ("angular", "normalized", "size")


def procrustes(
    x: Any, y: Any, *, kind: str = "angular", alpha: float = 1.0, rtol: float | None = None
) -> float:
    r"""Distance of two sets of features after the best rotation of one onto the other.

    With centred columns and the nuclear norm :math:`\|X^T Y\|_*`, the largest
    :math:`\operatorname{tr}(R^T X^T Y)` over orthogonal R:

    ============== ==================================================================
    kind           distance
    ============== ==================================================================
    "angular"      :math:`\arccos\,(\|X^T Y\|_* / (\|X\|_F \|Y\|_F))`
    "normalized"   :math:`\sqrt{2 - 2 \|X^T Y\|_* / (\|X\|_F \|Y\|_F)}`
    "size"         :math:`\sqrt{\|X\|_F^2 + \|Y\|_F^2 - 2 \|X^T Y\|_*}`
    ============== ==================================================================

    With ``alpha`` below 1 both sides are partly whitened first (a generalised shape metric): the
    k-th singular value :math:`s_k` becomes :math:`\alpha s_k + (1 - \alpha) \bar s`, with
    :math:`\bar s^2` the mean of the squares, and the whole is scaled back to its size.

    Parameters
    ----------
    x : array (N, d)
        float16, bfloat16, float32 or float64; row i of x and of y is the same sample.
    y : array (N, e)
        Where d and e differ, the narrower counts as padded by zeros.
    kind : {"angular", "normalized", "size"}
        The distance.
    alpha : float in [0, 1]
        1: rotations only. 0: all directions count alike, as in `cca`; then the cosine is
        :math:`\sum_i \rho_i / \sqrt{r_x r_y}` with the ranks r.
    rtol : float, optional
        For ``alpha`` below 1: smaller singular values, as a part of the largest, are left out. By
        default max(N, d) eps of the dtype that came in.

    Returns
    -------
    float
        "angular": 0 to pi/2. "normalized": 0 to sqrt(2). "size": in the units of x. NaN if all rows
        of x or of y are equal, but for "size".

    Raises
    ------
    InvalidArgumentError
        Shapes, options; NaN or infinity (named).
    DtypeError
        Not an array; not floating point.

    Notes
    -----
    All are metrics: symmetric, with triangle inequality, 0 for features that differ by a rotation
    and (but for "size") scale. 2 N d e flops and the singular values of a d x e matrix. A distance
    d is the root of a difference: float32 rows resolve about 1e-3 near 0, float64 rows 1e-8.

    References
    ----------
    A. H. Williams, E. Kunz, S. Kornblith, S. W. Linderman: Generalized shape metrics on neural
    representations. NeurIPS 2021 (whitening by a covariance in its own units; here it is scaled to
    unit mean variance first, so that alpha does not depend on units).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.similarity import procrustes
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(200, 5))
    >>> rotation, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    >>> procrustes(x, 3 * x @ rotation + 1) < 1e-6
    True
    >>> size = np.linalg.norm(x - x.mean(axis=0))
    >>> bool(np.isclose(procrustes(x, 3 * x @ rotation, kind="size"), 2 * size))
    True
    """
    sides = read_pair("procrustes", x, y)
    made = prepare("procrustes", sides, Steps(), kind=kind, alpha=alpha, rtol=rtol)
    return float(made.matrix(Steps())[0, 0])


class _Shape(NamedTuple):
    """What a layer is compared by."""

    rows: Floats
    """(N, r) centred."""
    size: float
    """Frobenius norm of ``rows``."""
    norm: float
    """That of the layer as it came in, centred."""


class Shapes:
    """Distances of all pairs from centred rows, partly whitened once for each layer."""

    def __init__(
        self,
        sides: Sides,
        shapes: tuple[list[_Shape], list[_Shape]],
        kind: str,
    ) -> None:
        self.ranks = None
        self._sides, self._kind = sides, kind
        self._rows = tuple([shape.rows for shape in side] for side in shapes)
        self._sizes = tuple([shape.size for shape in side] for side in shapes)
        self._norms = tuple(np.array([shape.norm for shape in side]) for side in shapes)

    def matrix(self, steps: Steps) -> Float64:
        """Return distances (L1, L2)."""
        return self._distances(self._rows[1], steps, same=False)

    def permuted(self, order: NDArray[np.int64]) -> Float64:
        """Return distances with the samples of the second side in another order."""
        return self._distances([rows[order] for rows in self._rows[1]], Steps(), same=True)

    def _distances(self, right: list[Floats], steps: Steps, *, same: bool) -> Float64:
        left = self._rows[0]
        pairs = self._sides.pairs(same=same)
        advance = steps.stage("pairs", len(pairs))
        values: list[tuple[tuple[int, int], float]] = []
        for batch, norms in nuclear_norms(left, right, pairs):
            sizes = [self._sizes[0][i] * self._sizes[1][j] for i, j in batch]
            values += zip(batch, norms / sizes, strict=True)
            advance(len(batch))
        cosine = np.minimum(self._sides.matrix(values, same=1.0), 1.0)
        a, b = self._norms[0][:, None], self._norms[1]
        if self._kind == "size":
            return np.asarray(np.sqrt(np.square(a - b) + 2.0 * a * b * (1.0 - cosine)))
        cosine[~((a > 0) & (b > 0))] = np.nan
        return np.arccos(cosine) if self._kind == "angular" else np.sqrt(2.0 - 2.0 * cosine)


def prepare(
    function: str,
    sides: Sides,
    steps: Steps,
    *,
    kind: str = "angular",
    alpha: float = 1.0,
    rtol: float | None = None,
) -> Shapes:
    """Return the rows of each layer, partly whitened."""
    _checks.choice(function, "kind", kind, _KINDS)
    weight = _checks.real(function, "alpha", alpha, low=0.0, high=1.0)
    least = None if rtol is None else _checks.real(function, "rtol", rtol, low=0.0, high=1.0)

    def shape(layer: Layer) -> _Shape:
        rows = layer.rows
        size = float(np.sqrt(np.einsum("ij,ij->i", rows, rows).sum(dtype=np.float64)))
        if size == 0.0:
            return _Shape(rows, 1.0, 0.0)
        if weight < 1.0:
            [found] = bases([rows], [rank_cut(layer.rtol if least is None else least)])
            s = weight * found.s + (1.0 - weight) * np.sqrt(np.mean(np.square(found.s)))
            whitened: Floats = found.q * (s / np.linalg.norm(s)).astype(rows.dtype)
            return _Shape(whitened, 1.0, size * layer.scale)
        # Of wide rows X = L Q^T the factor L (N, N) has all that products with others need.
        narrow = qr(rows.T).r.T if rows.shape[1] > len(rows) else rows
        return _Shape(narrow, size, size * layer.scale)

    return Shapes(sides, sides.each(shape, steps), kind)
