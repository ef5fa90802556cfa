"""The one pass over the source: states grow batch by batch and are saved as they go."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subspan.activations import OutlierRule, Site
from subspan.activations.sources import Source
from subspan.atlas._state import SiteState, read_states, write_states
from subspan.report import Stopwatch
from subspan.report.result import Progress

__all__ = ["collect"]


def collect(
    source: Source,
    rule: OutlierRule,
    checkpoint: Path,
    *,
    every: float,
    watch: Stopwatch,
    progress: Progress,
) -> dict[Site, SiteState]:
    """Read the source and return the state of every site.

    A checkpoint is written at batch borders, once ``every`` seconds have passed, and when the pass
    is over. A run that continues from one does the same additions in the same order as a run that
    was never stopped, so both give the same bits.

    Memory: per site two float64 ``d x d`` moments (one while it has no outliers), 4 bytes per
    token, and the arrays of one batch.
    """
    states = {site: SiteState() for site in source.sites}
    batch_number = offset = 0
    if checkpoint.exists():
        saved, notes = read_states(checkpoint)
        states = {site: saved[site.key] for site in source.sites}
        batch_number, offset = int(notes["next_batch"]), int(notes["next_token"])
    progress("tokens", offset, source.n_tokens)
    last_save = time.monotonic()
    batches = source.batches(batch_number)
    while batch_number < source.n_batches:
        with watch.part("model" if source.kind == "model" else "reading"):
            batch = next(batches)
            tokens = batch.tokens
            first = np.zeros(batch.n_rows, bool) if tokens is None else tokens.first_in_window
        with watch.part("moments"):
            for site, state in states.items():
                state.update(batch.arrays[site], first, offset, rule, site.key)
        offset += len(first)
        batch_number = batch.index + 1
        del batch, tokens
        if time.monotonic() - last_save >= every and batch_number < source.n_batches:
            with watch.part("checkpoints"):
                _save(checkpoint, states, batch_number, offset)
            last_save = time.monotonic()
        # after the checkpoint: a caller that stops the run here loses nothing that was saved
        progress("tokens", offset, source.n_tokens)
    with watch.part("checkpoints"):
        _save(checkpoint, states, batch_number, offset)
    return states


def _save(path: Path, states: Mapping[Site, SiteState], next_batch: int, next_token: int) -> None:
    notes: dict[str, Any] = {"next_batch": next_batch, "next_token": next_token}
    write_states(path, {site.key: state for site, state in states.items()}, notes)
