"""The samples of one side, site by site: ordinary tokens and outliers are never mixed.

A sample is a token (or a saved row), or the mean over the tokens of a line. So one pass over a
model serves the view without outlier tokens and the view of everything.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subspan.activations import ActivationBatch, OutlierRule
from subspan.comparison._sides import Side
from subspan.errors import InvalidArgumentError
from subspan.report import Entry, Stopwatch, write_safetensors
from subspan.report.result import Progress

__all__ = ["Rows", "collect", "read_arrays", "write_arrays"]

_REFERENCES = "references"


class Rows:
    """What one side adds up to: per site the sums of ordinary and of outlying tokens.

    Attributes
    ----------
    keys : list of str
        Sites.
    count, loud_count : ndarray of int64, shape (n,)
        Ordinary tokens and outlier tokens of each sample.
    references : dict of str to float
        Median token norm of the first batch at each site.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.count = np.zeros(n, np.int64)
        self.loud_count = np.zeros(n, np.int64)
        self.references: dict[str, float] = {}
        self._sums: dict[str, np.ndarray] = {}
        self._loud: dict[str, np.ndarray] = {}

    @property
    def keys(self) -> list[str]:
        """Sites, in order."""
        return list(self._sums)

    def width(self, key: str) -> int:
        """Return the columns of a site."""
        return int(self._sums[key].shape[1])

    def update(self, arrays: Mapping[str, np.ndarray], sample: np.ndarray, rule: OutlierRule,
               label: str) -> None:  # fmt: skip
        """Add tokens: (m, d) at each site, and the sample that each belongs to, ascending."""
        loud = np.zeros(len(sample), bool)
        for key, x in arrays.items():
            norms = np.linalg.norm(x, axis=1)
            if not np.isfinite(norms).all():
                row = int(np.flatnonzero(~np.isfinite(norms))[0])
                raise InvalidArgumentError(
                    "[compare_models] activations must be finite, got NaN or infinity at site "
                    f"{key} of {label}, sample {sample[row]}"
                )
            if key not in self.references:
                self.references[key] = rule.reference(norms)
            loud |= rule.classify(norms, median=self.references[key]).outlier
        np.add.at(self.count, sample[~loud], 1)
        np.add.at(self.loud_count, sample[loud], 1)
        for key, x in arrays.items():
            for store, rows in ((self._sums, ~loud), (self._loud, loud)):
                if key not in store:
                    store[key] = np.zeros((self.n, x.shape[1]), x.dtype)
                if rows.any():
                    _add(store[key], sample[rows], x[rows])

    def view(self, key: str, keep: np.ndarray, *, everything: bool) -> np.ndarray:
        """Return the samples ``keep`` of a site, (m, d): without outlier tokens, or with them."""
        total, count = self._sums[key][keep], self.count[keep]
        if everything:
            total, count = total + self._loud[key][keep], count + self.loud_count[keep]
        mean: np.ndarray = (
            total if (count == 1).all() else total / count[:, None].astype(total.dtype)
        )
        return mean

    def state(self, **notes: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and notes for a file."""
        arrays = {f"sums/{key}": value for key, value in self._sums.items()}
        arrays |= {f"loud/{key}": value for key, value in self._loud.items() if value.any()}
        arrays |= {"count": self.count, "loud_count": self.loud_count}
        return arrays, {_REFERENCES: self.references, **notes}

    @classmethod
    def from_state(cls, arrays: dict[str, np.ndarray], notes: Mapping[str, Any]) -> "Rows":
        """Return what `state` gave."""
        made = cls(len(arrays["count"]))
        made.count, made.loud_count = arrays["count"], arrays["loud_count"]
        made.references = dict(notes[_REFERENCES])
        made._sums = {key: arrays[f"sums/{key}"] for key in made.references}
        for key, value in made._sums.items():
            loud = arrays.get(f"loud/{key}")
            made._loud[key] = np.zeros_like(value) if loud is None else loud
        return made


def _add(out: np.ndarray, sample: np.ndarray, x: np.ndarray) -> None:
    starts = np.flatnonzero(np.r_[True, sample[1:] != sample[:-1]])
    out[sample[starts]] += x if len(starts) == len(x) else np.add.reduceat(x, starts, axis=0)


def collect(
    side: Side,
    n: int,
    unit: str,
    rule: OutlierRule,
    checkpoint: Path,
    *,
    every: float,
    watch: Stopwatch,
    progress: Progress,
) -> Rows:
    """Read one side; a checkpoint at batch borders, every so many seconds and at the end.

    A run that continues does the same additions in the same order as one that was never stopped.
    """
    source, stage = side.source, f"samples of {side.label}"
    rows, number, read = Rows(n), 0, 0
    if checkpoint.exists():
        arrays, notes = read_arrays(checkpoint)
        rows = Rows.from_state(arrays, notes)
        number, read = int(notes["next_batch"]), int(notes["next_token"])
    progress(stage, read, source.n_tokens)
    if number == source.n_batches:
        return rows
    last_save = time.monotonic()
    batches = source.batches(number)
    while number < source.n_batches:
        with watch.part("reading"):
            batch = next(batches)
            keep, sample = _samples(batch, unit, read)
            arrays = {site.key: _kept(batch.arrays[site], keep) for site in source.sites}
            rows.update(arrays, sample, rule, side.label)
        read += batch.n_rows
        number = batch.index + 1
        if time.monotonic() - last_save >= every and number < source.n_batches:
            _save(checkpoint, rows, number, read, watch)
            last_save = time.monotonic()
        # after the checkpoint: a caller that stops the run here loses nothing that was saved
        progress(stage, read, source.n_tokens)
    _save(checkpoint, rows, number, read, watch)
    return rows


def _samples(batch: ActivationBatch, unit: str, read: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows of the batch count, and the sample of each that does."""
    if unit == "line":
        assert batch.tokens is not None
        keep = ~batch.tokens.special
        return keep, batch.tokens.document[keep]
    return np.ones(batch.n_rows, bool), np.arange(read, read + batch.n_rows)


def _kept(x: np.ndarray, keep: np.ndarray) -> np.ndarray:
    return x if keep.all() else x[keep]


def _save(path: Path, rows: Rows, next_batch: int, next_token: int, watch: Stopwatch) -> None:
    with watch.part("checkpoints"):
        write_arrays(path, *rows.state(next_batch=next_batch, next_token=next_token))


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> None:
    """Write arrays and JSON-able notes to one file, whole or not at all."""
    entries = [Entry.of(name, array) for name, array in arrays.items()]
    write_safetensors(path, entries, {"subspan": json.dumps(dict(notes))})


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_arrays` wrote."""
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        notes = json.loads((file.metadata() or {})["subspan"])
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, notes
