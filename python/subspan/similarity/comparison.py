"""All pairs of many layers in one call, with permutation nulls."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.errors import InvalidArgumentError
from subspan.similarity._layers import read_sides
from subspan.similarity._progress import Progress, Steps
from subspan.similarity.measures import MEASURES

__all__ = ["Comparison", "compare"]

Float64 = NDArray[np.float64]


class Comparison(NamedTuple):
    """A measure for all pairs of layers; all arrays are numpy's, L1 x L2."""

    measure: str
    matrix: Float64
    """(L1, L2) values; NaN where a layer does not vary."""
    null_mean: Float64 | None
    """Mean over the permutations; None without."""
    null_quantile: Float64 | None
    """What `level` of the permutations do not reach: a similarity above it, or a distance below it,
    is more than chance."""
    p_value: Float64 | None
    """``(1 + permutations at least as similar) / (1 + permutations)``."""
    ranks_x: NDArray[np.int64] | None
    """(L1,) dimensions that were compared (canonical correlations only)."""
    ranks_y: NDArray[np.int64] | None
    """(L2,)"""


def compare(
    xs: Any,
    ys: Any | None = None,
    measure: str = "cka",
    *,
    n_permutations: int = 0,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """Compare every layer of one set with every layer of another, or of one set with themselves.

    What depends on one layer alone (its centred rows, norm, orthonormal basis or distances) is
    worked out once; pairs and permutations reuse it.

    Parameters
    ----------
    xs : sequence of L1 arrays (N, d_i), or one array (L1, N, d)
        float16, bfloat16, float32 or float64; row i of all layers is the same sample. Libraries may
        be mixed; if one layer is float64, all work is.
    ys : sequence of L2 arrays (N, e_j), or one array (L2, N, e), optional
        Without, xs are compared with themselves.
    measure : str
        A name of `MEASURES`: "cka", "svcca", "procrustes", ...
    n_permutations : int
        Random orders of the samples of ys, shared by all pairs, for the null hypothesis that
        samples of xs and ys do not belong together.
    level : float in (0, 1)
        Of ``null_quantile``.
    seed : int
        Of the permutations.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` with the stages "layers", "pairs" and
        "permutations".
    **options
        Of the measure, as its function takes them: ``kernel``, ``share``, ``alpha``, ...

    Returns
    -------
    Comparison (measure, matrix, null_mean, null_quantile, p_value, ranks_x, ranks_y)

    Raises
    ------
    InvalidArgumentError
        Shapes, unequal numbers of rows, unknown measure or option; NaN or infinity (named by layer,
        row and column).
    DtypeError
        A layer is no array, or not floating point.

    Warns
    -----
    UserWarning
        A layer whose rows are all equal; too few samples for canonical correlations.

    Notes
    -----
    CKA: the smaller of 2 N d^2 flops a pair and N^2 d flops a layer; by kernels, no array of N x N
    is ever there. Others: 2 N d^2 flops and the singular values of a d x d matrix for each pair (d:
    rank of the basis). Memory: a centred copy, or a basis, of every layer.

    A permutation costs what the pairs cost: canonical correlations and distances are worked out
    again from the bases; linear CKA permutes the leading principal scores, which hold 99 % of the
    variance of its null, and adds the mean of the others, which is known exactly; other kernels are
    evaluated again. Computed on the CPU; arrays of a device are copied.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.similarity import compare
    >>> rng = np.random.default_rng(0)
    >>> first = rng.normal(size=(100, 8))
    >>> layers = [first, first + rng.normal(size=(100, 8)), rng.normal(size=(100, 8))]
    >>> found = compare(layers, n_permutations=99)
    >>> found.p_value[0] < 0.05
    array([ True,  True, False])
    """
    name = _checks.choice("compare", "measure", measure, MEASURES)
    count = _checks.integer("compare", "n_permutations", n_permutations, low=0)
    share = _checks.real("compare", "level", level, low=0.0, high=1.0)
    rng = np.random.default_rng(_checks.integer("compare", "seed", seed, low=0))
    chosen = MEASURES[name]
    for option in options:
        if option not in chosen.options:
            known = ", ".join(chosen.options)
            raise InvalidArgumentError(
                f"[compare] options of {name!r} must be among {known}, got {option!r}"
            )
    sides = read_sides("compare", xs, ys)
    steps = Steps(progress)
    made = chosen.prepare("compare", sides, steps, **{**chosen.options, **options})
    matrix = made.matrix(steps)
    if sides.symmetric:  # by definition, and without rounding
        np.fill_diagonal(matrix, np.where(np.isnan(np.diag(matrix)), np.nan, chosen.identity))
    ranks = made.ranks or (None, None)
    if count == 0:
        return Comparison(name, matrix, None, None, None, *ranks)
    advance = steps.stage("permutations", count)
    null = np.empty((count, *matrix.shape))
    for place in range(count):
        null[place] = made.permuted(rng.permutation(sides.n))
        advance(1)
    similar = null <= matrix if chosen.is_distance else null >= matrix
    p_value = (1.0 + similar.sum(axis=0)) / (1.0 + count)
    p_value[np.isnan(matrix)] = np.nan
    quantile = np.quantile(null, 1.0 - share if chosen.is_distance else share, axis=0)
    return Comparison(name, matrix, null.mean(axis=0), quantile, p_value, *ranks)
