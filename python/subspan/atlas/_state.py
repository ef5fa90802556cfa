"""What an atlas keeps per site while it reads, and the file that holds it.

Inliers and outliers are two moments that are never mixed; their merge is "all tokens". So one
pass over the model serves both views, and a reader of the file can choose either.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import subspan
from subspan.errors import FileFormatError, InvalidArgumentError, UnsupportedError
from subspan.report import Entry, write_safetensors

__all__ = ["MOMENTS_SCHEMA", "SiteState", "load_moments", "read_states", "write_states"]

MOMENTS_SCHEMA = "subspan.atlas.moments/1"
_PACKED = ".upper"  # a symmetric (d, d) tensor stored as its upper triangle, row by row


@dataclass
class SiteState:
    """Everything one site adds up to so far.

    Attributes
    ----------
    inliers, outliers
        Moments of the two groups of tokens; ``None`` until the group has a token.
    reference
        Median token norm of the first batch. The rule compares with this one number throughout,
        so the split does not depend on how the tokens were batched later, nor on a restart.
    norms
        Norm of every token, float32, one array per batch.
    tokens, dims, peaks
        For each outlier: its number in the run, the dimension of its largest entry, that entry.
    """

    inliers: Any = None
    outliers: Any = None
    reference: float | None = None
    norms: list[np.ndarray] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    dims: list[np.ndarray] = field(default_factory=list)
    peaks: list[np.ndarray] = field(default_factory=list)

    def update(self, x: np.ndarray, first: np.ndarray, offset: int, rule: Any, name: str) -> None:
        """Add one batch.

        Parameters
        ----------
        x
            ``(n, d)`` activations of this site.
        first
            ``(n,)`` booleans: the first token of its window.
        offset
            Number of the batch's first token in the run.
        rule
            The ``OutlierRule``.
        name
            The site, for messages.
        """
        if x.dtype not in (np.float32, np.float64):
            x = x.astype(np.float32)
        norms = np.linalg.norm(x, axis=1)
        if not np.isfinite(norms).all():
            row = int(np.flatnonzero(~np.isfinite(norms))[0])
            raise InvalidArgumentError(
                f"[atlas] activations must be finite, got NaN or infinity at site {name}, token "
                f"{offset + row}"
            )
        if self.reference is None:
            self.reference = rule.reference(norms, first)
        classes = rule.classify(norms, first, self.reference)
        self.norms.append(norms.astype(np.float32))
        if classes.ordinary.all():  # the usual case, without a copy
            self.inliers = _add(self.inliers, x)
            return
        self.inliers = _add(self.inliers, x[classes.ordinary])
        rows = np.flatnonzero(classes.outlier)
        if len(rows):
            loud = x[rows]
            self.outliers = _add(self.outliers, loud)
            dims = np.abs(loud).argmax(axis=1)
            self.tokens.append(rows + offset)
            self.dims.append(dims.astype(np.int32))
            self.peaks.append(loud[np.arange(len(rows)), dims].astype(np.float32))

    def everything(self) -> Any:
        """Return the moments of all tokens: the merge of both groups."""
        groups = [group for group in (self.inliers, self.outliers) if group is not None]
        if not groups:
            return None
        total = groups[0].copy()
        return total.merge(groups[1]) if len(groups) == 2 else total


def _add(moments: Any, x: np.ndarray) -> Any:
    if not len(x):
        return moments
    return (subspan.Moments() if moments is None else moments).update(x)


def write_states(
    path: Path, states: Mapping[str, SiteState], notes: Mapping[str, Any] | None = None
) -> None:
    """Write all states to one safetensors file, atomically.

    Tensors of site ``s``: ``s/inliers/<part>`` and ``s/outliers/<part>`` with the parts of
    ``Moments.state_dict()`` (a symmetric matrix ``m2`` as ``m2.upper``, its upper triangle row by
    row), ``s/norms``, and ``s/outlier.tokens``, ``s/outlier.dims``, ``s/outlier.peaks``.
    """
    entries: list[Entry] = []
    for key, state in states.items():
        for group in ("inliers", "outliers"):
            moments = getattr(state, group)
            if moments is not None:
                entries += _moment_entries(f"{key}/{group}", moments)
        entries.append(Entry.of(f"{key}/norms", _joined(state.norms, np.float32)))
        entries.append(Entry.of(f"{key}/outlier.tokens", _joined(state.tokens, np.int64)))
        entries.append(Entry.of(f"{key}/outlier.dims", _joined(state.dims, np.int32)))
        entries.append(Entry.of(f"{key}/outlier.peaks", _joined(state.peaks, np.float32)))
    about = {
        "schema": MOMENTS_SCHEMA,
        "references": {key: state.reference for key, state in states.items()},
        **(notes or {}),
    }
    write_safetensors(path, entries, {"subspan": json.dumps(about)})


def _moment_entries(prefix: str, moments: Any) -> Iterable[Entry]:
    for name, value in moments.state_dict().items():
        array = np.asarray(value)
        size = array.shape[0] if array.ndim == 2 else 0
        # packed only where nothing is lost: the triangle must be the exact mirror of the other
        if size > 1 and array.shape == (size, size) and np.array_equal(array, array.T):
            make = partial(_upper, moments, name)
            shape = (size * (size + 1) // 2,)
            yield Entry(f"{prefix}/{name}{_PACKED}", shape, array.dtype, make)
        else:
            yield Entry.of(f"{prefix}/{name}", array)


def _upper(moments: Any, name: str) -> np.ndarray:
    # asked again when its turn comes, so that only one triangle is in memory at a time
    square = np.asarray(moments.state_dict()[name])
    return square[np.triu_indices(len(square))]


def _joined(parts: list[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def read_states(path: str | os.PathLike[str]) -> tuple[dict[str, SiteState], dict[str, Any]]:
    """Read what :func:`write_states` wrote; returns the states and the notes."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UnsupportedError(
            "[load_moments] needs the package 'safetensors', which is not installed. "
            "Install it with: pip install 'subspan[report]'"
        ) from error
    try:
        with safe_open(os.fspath(path), "numpy") as file:
            about = json.loads((file.metadata() or {}).get("subspan", "{}"))
            if about.get("schema") != MOMENTS_SCHEMA:
                raise FileFormatError(
                    f"[load_moments] path must be a moments file of an atlas ({MOMENTS_SCHEMA}), "
                    f"got {os.fspath(path)!r}"
                )
            parts: dict[str, dict[str, np.ndarray]] = {}
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                key, group, part = _split_name(name)
                parts.setdefault(f"{key}\n{group}", {})[part] = file.get_tensor(name)
    except SafetensorError as error:
        raise FileFormatError(
            f"[load_moments] path must be a whole safetensors file, got {os.fspath(path)!r} "
            f"({error})"
        ) from error
    states: dict[str, SiteState] = {}
    for key, reference in about["references"].items():
        rest = parts[f"{key}\n"]
        states[key] = SiteState(
            inliers=_moments(parts.get(f"{key}\ninliers")),
            outliers=_moments(parts.get(f"{key}\noutliers")),
            reference=reference,
            norms=[rest["norms"]],
            tokens=[rest["outlier.tokens"]],
            dims=[rest["outlier.dims"]],
            peaks=[rest["outlier.peaks"]],
        )
    return states, about


