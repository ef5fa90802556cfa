"""From states and weights to plain numbers: the rows of the report."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

import subspan
from subspan import spectrum
from subspan.activations import Site
from subspan.atlas._state import SiteState

__all__ = ["matrix_type", "norm_counts", "site_rows", "weight_rows"]

_CHUNK = 64 << 20  # bytes of matrices handed to one batched call
_TALL = 16  # a matrix this many times longer than wide goes through its Gram matrix


def site_rows(states: Mapping[str, SiteState], names: Mapping[str, Site]) -> list[dict[str, Any]]:
    """Return one dictionary per site: norms, outliers, and the spectrum with and without them."""
    rows = {key: _site_row(key, names[key], state) for key, state in states.items()}

    def views() -> Iterator[tuple[dict[str, Any], str, Any]]:
        for key, state in states.items():
            yield rows[key], "all", state.everything()
            if state.outliers is None:
                continue  # the two views are one; copied below instead of computed twice
            yield rows[key], "without_outliers", state.inliers

    for members, values in _eigenvalues(views()):
        for (row, view, moments), line in zip(members, values, strict=True):
            row[view] = {"n_tokens": int(moments.count), **_describe(line, "variance")}
    for key, state in states.items():
        if state.outliers is None:
            rows[key]["without_outliers"] = dict(rows[key]["all"])
    return list(rows.values())


def _site_row(key: str, name: Site, state: SiteState) -> dict[str, Any]:
    norms = np.concatenate(state.norms)
    used = state.everything()
    outlier_norms = norms[np.concatenate(state.tokens)] if state.tokens else norms[:0]
    median = float(np.median(norms))
    return {
        "key": key,
        "layer": name.layer if name.layer >= 0 else None,
        "kind": name.kind,
        "head": name.head,
        "width": int(used.n_features),
        "norm_median": median,
        "norm_max": float(norms.max()),
        "norm_reference": float(state.reference or 0.0),
        "max_ratio": float(norms.max() / median) if median > 0 else None,
        "n_outliers": len(outlier_norms),
        "all": None,
        "without_outliers": None,
    }


_View = tuple[dict[str, Any], str, Any]


def _eigenvalues(views: Iterable[_View]) -> Iterator[tuple[list[_View], np.ndarray]]:
    """Batch covariances of equal width, so that the native solver works on many at once."""
    waiting: dict[int, list[_View]] = {}

    def solve(members: list[_View]) -> tuple[list[_View], np.ndarray]:
        # covariance of one token is undefined: its spectrum is left out, not invented
        stack = np.stack([moments.covariance(ddof=1) for _, _, moments in members])
        return members, np.maximum(np.asarray(subspan.eigvalsh(stack))[:, ::-1], 0.0)

    for view in views:
        moments = view[2]
        if moments is None or moments.count < 2:
            continue
        group = waiting.setdefault(int(moments.n_features), [])
        group.append(view)
        if len(group) * moments.n_features**2 * 8 >= _CHUNK:
            yield solve(group)
            group.clear()
    for group in waiting.values():
        if group:
            yield solve(group)


def _describe(values: np.ndarray, kind: Literal["singular", "variance"]) -> dict[str, Any]:
    """Return the numbers of one spectrum (descending), plain and JSON-able."""
    stats = spectrum.stats(values, kind=kind)
    shares = values**2 if kind == "singular" else values
    total = float(shares.sum())
    return {
        "effective_rank": plain(stats.effective_rank_variance),
        "effective_rank_singular": plain(stats.effective_rank),
        "participation_ratio": plain(stats.participation_ratio),
        "stable_rank": plain(stats.stable_rank),
        "dim_90": whole(stats.dim_90),
        "dim_99": whole(stats.dim_99),
        "top_share": plain(stats.top_share),
        "total": total,
        "spectrum": [float(f"{value:.6g}") for value in values],
    }


def plain(value: Any) -> float | None:
    """Return a float, or None where the number is not finite (JSON has no NaN)."""
    number = float(value)
    return number if np.isfinite(number) else None


def whole(value: Any) -> int | None:
    """Return an int, or None where the number is not finite."""
    number = plain(value)
    return None if number is None else int(number)


def norm_counts(state: SiteState, edges: np.ndarray) -> np.ndarray:
    """Count tokens by norm over the median norm of the site, in bins ``edges``."""
    norms = np.concatenate(state.norms).astype(np.float64)
    median = np.median(norms)
    ratio = norms / median if median > 0 else np.ones_like(norms)
    return np.histogram(np.clip(ratio, edges[0], np.nextafter(edges[-1], 0)), edges)[0]


def matrix_type(name: str) -> tuple[int | None, str]:
    """Split a weight's name into its layer and what is left, e.g. ``(3, "self_attn.q_proj")``.

    Examples
    --------
    >>> matrix_type("model.layers.3.self_attn.q_proj.weight")
    (3, 'self_attn.q_proj')
    >>> matrix_type("model.embed_tokens.weight")
    (None, 'model.embed_tokens')
    """
    parts = name.removesuffix(".weight").split(".")
    for place, part in enumerate(parts):
        if part.isdigit():
            return int(part), ".".join(parts[place + 1 :]) or name
    return None, ".".join(parts)


def weight_rows(
    weights: Iterable[tuple[str, np.ndarray]],
    *,
    factor: float,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Return one dictionary per weight matrix; a matrix has no tokens, an embedding has.

    Singular values of equal shapes are computed in batches. Matrices far longer than wide (the
    embedding) go through the float64 second moment of their rows, whose eigenvalues are the
    squared singular values over the number of rows; their rows belong to tokens, so they are
    also described without the rows whose norm exceeds ``factor`` times the median.
    """
    rows: list[dict[str, Any]] = []
    waiting: dict[tuple[int, ...], list[tuple[dict[str, Any], np.ndarray]]] = {}

    def solve(group: list[tuple[dict[str, Any], np.ndarray]]) -> None:
        values = np.asarray(subspan.svdvals(np.stack([matrix for _, matrix in group])))
        for (row, _), line in zip(group, values, strict=True):
            row["all"] = _describe(line.astype(np.float64), "singular")
        group.clear()

    for name, matrix in weights:
        layer, kind = matrix_type(name)
        row: dict[str, Any] = {"name": name, "layer": layer, "type": kind}
        row |= {"shape": list(matrix.shape), "all": None, "without_outliers": None}
        rows.append(row)
        if progress is not None:
            progress(name)
        if matrix.shape[0] >= _TALL * matrix.shape[1]:
            row |= _tall(matrix, factor)
            continue
        group = waiting.setdefault(matrix.shape, [])
        group.append((row, matrix))
        if len(group) * matrix.nbytes >= _CHUNK:
            solve(group)
    for group in waiting.values():
        if group:
            solve(group)
    return rows


def _tall(matrix: np.ndarray, factor: float) -> dict[str, Any]:
    norms = np.linalg.norm(matrix, axis=1)
    loud = norms > factor * np.median(norms)

    def describe(part: np.ndarray) -> dict[str, Any]:
        gram = subspan.Moments(precision="float64").update(part).second_moment() * len(part)
        values = np.maximum(np.asarray(subspan.eigvalsh(gram))[::-1], 0.0)
        return _describe(np.sqrt(values), "singular")

    return {
        "all": describe(matrix),
        "without_outliers": describe(matrix[~loud]) if loud.any() else None,
        "n_outliers": int(loud.sum()),
    }
