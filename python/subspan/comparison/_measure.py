"""The numbers of a comparison: a matrix for each measure, its null, and principal angles."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subspan import PCA
from subspan.comparison._rows import read_arrays, write_arrays
from subspan.report.result import Progress
from subspan.similarity import MEASURES, compare
from subspan.subspaces import principal_angles

__all__ = ["Measured", "angles", "kept", "measured"]

_DRAWS = 5  # of chance angles, for each pair of layers

Arrays = dict[str, np.ndarray]


class Measured(NamedTuple):
    """One measure of all pairs of layers."""

    name: str
    matrix: np.ndarray
    """(L1, L2)"""
    null: np.ndarray | None
    """(L1, L2) quantile of the permutations, interpolated between the layers in ``null_at``."""
    null_at: tuple[np.ndarray, np.ndarray] | None
    warnings: list[str]

    @property
    def is_distance(self) -> bool:
        """Small values are similar."""
        return MEASURES[self.name].is_distance

    @property
    def order(self) -> np.ndarray:
        """The matrix with larger values for more similar layers."""
        return -self.matrix if self.is_distance else self.matrix

    @property
    def above(self) -> np.ndarray | None:
        """(L1, L2) booleans: more alike than the quantile of the permutations."""
        if self.null is None:
            return None
        limit = -self.null if self.is_distance else self.null
        above: np.ndarray = self.order > limit
        return above

    def best(self) -> list[int | None]:
        """Return the most similar layer of B for each of A; None where A's does not vary."""
        return [int(np.nanargmax(line)) if np.isfinite(line).any() else None for line in self.order]


def kept(
    file: Path, make: Callable[[], tuple[Arrays, dict[str, Any]]]
) -> tuple[Arrays, dict[str, Any]]:
    """Return what ``make`` gives, from the file where an interrupted run left it."""
    if not file.exists():
        write_arrays(file, *make())
    return read_arrays(file)


def measured(
    name: str,
    xs: Sequence[np.ndarray],
    ys: Sequence[np.ndarray],
    file: Path,
    *,
    n_permutations: int,
    level: float,
    null_layers: int,
    seed: int,
    progress: Progress,
    title: str = "",
) -> Measured:
    """Work out a measure for all pairs, and its permutation null on a coarse grid of layers."""

    def make() -> tuple[Arrays, dict[str, Any]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            found = compare(list(xs), list(ys), name, progress=_told(progress, title or name))
            arrays = {"matrix": found.matrix}
            if n_permutations:
                at = [_spread(len(side), null_layers) for side in (xs, ys)]
                null = compare(
                    [xs[i] for i in at[0]], [ys[j] for j in at[1]], name,
                    n_permutations=n_permutations, level=level, seed=seed,
                    progress=_told(progress, f"{title or name} null"),
                ).null_quantile  # fmt: skip
                assert null is not None
                arrays |= {"null": null, "null_a": at[0], "null_b": at[1]}
        said = {str(warning.message) for warning in caught if warning.category is UserWarning}
        return arrays, {"warnings": sorted(said)}

    arrays, notes = kept(file, make)
    matrix = arrays["matrix"]
    if "null" not in arrays:
        return Measured(name, matrix, None, None, notes["warnings"])
    at = (arrays["null_a"], arrays["null_b"])
    null = _interpolated(arrays["null"], at, matrix.shape)
    return Measured(name, matrix, null, at, notes["warnings"])


def _told(progress: Progress, title: str) -> Progress:
    return lambda stage, done, total: progress(f"{title}: {stage}", done, total)


def _spread(n: int, most: int) -> np.ndarray:
    """Return up to ``most`` of n places, the first and the last among them."""
    return np.unique(np.round(np.linspace(0, n - 1, min(n, most))).astype(np.int64))


def _interpolated(
    null: np.ndarray, at: tuple[np.ndarray, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    rows = np.stack([np.interp(np.arange(shape[1]), at[1], line) for line in null])
    columns = [np.interp(np.arange(shape[0]), at[0], line) for line in rows.T]
    return np.stack(columns, axis=1)


def angles(
    xs: Sequence[np.ndarray],
    ys: Sequence[np.ndarray],
    match: Sequence[int | None],
    file: Path,
    *,
    dims: int,
    seed: int,
    progress: Progress,
) -> Arrays:
    """Return the principal angles of the leading subspaces of each layer of A and its match.

    ``samples`` (L1, q): between the spans of the leading principal scores in the space of samples.
    ``features`` (L1, q): between the leading principal directions themselves, where both layers
    have the same width. Each with ``chance`` (q,), the mean over permuted samples, or over random
    subspaces. Radians, NaN where an angle does not exist.
    """

    def make() -> tuple[Arrays, dict[str, Any]]:
        rng = np.random.default_rng(seed)
        pairs = [(i, j) for i, j in enumerate(match) if j is not None]
        right = {j: _leading(ys[j], dims) for j in {j for _, j in pairs}}
        shape = (len(xs), dims)
        out = {"samples": np.full(shape, np.nan), "features": np.full(shape, np.nan)}
        chance: dict[str, list[np.ndarray]] = {"samples": [], "features": []}
        for done, (i, j) in enumerate(pairs):
            progress("principal angles", done, len(pairs))
            (scores, axes), (scores_b, axes_b) = _leading(xs[i], dims), right[j]
            _put(out["samples"][i], scores, scores_b)
            orders = [rng.permutation(len(scores_b)) for _ in range(_DRAWS)]
            chance["samples"] += _draws(dims, scores, [scores_b[order] for order in orders])
            if len(axes) == len(axes_b):
                _put(out["features"][i], axes, axes_b)
                random = [rng.standard_normal(axes_b.shape) for _ in range(_DRAWS)]
                chance["features"] += _draws(dims, axes, random)
        for name, lines in chance.items():
            if lines:
                out[f"chance_{name}"] = _mean(np.array(lines))
        return out, {}

    arrays, _ = kept(file, make)
    return arrays


def _leading(x: np.ndarray, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Return leading principal scores (N, k) and directions (d, k), less those without variance."""
    found = PCA(n_components=min(dims, x.shape[1], len(x) - 1)).fit(x)
    share = found.explained_variance_
    real = share > max(x.shape) * np.finfo(np.float32).eps * share[0] if share[0] > 0 else share > 0
    scores, axes = np.asarray(found.transform(x))[:, real], found.components_[real].T
    return scores.astype(np.float64), axes.astype(np.float64)


def _put(line: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    theta = principal_angles(a, b).angles
    line[: len(theta)] = theta


def _draws(dims: int, a: np.ndarray, others: Sequence[np.ndarray]) -> list[np.ndarray]:
    lines = np.full((len(others), dims), np.nan)
    for line, other in zip(lines, others, strict=True):
        _put(line, a, other)
    return list(lines)


def _mean(lines: np.ndarray) -> np.ndarray:
    there = np.isfinite(lines)
    total = np.where(there, lines, 0.0).sum(axis=0)
    return np.where(there.any(axis=0), total / np.maximum(there.sum(axis=0), 1), np.nan)
