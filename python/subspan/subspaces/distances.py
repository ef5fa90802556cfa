"""Distances between subspaces, each described once: docs and property tests come from the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from subspan import _checks
from subspan.errors import InvalidArgumentError
from subspan.subspaces import _pairs, _work
from subspan.subspaces._work import Floats
from subspan.subspaces.spaces import read_pair

__all__ = ["METRICS", "Metric", "distance", "from_angles", "metrics_table"]

_RIGHT = np.pi / 2


class Metric(NamedTuple):
    """What there is to know about a distance.

    Attributes
    ----------
    name : str
        As `distance` takes it.
    aliases : tuple of str
        Other names in use, which `distance` takes too.
    formula : str
        In the angles t of equal dimension k.
    unequal : str
        The same for dimensions that differ by g, under ``dims="metric"``.
    largest : str
        Largest value for dimension k.
    is_metric : bool
        Whether the triangle inequality holds, for ``dims="metric"``.
    projectors : str
        The same from projectors P or bases A, B; what tests compare with.
    term : callable
        Of single angles.
    summed : bool
        Whether terms are summed; otherwise the largest counts.
    finish : callable
        Of the sum, or of the largest.

    Notes
    -----
    All have one scale: for a single angle t, each is ``t + O(t^3)``. So they compare, and a
    distance of another library that does not has another constant.
    """

    name: str
    aliases: tuple[str, ...]
    formula: str
    unequal: str
    largest: str
    is_metric: bool
    projectors: str
    term: Callable[[Floats], Floats]
    summed: bool
    finish: Callable[[Floats], Floats]


def _log_cos(theta: Floats) -> Floats:
    """Log cos, exact for tiny angles; -infinity at pi / 2, though its cosine in floats is not 0."""
    with np.errstate(divide="ignore"):
        # log1p(-sin^2) loses digits near pi / 2, log(cos) near 0.
        large = np.log(np.where(theta >= _RIGHT, 0.0, np.cos(theta)))
        small = np.log1p(-np.square(np.sin(np.minimum(theta, 1.0)))) / 2
    return np.where(theta > 0.5, large, small)


def _chord(theta: Floats) -> Floats:
    return 2 * np.sin(theta / 2)


def _same(x: Floats) -> Floats:
    return x


_ALL = (
    Metric(
        name="geodesic",
        aliases=("arc_length", "grassmann"),
        formula="sqrt(sum t^2)",
        unequal="sqrt(sum t^2 + g pi^2/4)",
        largest="sqrt(k) pi/2",
        is_metric=True,
        projectors="‖log_A(B)‖_F",
        term=np.square,
        summed=True,
        finish=np.sqrt,
    ),
    Metric(
        name="asimov",
        aliases=(),
        formula="t_max",
        unequal="pi/2",
        largest="pi/2",
        is_metric=True,
        projectors="arcsin ‖P_A - P_B‖_2",
        term=_same,
        summed=False,
        finish=_same,
    ),
    Metric(
        name="chordal",
        aliases=("projection_f",),
        formula="sqrt(sum sin^2 t)",
        unequal="sqrt(sum sin^2 t + g)",
        largest="sqrt(k)",
        is_metric=True,
        projectors="‖P_A - P_B‖_F / sqrt(2)",
        term=lambda t: np.square(np.sin(t)),
        summed=True,
        finish=np.sqrt,
    ),
    Metric(
        name="projection",
        aliases=("gap",),
        formula="sin t_max",
        unequal="1",
        largest="1",
        is_metric=True,
        projectors="‖P_A - P_B‖_2",
        term=np.sin,
        summed=False,
        finish=_same,
    ),
    Metric(
        name="procrustes",
        aliases=("chordal_f",),
        formula="sqrt(4 sum sin^2(t/2))",
        unequal="sqrt(4 sum sin^2(t/2) + 2 g)",
        largest="sqrt(2 k)",
        is_metric=True,
        projectors="min_R ‖A - B R‖_F",
        term=lambda t: np.square(_chord(t)),
        summed=True,
        finish=np.sqrt,
    ),
    Metric(
        name="spectral",
        aliases=("chordal_2",),
        formula="2 sin(t_max/2)",
        unequal="sqrt(2)",
        largest="sqrt(2)",
        is_metric=True,
        projectors="min_R ‖A - B R‖_2",
        term=_chord,
        summed=False,
        finish=_same,
    ),
    Metric(
        name="fubini_study",
        aliases=(),
        formula="arccos(prod cos t)",
        unequal="pi/2",
        largest="pi/2",
        is_metric=True,
        projectors="arccos abs det(A^T B)",
        term=_log_cos,
        summed=True,
        finish=lambda s: np.arctan2(np.sqrt(-np.expm1(2 * s)), np.exp(s)),
    ),
    Metric(
        name="binet_cauchy",
        aliases=(),
        formula="sqrt(1 - prod cos^2 t)",
        unequal="1",
        largest="1",
        is_metric=True,
        projectors="sqrt(1 - det(A^T B)^2)",
        term=_log_cos,
        summed=True,
        finish=lambda s: np.sqrt(-np.expm1(2 * s)),
    ),
    Metric(
        name="martin",
        aliases=(),
        formula="sqrt(-sum log cos^2 t)",
        unequal="inf",
        largest="inf",
        is_metric=False,
        projectors="sqrt(-log det(A^T B)^2)",
        term=_log_cos,
        summed=True,
        finish=lambda s: np.sqrt(-2 * s),
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every distance by its name."""

