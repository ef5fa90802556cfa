"""The table of all latents as one safetensors file, which the page carries inside itself."""

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from subspan.report import Entry, visible, write_safetensors
from subspan.sae.cards._collect import HISTOGRAM, PER_OCTAVE, Collected, bin_edge
from subspan.sae.cards._contexts import Contexts
from subspan.sae.cards._effects import Effects, Neighbours

__all__ = ["SCHEMA", "explorer", "write_features"]

SCHEMA = "subspan.sae.features/1"
_BINS = 24  # of the histogram on a card: six octaves below the largest activation
_LONGEST = 60  # characters of a token that the page shows


def write_features(
    path: Path,
    found: Collected,
    effects: Effects | None,
    near: Neighbours,
    words: Callable[[Sequence[int]], list[str]],
) -> None:
    """Write what is known of every latent; ``words`` gives the texts of token ids."""
    texts = list(found.texts)
    arrays = _statistics(found)
    arrays |= _places(found)
    if near.indices.shape[1]:
        arrays["neighbours"] = near.indices.astype(np.int32)
        arrays["neighbour_cosine"] = near.cosine.astype(np.float32)
    if effects is not None:
        number = {text: place for place, text in enumerate(texts)}
        used = np.unique(np.concatenate([effects.promoted.ravel(), effects.suppressed.ravel()]))
        table = np.zeros(int(used.max()) + 1, np.int32)
        for token, word in zip(used.tolist(), words(used.tolist()), strict=True):
            table[token] = number.setdefault(word, len(number))
        texts = list(number)
        arrays["promoted"] = table[effects.promoted]
        arrays["promoted_by"] = effects.promoted_by.astype(np.float32)
        arrays["suppressed"] = table[effects.suppressed]
        arrays["suppressed_by"] = effects.suppressed_by.astype(np.float32)
    about = {
        "schema": SCHEMA,
        "n_tokens": found.metrics.n_rows,
        "n_top": found.top.row.shape[1],
        "before": found.top.before,
        "after": found.top.after,
        "per_octave": PER_OCTAVE,
        "texts": [_shown(text) for text in texts],
    }
    # wide types first, so that every array lies at a multiple of its item size
    names = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    entries = [Entry.of(name, arrays[name]) for name in names]
    write_safetensors(path, entries, {"subspan": json.dumps(about, ensure_ascii=True)})


def explorer(features: Path) -> tuple[str, str, str]:
    """Return markup, style and script of the cards, with a file of features inside."""
    packed = base64.b64encode(zlib.compress(features.read_bytes(), 9)).decode()
    here = files("subspan.sae.cards")
    data = f'<script type="text/plain" id="features-data">{packed}</script>'
    style, script = ((here / f"explorer.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return _FORM + data, style, script


def _shown(text: str) -> str:
    """Return a token with every character visible but spaces, which stay spaces."""
    parts = text[:_LONGEST].split(" ")
    return " ".join(visible(part) for part in parts)


def _statistics(found: Collected) -> dict[str, np.ndarray]:
    metrics, counts = found.metrics, found.histogram
    last = HISTOGRAM - 1 - (counts[:, ::-1] > 0).argmax(axis=1)
    last = np.maximum(last, _BINS - 1)
    bins = last[:, None] + np.arange(1 - _BINS, 1)
    drawn = np.take_along_axis(counts, bins, axis=1).astype(np.float64)
    rows = np.arange(HISTOGRAM) < bins[:, :1]
    drawn[:, 0] += np.where(rows, counts, 0).sum(axis=1)  # what is smaller, in the first bin
    tallest = np.maximum(drawn.max(axis=1, keepdims=True), 1)
    return {
        "fires": np.rint(metrics.density * metrics.n_rows).astype(np.int32),
        "mean_activation": metrics.mean_activation.astype(np.float32),
        "max_activation": metrics.max_activation.astype(np.float32),
        "histogram_top": bin_edge(last + 1).astype(np.float32),
        "histogram": np.ceil(255 * drawn / tallest).astype(np.uint8),
    }


def _places(found: Collected) -> dict[str, np.ndarray]:
    """Return the places of every latent, and the one text from which all of them are cut."""
    both: list[Contexts] = [found.top, found.sample]
    row = np.concatenate([one.row for one in both], axis=1)
    around = np.concatenate([one.around for one in both], axis=1)
    top = found.top
    there = row >= 0
    starts = np.flatnonzero(np.diff(found.window, prepend=-1))
    ends = np.append(starts[1:], len(found.window)) - 1
    of_row = np.searchsorted(starts, np.maximum(row, 0), side="right") - 1
    left = np.minimum(top.before, row - starts[of_row])
    right = np.minimum(top.after, ends[of_row] - row)
    # tokens in any place, by counting where places begin and end
    change = np.zeros(found.n_tokens + 1, np.int64)
    np.add.at(change, (row - left)[there], 1)
    np.add.at(change, (row + right)[there] + 1, -1)
    used = np.cumsum(change[:-1]) > 0
    taken = np.flatnonzero(used)
    gap = np.diff(taken, prepend=-2) > 1  # a break before it, so that no word runs across
    place = np.zeros(found.n_tokens, np.int64)
    place[taken] = np.arange(len(taken)) + np.cumsum(gap)
    stream = np.full(len(taken) + int(gap.sum()), -1, np.int32)
    stream[place[taken]] = found.text_of[taken]
    largest = found.metrics.max_activation[:, None, None]
    shares = np.divide(around, largest, out=np.zeros_like(around), where=largest > 0)
    return {
        "stream": stream,
        "context_place": np.where(there, place[np.maximum(row, 0)], -1).astype(np.int32),
        "context_value": around[:, :, top.before].astype(np.float32),
        "context_span": np.where(there[..., None], np.stack([left, right], -1), 0).astype(np.uint8),
        "context_around": np.ceil(255 * np.clip(shares, 0, 1)).astype(np.uint8),
    }


_FORM = """<form id="feature-form" role="search" autocomplete="off">
<label>Search <input type="search" name="q" placeholder="text, token or number"></label>
<label>in <select name="in"><option value="any">everything</option>
<option value="token">the token that fires</option><option value="context">its context</option>
<option value="promoted">tokens it raises</option></select></label>
<label>sorted by <select name="sort"><option value="density">density</option>
<option value="max">largest activation</option><option value="mean">mean activation</option>
<option value="cosine">cosine of the nearest</option><option value="effect">largest effect</option>
<option value="number">number</option></select></label>
<label><input type="checkbox" name="up"> ascending</label>
<label><input type="checkbox" name="dead"> with silent ones</label>
<output id="feature-count" aria-live="polite">Loading…</output></form>
<noscript><p>The cards are drawn by a script of this page, which is switched off.</p></noscript>
<ol id="feature-cards"></ol><button type="button" id="feature-more" hidden>Show more</button>"""
