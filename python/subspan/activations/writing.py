"""Write an activation store: shard after shard, each whole or not at all, from where it stopped."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan._checks import choice, integer, real
from subspan.activations._batches import ActivationBatch
from subspan.activations._site import Site
from subspan.activations._store_index import (
    DTYPES,
    INDEX,
    SHARDS,
    TOKENS,
    Index,
    Shard,
    TokenPart,
    digest_of,
    notes_of,
    shard_name,
    store_id,
)
from subspan.activations.batches import row_norms
from subspan.activations.saved import open_saved
from subspan.activations.sources import ModelSource, SavedSource, Source, is_saved, set_threads
from subspan.activations.store import ActivationStore
from subspan.activations.tokens import TokenStream
from subspan.errors import InvalidArgumentError
from subspan.report import Entry, RunFolder, write_safetensors

__all__ = ["write_activations"]

_FUNCTION = "write_activations"
_OTHER = "Use another dtype (bfloat16, float32) in a new folder"
Progress = Callable[[str, int, int], object]


def write_activations(
    source: Any,
    texts: Any,
    out: str | os.PathLike[str],
    *,
    sites: Iterable[str | Site] | None = None,
    layers: Iterable[int] | None = None,
    tokens: int | str | None = None,
    window: int | None = None,
    batch_size: int = 4,
    dtype: str = "float16",
    shard_mb: float = 128,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ActivationStore:
    """Run a model over texts and keep the activations in a folder, an `ActivationStore`.

    Shards appear whole or not at all. A run that was stopped, by whatever, goes on after the last
    whole shard when it is called again with the same arguments, and leaves the same files as a run
    that was not.

    Parameters
    ----------
    source : str, Path, Model, or SavedActivations
        A model (Hugging Face folder, GGUF file, loaded model), or saved activations (``.npy``,
        ``.safetensors``, a folder of them), which are copied into a store.
    texts : str, Path, iterable of them, TokenStream, or None
        A str is a text, a Path a UTF-8 file, as in `tokenize`; None for saved activations. A stream
        has its own window, batch size and number of tokens.
    out : str or Path
        The folder of the store: new, empty, or with an interrupted run.
    sites : iterable of kind, Site, site key or module pattern, optional
        As in `find_sites`; by default "resid" (saved activations: all).
    layers : iterable of int, optional
        Only these layers.
    tokens : int or "all", optional
        Tokens to read; by default all.
    window : int, optional
        Tokens in a window; by default 512, or the context of the model if that is shorter.
    batch_size : int, default 4
        Windows that go through the model together.
    dtype : {"float16", "bfloat16", "float32"}, default "float16"
        How values are stored. float16 rounds to 11 bits and is refused for values above 65504;
        bfloat16 rounds to 8 bits and has the range of float32.
    shard_mb : float, default 128
        Size of a shard in megabytes, all sites together; a shard is at least one batch of the
        model. It is also the memory that writing takes, and what an interruption can cost.
    threads : int, optional
        Threads to use.
    resume : bool, default False
        Insist on an interrupted run; without it one is continued if there is one.
    overwrite : bool, default False
        Replace the store that lies in ``out``, once the new one is complete.
    progress : callable, optional
        Called as ``progress("activations", done, total)`` in tokens.

    Returns
    -------
    ActivationStore
        The finished store, opened.

    Raises
    ------
    InvalidArgumentError
        An activation is not finite or does not fit in ``dtype``; an argument is out of range.
    OutputError
        ``out`` holds something else, a finished store, or a run with other settings; another run
        is writing there; the disk is full. Finished shards stay.
    """
    choice(_FUNCTION, "dtype", dtype, DTYPES)
    real(_FUNCTION, "shard_mb", shard_mb, low=1e-6)
    folder = RunFolder(out, kind=_FUNCTION, main=INDEX, results=(TOKENS, SHARDS))
    folder.check(resume=resume, overwrite=overwrite)
    saved = is_saved(_FUNCTION, "source", source)
    if threads is not None:
        set_threads(_FUNCTION, threads, model=not saved)
    job = _source(
        source,
        texts,
        saved=saved,
        sites=sites,
        layers=layers,
        tokens=tokens,
        window=window,
        batch_size=batch_size,
    )
    facts = job.facts()
    identity = {
        **{name: facts[name] for name in ("kind", "name", "hash", "text_hash", "n_tokens")},
        "sites": [site.key for site in job.sites],
        "batch_tokens": int(job.batch_tokens.max()),
        "dtype": dtype,
        "shard_mb": float(shard_mb),
    }
    with folder.held(identity, overwrite=overwrite):
        writer = _Writer(folder.stage, job, identity, shard_bytes=shard_mb * 1e6, progress=progress)
        if not _is_published(folder, identity):
            if not (folder.stage / INDEX).exists():  # else it was stopped among its last moves
                writer.run()
            _drop_old(folder.path, len(Index.read(folder.stage / INDEX).shards))
        folder.publish()
    return ActivationStore(folder.path)


def _source(
    source: Any,
    texts: Any,
    *,
    saved: bool,
    sites: Iterable[str | Site] | None,
    layers: Iterable[int] | None,
    tokens: int | str | None,
    window: int | None,
    batch_size: int,
) -> Source:
    count = None
    if tokens is not None and tokens != "all":
        count = integer(_FUNCTION, "tokens", tokens, low=1)
    if saved:
        if texts is not None:
            raise InvalidArgumentError(
                f"[{_FUNCTION}] texts must be None for saved activations, got "
                f"{type(texts).__name__}. Name a model to run over texts"
            )
        return SavedSource(source, function=_FUNCTION, tokens=count, sites=sites, layers=layers)
    if texts is None:
        raise InvalidArgumentError(
            f"[{_FUNCTION}] texts must be given for a model, got none. Pass texts or text files"
        )
    if isinstance(texts, TokenStream) and (count is not None or window is not None):
        raise InvalidArgumentError(
            f"[{_FUNCTION}] tokens and window must be left out for a TokenStream, got one with them"
        )
    return ModelSource(
        source,
        texts,
        tokens=count,
        window=window,
        batch_size=batch_size,
        sites=("resid",) if sites is None else sites,
        layers=layers,
    )


class _Writer:
    """Fills the stage: shards with their tokens, and the index at the end."""

    def __init__(
        self,
        stage: Path,
        job: Source,
        identity: dict[str, Any],
        *,
        shard_bytes: float,
        progress: Progress | None,
    ) -> None:
        self._stage, self._job, self._identity = stage, job, identity
        self._dtype = str(identity["dtype"])
        self._shard_bytes, self._progress = shard_bytes, progress
        self._widths: dict[Site, int] = {}

    def run(self) -> None:
        """Write what is not there yet."""
        for rest in self._stage.rglob("*.partial"):  # of a run that was killed while it wrote
            rest.unlink()
        done = self._finished()
        batches: Iterator[ActivationBatch]
        if not done:  # the widths are known once a batch has been seen
            batches = self._job.batches(0)
            head = next(batches)
            self._widths = {
                site: int(head.arrays[site].shape[1])
                for site in sorted(head.arrays, key=Site.order)
            }
            batches = itertools.chain([head], batches)
        plan = self._plan()
        if done:
            batches = self._job.batches(plan[done])
        self._report(plan[done])
        for number in range(done, len(plan) - 1):
            self._write(number, batches, plan[number], plan[number + 1])
        stream = getattr(self._job, "stream", None)
        Index(
            identity=self._identity,
            widths=self._widths,
            documents=() if stream is None else stream.documents,
            pad_id=None if stream is None else stream.pad_id,
            shards=tuple(self._shard(number, plan) for number in range(len(plan) - 1)),
        ).write(self._stage / INDEX)

    def _finished(self) -> int:
        """Count the shards that an earlier run finished, and look at them."""
        done = next(n for n in itertools.count() if not (self._stage / shard_name(n)).exists())
        if done:
            # a shard without a successor may be damaged only by others: opening tells
            self._widths = open_saved(self._stage).widths
            for number in range(done):
                notes_of(self._stage / shard_name(number), store_id(self._identity), number)
        return done

    def _plan(self) -> list[int]:
        """Return the batch where each shard begins, and the end; a function of the inputs alone."""
        row_bytes = sum(self._widths.values()) * (4 if self._dtype == "float32" else 2)
        borders, room = [0], 0.0
        for number, count in enumerate(self._job.batch_tokens.tolist()):
            room += count * row_bytes
            if room > self._shard_bytes and number > borders[-1]:
                borders.append(number)
                room = count * row_bytes
        return [*borders, self._job.n_batches]

    def _write(
        self, number: int, batches: Iterator[ActivationBatch], first: int, last: int
    ) -> None:
        n_rows = int(self._job.batch_tokens[first:last].sum())
        kind = np.dtype("uint16" if self._dtype == "bfloat16" else self._dtype)
        arrays = {site: np.empty((n_rows, width), kind) for site, width in self._widths.items()}
        part, start = TokenPart(), 0
        for batch in itertools.islice(batches, last - first):
            stop = start + batch.n_rows
            for site, rows in batch.arrays.items():
                arrays[site][start:stop] = _rounded(rows, self._dtype, site, batch)
            part.add(batch.tokens, {site: row_norms(rows) for site, rows in batch.arrays.items()})
            start = stop
            self._report(batch.index + 1)
        notes = {"store": store_id(self._identity), "shard": str(number)}
        # the tokens first: where a shard is, all of it is
        digest = digest_of(list(arrays.values()))
        part.write(self._stage / TOKENS / shard_name(number), {**notes, "sha256": digest})
        stored = "bfloat16" if self._dtype == "bfloat16" else ""
        write_safetensors(
            self._stage / shard_name(number),
            [Entry.of(site.key, rows, stored) for site, rows in arrays.items()],
            notes,
        )

    def _shard(self, number: int, borders: list[int]) -> Shard:
        file = self._stage / shard_name(number)
        rows = int(self._job.batch_tokens[borders[number] : borders[number + 1]].sum())
        notes = notes_of(self._stage / TOKENS / file.name, store_id(self._identity), number)
        return Shard(rows, file.stat().st_size, notes["sha256"])

    def _report(self, batches: int) -> None:
        if self._progress is not None:
            done = int(self._job.batch_tokens[:batches].sum())
            self._progress("activations", done, self._job.n_tokens)


def _rounded(
    rows: npt.NDArray[Any], dtype: str, site: Site, batch: ActivationBatch
) -> npt.NDArray[Any]:
    """Return rows as they are stored; refuse what is not finite, before or after."""
    with np.errstate(over="ignore"):
        wide = rows.astype(np.float32, copy=False)
    if not np.isfinite(wide).all():
        raise _unfit(wide, ~np.isfinite(wide), site, batch, "finite", "Leave that text out")
    if dtype == "float32":
        return wide
    if dtype == "bfloat16":  # the upper half, rounded to the nearest, ties to even
        bits = np.ascontiguousarray(wide).view(np.uint32)
        up = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        half = ((bits + up) >> np.uint32(16)).astype(np.uint16)
        infinite = (half & np.uint16(0x7FFF)) == np.uint16(0x7F80)
        if infinite.any():
            raise _unfit(wide, infinite, site, batch, "below 3.39e38 for bfloat16", _OTHER)
        return half
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float16)
    if not np.isfinite(narrow).all():
        wanted = "at most 65504 for float16"
        raise _unfit(wide, ~np.isfinite(narrow), site, batch, wanted, _OTHER)
    return narrow


def _unfit(  # noqa: PLR0917
    rows: npt.NDArray[Any],
    bad: npt.NDArray[np.bool_],
    site: Site,
    batch: ActivationBatch,
    wanted: str,
    remedy: str,
) -> InvalidArgumentError:
    row, column = (int(i) for i in np.argwhere(bad)[0])
    where = f"row {row} of batch {batch.index}"
    if batch.tokens is not None:
        where = f"token {batch.tokens.pieces[row]!r} ({where})"
    return InvalidArgumentError(
        f"[{_FUNCTION}] activations must be {wanted}, got {rows[row, column]:.6g} at {site.key!r}, "
        f"{where}. {remedy}; finished shards are kept"
    )


def _is_published(folder: RunFolder, identity: dict[str, Any]) -> bool:
    """Say whether a run was stopped when all its results had been moved already."""
    staged = any(folder.stage.iterdir()) if folder.stage.exists() else False
    index = folder.path / INDEX
    return not staged and index.exists() and Index.read(index).identity == identity


def _drop_old(path: Path, n_shards: int) -> None:
    """Remove of an older store what the new one will not replace; its index first."""
    (path / INDEX).unlink(missing_ok=True)
    keep = {shard_name(number) for number in range(n_shards)}
    for file in path.glob(SHARDS):
        if file.name not in keep:
            file.unlink()
