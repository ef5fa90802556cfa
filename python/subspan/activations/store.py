"""The activation store: a folder of shards with their tokens, read in order or at random."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan._checks import integer
from subspan.activations._batches import TokenBatch
from subspan.activations._files import open_safetensors
from subspan.activations._rows import StoredRows
from subspan.activations._site import Site
from subspan.activations._store_index import (
    INDEX,
    SHARDS,
    TOKENS,
    Index,
    digest_of,
    notes_of,
    read_tokens,
    read_values,
    shard_name,
)
from subspan.activations.batches import Exclude, Output, RowBatches, excluded_rows
from subspan.activations.saved import SavedActivations, open_saved
from subspan.errors import DtypeError, FileFormatError, InvalidArgumentError

__all__ = ["ActivationStore"]

_BLOCK = 8192


class ActivationStore:
    """Activations on disk with their tokens; written by `write_activations`.

    A folder with ``shard-00000.safetensors``, ... (one matrix for each site, rows in the order of
    the text), ``tokens/`` (token ids, places, text and norms of the rows of each shard) and
    ``index.json``. Opening reads the headers of all shards; values stay on disk. `open_saved` reads
    such a folder too, so ``atlas`` and ``compare`` do.

    Parameters
    ----------
    path : str or Path
        The folder.

    Attributes
    ----------
    path : Path
        The folder.
    sites : tuple of Site
        What is stored of each token, in order of layer and kind.
    n_tokens : int
        Number of rows, the same at every site.
    documents : tuple of str
        Names of the texts.
    has_tokens : bool
        False for a store made of saved activations, which carry no tokens.
    facts : dict
        Where the activations come from: model, hashes, settings.
    fingerprint : str
        SHA-256 (hex) of what is stored; equal values give equal fingerprints.

    Raises
    ------
    FileNotFoundError, FileFormatError
        No finished store lies there; a shard is missing, truncated, or of another store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        _check_is_store(self.path)
        self._index = index = Index.read(self.path / INDEX)
        self._check_files()
        self._saved: SavedActivations = open_saved(self.path)
        self.sites = self._saved.sites
        self._starts = np.cumsum([0, *(shard.rows for shard in index.shards)])
        self.n_tokens = int(self._starts[-1])
        self._check_content()
        self.documents = index.documents
        self.has_tokens = index.pad_id is not None
        self.facts = dict(index.identity)
        self.fingerprint = index.fingerprint

    def __repr__(self) -> str:
        """Return path and size on one line."""
        return (
            f"ActivationStore({str(self.path)!r}, {len(self.sites)} sites, {self.n_tokens:,} rows)"
        )

    def width(self, site: Site | str | None = None) -> int:
        """Return the number of columns at a site; the site may be left out if there is one."""
        return self._saved.widths[self._site("width", site)]

    def dtype(self, site: Site | str | None = None) -> str:
        """Return the name of the data type as stored: float16, bfloat16 or float32."""
        return self._saved.columns(self._site("dtype", site))[0].dtype_name

    def rows(self, site: Site | str | None, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return rows start..stop of a site, float32 of shape (stop - start, width)."""
        return self._saved.rows(self._site("rows", site), start, stop)

    def take(self, site: Site | str | None, indices: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Return rows by number, in the order asked for, float32 of shape (n, width)."""
        name = self._site("take", site)
        numbers = np.asarray(indices)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise DtypeError(
                "[ActivationStore.take] indices must be a list of integers, got "
                f"{numbers.dtype} of shape {numbers.shape}"
            )
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.n_tokens:
            raise InvalidArgumentError(
                f"[ActivationStore.take] indices must be in 0..{self.n_tokens - 1}, got "
                f"{numbers.min()}..{numbers.max()}"
            )
        rows = StoredRows(self._saved.columns(name))
        return rows.widened(rows.gather(numbers.astype(np.int64)))

    def norms(
        self, site: Site | str | None = None, start: int = 0, stop: int | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the Euclidean norms of rows, stored with them, as they were before rounding."""
        name = self._site("norms", site)
        return read_values(self._cut(start, stop), f"norm/{name.key}")

    def tokens(self, start: int = 0, stop: int | None = None) -> TokenBatch:
        """Return the tokens of rows: ids, pieces of text, document, place.

        ``lengths`` are those of the windows, or of what the range has of them.
        """
        if self._index.pad_id is None:
            raise InvalidArgumentError(
                f"[ActivationStore.tokens] the store must have tokens, got {str(self.path)!r}, "
                "which was made of saved activations. Write it from a model and texts"
            )
        cut = self._cut(start, stop)
        if not cut:
            raise InvalidArgumentError("[ActivationStore.tokens] stop must exceed start, got none")
        return read_tokens(cut, self._index.pad_id)

    def around(self, row: int, *, before: int = 8, after: int = 8) -> tuple[int, int]:
        """Return the rows (start, stop) around a row that belong to the same document."""
        row = integer("ActivationStore.around", "row", row, low=0, high=self.n_tokens - 1)
        start, stop = max(0, row - before), min(self.n_tokens, row + after + 1)
        same = self.tokens(start, stop).document
        inside = np.flatnonzero(same == same[row - start])
        return start + int(inside[0]), start + int(inside[-1]) + 1

    def context(self, row: int, *, before: int = 8, after: int = 8) -> tuple[str, str, str]:
        """Return the text before, of and after the token of a row, to show where it stands.

        Special tokens of the tokenizer are left out, but for the row itself.
        """
        start, stop = self.around(row, before=before, after=after)
        tokens = self.tokens(start, stop)
        texts = ["", "", ""]
        for number, (piece, shared) in enumerate(
            zip(tokens.pieces, tokens.shared.tolist(), strict=True), start=start
        ):
            if number == row:
                texts[1] = piece
                # a character that takes several tokens is shown once, with this one
                texts[0] = texts[0][: len(texts[0]) - shared]
            elif not tokens.special[number - start]:
                texts[2 if number > row else 0] += piece[shared:]
        return texts[0], texts[1], texts[2]

    def batches(
        self,
        site: Site | str | None,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        start: int | Mapping[str, Any] = 0,
        shuffle: bool = True,
        output: Output = "torch",
        dtype: str | None = None,
        exclude: Exclude = None,
        drop_last: bool = False,
        buffer_mb: float = 256,
    ) -> RowBatches:
        """Hand out the rows of a site in batches, in an order that is random over the whole store.

        Every epoch is another permutation of all rows that are not excluded: each of them comes
        once. The permutation is computed, not stored, so its memory is nothing; the rows of the
        next batches are read together, in the order in which they lie, while the present ones are
        used.

        Parameters
        ----------
        site : Site, str or None
            The site or its key; None if the store has one.
        batch_size : int
            Rows in a batch.
        seed : int, default 0
            Chooses the permutations. One seed gives one order, whatever ``buffer_mb``.
        epochs : int or None, default 1
            How often every row comes; None for ever.
        start : int or dict, default 0
            Batches to leave out at the beginning, or the ``state`` of a `RowBatches` with the same
            seed, rows and batch size.
        shuffle : bool, default True
            False for the order of the text.
        output : {"torch", "numpy"}, default "torch"
            Library of the batches.
        dtype : {"float32", "float16", "bfloat16", "float64"}, optional
            By default float32. bfloat16 is for torch only.
        exclude : OutlierRule or array of bool, shape (n_tokens,), optional
            Rows to leave out: those that the rule calls outliers or drops, judged by the norms
            that were stored with the rows (the median is that of the first 8192), or True in the
            array. Memory: 16 bytes for each excluded row.
        drop_last : bool, default False
            Leave out the last batch of an epoch when it is not full.
        buffer_mb : float, default 256
            Memory for rows, in megabytes: half of it is in use while the other is read.

        Returns
        -------
        RowBatches
            An iterator of arrays of shape (batch_size, width); ``.state`` is where it stands.

        Raises
        ------
        InvalidArgumentError
            The site is not in the store, no row is left, or an argument is out of range.
        FileFormatError
            While reading: a shard is no longer what it was when the store was opened.
        """
        function = "ActivationStore.batches"
        name = self._site("batches", site)

        def norms() -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]]:
            for begin in range(0, self.n_tokens, _BLOCK):
                end = min(begin + _BLOCK, self.n_tokens)
                first = None
                if self.has_tokens:
                    first = read_values(self._cut(begin, end), "window_position") == 0
                yield self.norms(name, begin, end), first

        return RowBatches(
            function,
            StoredRows(self._saved.columns(name)),
            batch_size,
            seed=seed,
            epochs=epochs,
            start=start,
            shuffle=shuffle,
            output=output,
            dtype=dtype,
            excluded=excluded_rows(function, exclude, self.n_tokens, norms),
            drop_last=drop_last,
            buffer_mb=buffer_mb,
        )

    def verify(self) -> None:
        """Read all shards and compare them with the hashes in the index.

        Raises
        ------
        FileFormatError
            A shard has other values than those that were written.
        """
        for number, shard in enumerate(self._index.shards):
            arrays = [self._saved.columns(site)[number].mapped() for site in self.sites]
            if digest_of(arrays) != shard.digest:
                raise FileFormatError(
                    f"[ActivationStore.verify] {self.path / shard_name(number)} must hold what was "
                    "written, got other values. Write the store again with overwrite=True"
                )

    def _site(self, method: str, site: Site | str | None) -> Site:
        if site is None and len(self.sites) == 1:
            return self.sites[0]
        for have in self.sites:
            if site in {have, have.key}:
                return have
        keys = ", ".join(have.key for have in self.sites[:8])
        raise InvalidArgumentError(
            f"[ActivationStore.{method}] site must be one of {keys}, got {site!r}"
        )

    def _cut(self, start: int, stop: int | None) -> list[tuple[Path, int, int]]:
        """Return (file of tokens, first, last) for the shards of a range of rows."""
        stop = self.n_tokens if stop is None else stop
        if not 0 <= start <= stop <= self.n_tokens:
            raise InvalidArgumentError(
                f"[ActivationStore] rows must lie in 0..{self.n_tokens}, got {start}..{stop}"
            )
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        found = []
        for number in range(first, len(self._index.shards)):
            begin, end = int(self._starts[number]), int(self._starts[number + 1])
            low, high = max(start, begin), min(stop, end)
            if low >= high:
                break
            found.append((self.path / TOKENS / shard_name(number), low - begin, high - begin))
        return found

    def _check_files(self) -> None:
        """Compare the files with the index: there, of the right size, of this store."""
        names = {shard_name(number) for number in range(len(self._index.shards))}
        extra = sorted({file.name for file in self.path.glob("*.safetensors")} - names)
        if extra:
            raise FileFormatError(
                f"[ActivationStore] {self.path} must hold the {len(names)} shards of its index, "
                f"got {extra[0]!r} too. Move it away"
            )
        for number, shard in enumerate(self._index.shards):
            for file in (self.path / shard_name(number), self.path / TOKENS / shard_name(number)):
                if not file.is_file():
                    raise FileFormatError(
                        f"[ActivationStore] {file} must be there, got no such file. Put it back, "
                        "or write the store again with overwrite=True"
                    )
                notes_of(file, self._index.id, number)
            known = open_safetensors(file)  # of the tokens: cut off, it is refused here
            if known[f"norm/{next(iter(self._index.widths)).key}"].shape != (shard.rows,):
                raise FileFormatError(
                    f"[ActivationStore] {file} must describe {shard.rows} rows, got others"
                )
            size = (self.path / shard_name(number)).stat().st_size
            if size != shard.n_bytes:
                raise FileFormatError(
                    f"[ActivationStore] {self.path / shard_name(number)} must have "
                    f"{shard.n_bytes} bytes, got {size}: it is truncated or was changed. Put the "
                    "right file back, or write the store again with overwrite=True"
                )

    def _check_content(self) -> None:
        for what, came, wanted in (
            ("rows", self._saved.n_rows, self.n_tokens),
            ("widths", self._saved.widths, self._index.widths),
            ("dtype", {self.dtype(site) for site in self.sites}, {self._index.identity["dtype"]}),
        ):
            if came != wanted:
                raise FileFormatError(
                    f"[ActivationStore] {self.path} must hold the {what} of its index ({wanted}), "
                    f"got {came}"
                )


def _check_is_store(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"[ActivationStore] path must exist, got {str(path)!r}")
    if (path / INDEX).is_file():
        return
    unfinished = path / ".run" / "stage"
    if unfinished.is_dir():
        raise FileFormatError(
            f"[ActivationStore] path must be a finished store, got {str(path)!r}, of which "
            f"{len(list(unfinished.glob(SHARDS)))} shards are written. Give the command that wrote "
            "them again: it goes on where it stopped"
        )
    raise FileFormatError(
        f"[ActivationStore] path must be a folder with {INDEX}, got {str(path)!r} without one. "
        "Write a store with write_activations; open_saved reads plain files"
    )
