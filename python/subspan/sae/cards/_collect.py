"""The one pass over tokens: everything the report says of latents, without a dense code."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from subspan.activations import OutlierRule, TokenBatch
from subspan.sae._adapter import Coder
from subspan.sae._entries import entries
from subspan.sae.cards._contexts import Contexts, uniform
from subspan.sae.metrics import CodeMetrics, CodeStatistics

__all__ = ["HISTOGRAM", "PER_OCTAVE", "Collected", "Context", "bin_edge", "collect"]

# Bins of activations: quarters of octaves from 2^-20 to 2^20, what is outside in the outer ones.
HISTOGRAM = 160
PER_OCTAVE, _LOWEST = 4, -20
_AGAIN = "◌"  # a further token of the character before it


@dataclass(frozen=True)
class Context:
    """How many places to keep of every latent, and how many tokens around them."""

    top: int = 8
    sample: int = 3
    before: int = 14
    after: int = 6
    seed: int = 0


@dataclass
class Tokens:
    """What the report shows of the tokens: 8 bytes for each, and every text once."""

    texts: dict[str, int] = field(default_factory=dict)
    text_of: list[np.ndarray] = field(default_factory=list)
    window: list[np.ndarray] = field(default_factory=list)
    n: int = 0
    n_windows: int = 0

    def add(self, tokens: TokenBatch) -> np.ndarray:
        """Add a batch and return the number of the window of each token."""
        texts, shared = self.texts, tokens.shared.tolist()
        shown = (piece[n:] or _AGAIN for piece, n in zip(tokens.pieces, shared, strict=True))
        numbers = [texts.setdefault(piece, len(texts)) for piece in shown]
        self.text_of.append(np.array(numbers, np.int32))
        windows = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths) + self.n_windows
        self.window.append(windows.astype(np.int32))
        self.n += len(numbers)
        self.n_windows += len(tokens.lengths)
        return windows


@dataclass
class Collected:
    """What the pass found."""

    metrics: CodeMetrics
    top: Contexts
    sample: Contexts
    histogram: np.ndarray
    """(n, HISTOGRAM) int32: activations of each latent by their size."""
    l0: np.ndarray
    """How many tokens have 0, 1, ... latents."""
    position_edges: np.ndarray
    explained_by_position: np.ndarray
    """Explained variance of the tokens between two edges; NaN where there are none."""
    texts: list[str]
    text_of: np.ndarray
    window: np.ndarray
    n_tokens: int
    n_excluded: int


def collect(
    coder: Coder,
    blocks: Iterator[tuple[np.ndarray, TokenBatch]],
    *,
    rule: OutlierRule | None,
    context: Context,
    progress: Callable[[int], None],
) -> Collected:
    """Encode blocks of rows ``(x (tokens, d), their tokens)`` and keep what the page shows.

    Every block holds whole windows. Memory: the contexts, 640 bytes for each latent, 8 bytes for
    each token, and one block with its code.
    """
    n = int(coder.sae.n_latents)
    stats = CodeStatistics(n)
    top = Contexts(n, context.top, context.before, context.after)
    sample = Contexts(n, context.sample, context.before, context.after)
    histogram = np.zeros((n, HISTOGRAM), np.int32)
    l0 = np.zeros(1, np.int64)
    by_position = _ByPosition()
    tokens = Tokens()
    reference: float | None = None
    n_excluded = 0
    for rows, batch in blocks:
        offset = tokens.n
        windows = tokens.add(batch)
        kept = np.arange(len(rows))
        if rule is not None:
            norms = np.linalg.norm(rows, axis=1)
            first = batch.first_in_window
            if reference is None:
                reference = rule.reference(norms, first)
            kept = np.flatnonzero(rule.classify(norms, first, reference).ordinary)
        x = rows[kept]
        n_excluded += len(batch) - len(kept)
        if len(kept):
            code = coder.encode(x)
            x_hat = coder.decode(x, code)
            stats.update(x, code, x_hat)
            by_position.update(x, x_hat, batch.window_position[kept])
            found = entries("report", code, n)
            counts = np.bincount(np.bincount(found.rows, minlength=len(x)))
            l0 = _longer(l0, len(counts))
            l0[: len(counts)] += counts
            found = found._replace(rows=kept[found.rows])  # from here on numbers of tokens
            np.add.at(histogram, (found.latents, _bins(found.values)), 1)
            top.update(found, found.values.astype(np.float32), windows, offset)
            draws = uniform(found.rows + offset, found.latents, context.seed)
            sample.update(found, draws, windows, offset)
        progress(tokens.n)
    edges, explained = by_position.result()
    return Collected(
        metrics=stats.results(),
        top=top,
        sample=sample,
        histogram=histogram,
        l0=l0,
        position_edges=edges,
        explained_by_position=explained,
        texts=list(tokens.texts),
        text_of=np.concatenate(tokens.text_of),
        window=np.concatenate(tokens.window),
        n_tokens=tokens.n,
        n_excluded=n_excluded,
    )


def _longer(counts: np.ndarray, length: int) -> np.ndarray:
    return np.pad(counts, (0, max(0, length - len(counts))))


def _bins(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        places = np.floor(np.log2(np.abs(values)) * PER_OCTAVE) - _LOWEST * PER_OCTAVE
    return np.asarray(np.clip(places, 0, HISTOGRAM - 1).astype(np.int64))


def bin_edge(place: np.ndarray) -> np.ndarray:
    """Return the lower edge of bins of the histogram."""
    return np.asarray(2.0 ** (place / PER_OCTAVE + _LOWEST))


def _position_edges(last: int) -> np.ndarray:
    """Return 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ... beyond ``last``: two groups for each octave."""
    edges = [0, 1, 2, 3, 4]
    while edges[-1] <= last:
        edges.append(edges[-1] * 3 // 2 if edges[-1] & (edges[-1] - 1) == 0 else edges[-1] * 4 // 3)
    return np.array(edges)


class _ByPosition:
    """Sums for the explained variance of groups of positions, about the mean of all rows.

    Squares are taken about the mean of the first block and moved at the end, so that a mean far
    from zero costs no digits.
    """

    def __init__(self) -> None:
        self._edges = _position_edges(1 << 40)
        groups = len(self._edges) - 1
        self._n, self._error, self._spread = np.zeros((3, groups))
        self._shift: Any = None
        self._sum = np.zeros((groups, 1))

    def update(self, x: np.ndarray, x_hat: np.ndarray, position: np.ndarray) -> None:
        x, x_hat = x.astype(np.float64), x_hat.astype(np.float64)
        if self._shift is None:
            self._shift = x.mean(axis=0)
            self._sum = np.zeros((len(self._n), x.shape[1]))
        group = np.searchsorted(self._edges, position, side="right") - 1
        moved, error = x - self._shift, x - x_hat
        groups = len(self._n)
        self._n += np.bincount(group, minlength=groups)
        self._error += np.bincount(group, np.einsum("ij,ij->i", error, error), groups)
        self._spread += np.bincount(group, np.einsum("ij,ij->i", moved, moved), groups)
        np.add.at(self._sum, group, moved)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self._sum.sum(axis=0) / max(self._n.sum(), 1)
        spread = self._spread - 2 * self._sum @ mean + self._n * (mean @ mean)
        used = int(np.flatnonzero(self._n)[-1]) + 1 if self._n.any() else 0
        with np.errstate(divide="ignore", invalid="ignore"):
            explained = np.where(spread > 0, 1 - self._error / spread, np.nan)[:used]
        return self._edges[: used + 1], explained