_BY_ANY_NAME = METRICS | {alias: metric for metric in _ALL for alias in metric.aliases}

DIMS = ("metric", "schubert", "ambient")


def distance(
    a: Any,
    b: Any,
    metric: str | Sequence[str] = "geodesic",
    *,
    dims: str = "metric",
    pairs: str = "broadcast",
) -> Any:
    """Distances between subspaces of equal or different dimension, from their principal angles.

    Metrics and their formulas are in `METRICS`. Where dimensions differ by g, there are three
    readings:

    * ``"metric"``: as if g more angles were pi/2. Distances of all dimensions together satisfy the
      triangle inequality ("martin" does not).
    * ``"schubert"``: only the angles there are: the distance to the nearest subspace of the other
      dimension that contains, or is contained in, the one. 0 if one contains the other, thus no
      metric.
    * ``"ambient"``: of the projectors, ``|P_A - P_B|_F / sqrt(2) = sqrt(|sin t|^2 + g/2)``; for
      "chordal" only.

    Parameters
    ----------
    a, b : array (..., n, p), list of arrays (n, p_i), or Subspaces
        As for `principal_angles`.
    metric : str or sequence of str
        One name or alias, or several, all from one pass over the bases.
    dims : {"metric", "schubert", "ambient"}
        What different dimensions mean.
    pairs : {"broadcast", "all"}
        As for `principal_angles`: "all" gives the M x L matrix.

    Returns
    -------
    array (...), or dict of str to array where several metrics are asked for
        In a's library; float64 for float64, else float32, worked out from angles in float64.

    Raises
    ------
    InvalidArgumentError
        Unknown name; "ambient" for a metric other than "chordal"; as `principal_angles`.
    DtypeError, UnsupportedError
        As `principal_angles`.

    Notes
    -----
    The cost of `principal_angles`. Distances far below the square root of the rounding unit are
    right, as the angles are. geomstats 2.8 takes the Frobenius norm of projectors for
    its Grassmannian and gives sqrt(2) times "geodesic".

    References
    ----------
    K. Ye, L.-H. Lim, "Schubert varieties and distances between subspaces of different dimensions",
    SIAM J. Matrix Anal. Appl. 37, 2016. A. Edelman, T. A. Arias, S. T. Smith, "The geometry of
    algorithms with orthogonality constraints", SIAM J. Matrix Anal. Appl. 20, 1998, section 4.3.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.subspaces import distance
    >>> a, b = np.eye(3)[:, :1], np.eye(3)[:, :2]
    >>> distance(a, b, "chordal"), distance(a, b, "chordal", dims="schubert")
    (array(1.), array(0.))
    """
    function = "distance"
    several = not isinstance(metric, str)
    names = list(metric) if several else [metric]
    wanted = [_BY_ANY_NAME[_checks.choice(function, "metric", m, _BY_ANY_NAME)] for m in names]
    _check_reading(function, dims, wanted)
    first, second = read_pair(function, a, b)
    measured = _pairs.measure(function, first, second, pairs)
    theta, gap = measured.theta, measured.gap
    dtype = max(first.dtype, second.dtype)
    found = [
        _work.give(first.source, np.asarray(_value(m, theta, gap, dims)), dtype) for m in wanted
    ]
    return dict(zip(names, found, strict=True)) if several else found[0]