def _split_name(name: str) -> tuple[str, str, str]:
    head, part = name.rsplit("/", 1)
    key, _, group = head.rpartition("/")
    return (key, group, part) if group in ("inliers", "outliers") else (head, "", part)


def _moments(parts: Mapping[str, np.ndarray] | None) -> Any:
    if parts is None:
        return None
    whole: dict[str, np.ndarray] = {}
    for name, value in parts.items():
        if name.endswith(_PACKED):
            size = int((np.sqrt(8 * len(value) + 1) - 1) / 2)
            square = np.empty((size, size), value.dtype)
            rows, columns = np.triu_indices(size)
            square[rows, columns] = square[columns, rows] = value
            whole[name.removesuffix(_PACKED)] = square
        else:
            whole[name] = value
    return subspan.Moments.from_state_dict(whole)


def load_moments(path: str | os.PathLike[str], *, tokens: str = "all") -> dict[str, Any]:
    """Read the moments of an atlas, one per site.

    Parameters
    ----------
    path
        ``moments.safetensors`` of an atlas, or the folder that holds it.
    tokens : {"all", "inliers", "outliers"}
        Which tokens: all of them, those without outliers, or the outliers alone (sites without
        any are then left out).

    Returns
    -------
    dict[str, Moments]
        ``{site key: Moments}``, e.g. ``"layer.03/resid"``.

    Raises
    ------
    FileFormatError
        The file is truncated or is not a moments file.
    """
    if tokens not in ("all", "inliers", "outliers"):
        raise InvalidArgumentError(
            f"[load_moments] tokens must be 'all', 'inliers' or 'outliers', got {tokens!r}"
        )
    place = Path(path)
    states, _ = read_states(place / "moments.safetensors" if place.is_dir() else place)
    chosen = {
        key: state.everything() if tokens == "all" else getattr(state, tokens)
        for key, state in states.items()
    }
    return {key: moments for key, moments in chosen.items() if moments is not None}