def from_angles(
    angles: Any, metric: str = "geodesic", *, gap: Any = 0, dims: str = "metric"
) -> Floats:
    """Distances from principal angles that are known already.

    Parameters
    ----------
    angles : array_like, shape (..., q)
        As `principal_angles` returns them; NaN means that there is none.
    metric : str
        As for `distance`.
    gap : array_like of int, shape (...)
        Difference of the two dimensions.
    dims : {"metric", "schubert", "ambient"}
        As for `distance`.

    Returns
    -------
    ndarray of float64, shape (...)

    Raises
    ------
    InvalidArgumentError
        As `distance`; or a negative gap.

    Examples
    --------
    >>> from subspan.subspaces import from_angles
    >>> float(from_angles([0.3, 0.4]))
    0.5
    """
    wanted = _BY_ANY_NAME[_checks.choice("from_angles", "metric", metric, _BY_ANY_NAME)]
    _check_reading("from_angles", dims, [wanted])
    gaps = np.asarray(gap)
    if gaps.dtype.kind not in "iu" or np.any(gaps < 0):
        raise InvalidArgumentError(f"[from_angles] gap must be integers >= 0, got {gap!r}")
    theta = np.asarray(_work.host(angles) if hasattr(angles, "shape") else angles, np.float64)
    return _value(wanted, theta, gaps, dims)


def _check_reading(function: str, dims: str, wanted: Sequence[Metric]) -> None:
    others = [metric.name for metric in wanted if metric.name != "chordal"]
    if _checks.choice(function, "dims", dims, DIMS) == "ambient" and others:
        raise InvalidArgumentError(
            f'[{function}] metric must be "chordal" for dims="ambient", got {others[0]!r}. '
            'Use dims="metric"'
        )


def _value(metric: Metric, theta: Floats, gap: Any, dims: str) -> Floats:
    share = {"metric": 1.0, "schubert": 0.0, "ambient": 0.5}[dims]
    terms = metric.term(np.where(np.isnan(theta), 0.0, theta))  # an angle of 0 adds nothing
    right = metric.term(np.array(_RIGHT))
    if metric.summed:
        with np.errstate(invalid="ignore"):  # 0 times the infinite term of a right angle
            extra = np.where(gap * share > 0, gap * share * right, 0.0)
        whole = np.sum(terms, axis=-1) + extra
    else:
        whole = np.maximum(
            np.max(terms, axis=-1, initial=0.0), np.where(gap * share > 0, right, 0.0)
        )
    return np.asarray(metric.finish(whole)) + 0.0  # no negative zeros


def metrics_table() -> str:
    """Markdown table of `METRICS`, as the documentation shows it.

    Returns
    -------
    str
        One line for each distance.

    Examples
    --------
    >>> from subspan.subspaces import metrics_table
    >>> print(metrics_table().splitlines()[0])
    | metric | also called | formula | dimensions differ by g | largest | metric? | is |
    """
    lines = [
        "| metric | also called | formula | dimensions differ by g | largest | metric? | is |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in _ALL:
        aliases = ", ".join(f"`{alias}`" for alias in m.aliases)
        formulas = " | ".join(f"`{text}`" for text in (m.formula, m.unequal, m.largest))
        triangle = "yes" if m.is_metric else "no"
        lines.append(f"| `{m.name}` | {aliases} | {formulas} | {triangle} | `{m.projectors}` |")
    return "\n".join(lines) + "\n"
