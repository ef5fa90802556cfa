"""Activations from files: memory-mapped, checked when opened, read in blocks of rows."""

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan.activations._batches import ActivationBatch
from subspan.activations._files import Column, open_npy, open_safetensors
from subspan.activations._site import Site
from subspan.errors import FileFormatError, InvalidArgumentError

_READERS = {".npy": open_npy, ".safetensors": open_safetensors}


class SavedActivations(Sequence[ActivationBatch]):
    """Activations on disk as a sequence of blocks of rows; made by `open_saved`.

    ``len(saved)`` is the number of blocks and ``saved[i]`` reads block i, so that a run can
    resume at any block. Blocks do not depend on how the rows are spread over shards.

    Attributes
    ----------
    path : Path
        The file or folder.
    sites : tuple of Site
        What the files hold; tensors named like a site key become that site.
    n_rows : int
        Number of rows (tokens), the same at every site.
    widths : dict of Site to int
        Number of columns at each site.
    block_rows : int
        Rows in a block; the last block may be shorter.

    """

    def __init__(
        self, path: Path, columns: dict[Site, list[Column]], files: list[Path], block_rows: int
    ) -> None:
        self.path = path
        self.block_rows = block_rows
        self.sites = tuple(sorted(columns, key=Site.order))
        self._columns = columns
        self._files = files
        first = columns[self.sites[0]]
        self._starts = np.cumsum([0, *(column.shape[0] for column in first)])
        self.n_rows = int(self._starts[-1])
        self.widths = {site: columns[site][0].shape[1] for site in self.sites}

    def __repr__(self) -> str:
        """Return path and size on one line."""
        return (
            f"SavedActivations({str(self.path)!r}, {len(self.sites)} sites, {self.n_rows:,} rows)"
        )

    def __len__(self) -> int:
        """Return the number of blocks."""
        return (self.n_rows + self.block_rows - 1) // self.block_rows

    def __getitem__(self, index: Any) -> Any:
        """Read block ``index`` (negative counts from the end) at every site; a list for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= number < len(self):
            raise IndexError(
                f"[SavedActivations] block must be in 0..{len(self) - 1}, got {int(index)}"
            )
        start = number * self.block_rows
        stop = min(start + self.block_rows, self.n_rows)
        arrays = {site: self.rows(site, start, stop) for site in self.sites}
        return ActivationBatch(number, None, arrays)

    def columns(self, site: Site) -> list[Column]:
        """Return where the values of a site lie, shard after shard."""
        return self._columns[site]

    def rows(self, site: Site, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows start..stop of one site as a new float32 (or float64) array."""
        if site not in self._columns:
            have = ", ".join(s.key for s in self.sites[:8])
            raise InvalidArgumentError(
                f"[SavedActivations.rows] site must be one of {have}, got {site!r}"
            )
        if not 0 <= start <= stop <= self.n_rows:
            raise InvalidArgumentError(
                f"[SavedActivations.rows] rows must lie in 0..{self.n_rows}, got {start}..{stop}"
            )
        columns = self._columns[site]
        out = np.empty((stop - start, self.widths[site]), dtype=columns[0].dtype)
        for number, column in enumerate(columns):
            begin = int(self._starts[number])
            low, high = max(start, begin), min(stop, begin + column.shape[0])
            if low < high:
                column.read_into(out[low - start : high - start], low - begin, high - begin)
        return out

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the bytes of all files, in the order of the shards."""
        digest = hashlib.sha256()
        for file in self._files:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 22):
                    digest.update(chunk)
        return digest.hexdigest()


def open_saved(
    path: str | Path,
    *,
    sites: Iterable[str | Site] | None = None,
    block_rows: int = 8192,
) -> SavedActivations:
    """Open activations saved as .npy or .safetensors, or as a folder of shards of one kind.

    Parameters
    ----------
    path : str or Path
        * ``.npy``: one matrix of shape (n_rows, width); its site is named after the file.
        * ``.safetensors``: one matrix per tensor, all with the same number of rows.
        * a folder of such files, all of one kind: shards, in the order of their names, with
          numbers compared as numbers (shard-2 before shard-10). All shards must agree in their
          sites, widths and dtypes.
    sites : iterable of str or Site, optional
        Only these tensors of .safetensors files; others are not looked at.
    block_rows : int, default 8192
        Rows in a block.

    Returns
    -------
    SavedActivations
        Every header was read and checked; no data was. Values in float16 and bfloat16 are
        widened to float32 block by block; float64 stays.

    Raises
    ------
    FileNotFoundError
        No such file or folder.
    FileFormatError
        A file is truncated, damaged, of another kind, not 2-D, not of a floating-point dtype,
        has no rows, or does not fit the first shard.

    Notes
    -----
    Files are memory-mapped: memory use is that of one block.

    """
    path = Path(path).expanduser()
    if isinstance(block_rows, bool) or not isinstance(block_rows, int) or block_rows < 1:
        raise InvalidArgumentError(
            f"[open_saved] block_rows must be a positive integer, got {block_rows!r}"
        )
    files, label = _list_files(path)
    wanted = None if sites is None else {_as_site(site) for site in sites}
    columns: dict[Site, list[Column]] = {}
    for number, file in enumerate(files):
        found = {}
        for name, column in _READERS[file.suffix](file).items():
            site = _as_site(name or label)
            if wanted is None or site in wanted:
                found[site] = column.checked()
        _check_shard(file, found, wanted)
        if number and set(found) != set(columns):
            odd = sorted(site.key for site in set(found) ^ set(columns))[0]
            raise FileFormatError(
                f"[open_saved] every shard must hold the same sites as {files[0].name}, got "
                f"{file.name}, which differs in {odd!r}"
            )
        for site, column in found.items():
            same = columns.setdefault(site, [])
            if same:
                _check_same(site, same[0], column)
            same.append(column)
    return SavedActivations(path, columns, files, block_rows)


def _list_files(path: Path) -> tuple[list[Path], str]:
    """Return the files in order, and the name for a site that has none of its own."""
    if not path.exists():
        raise FileNotFoundError(f"[open_saved] path must exist, got {str(path)!r}")
    if path.is_file():
        if path.suffix not in _READERS:
            raise FileFormatError(
                f"[open_saved] path must be .npy, .safetensors or a folder, got {str(path)!r}"
            )
        return [path], path.stem
    files = sorted(
        (f for f in path.iterdir() if f.is_file() and f.suffix in _READERS), key=_natural
    )
    kinds = sorted({file.suffix for file in files})
    if len(kinds) != 1:
        raise FileFormatError(
            "[open_saved] a folder must hold shards of one kind, .npy or .safetensors, got "
            f"{' and '.join(kinds) or 'neither'} in {str(path)!r}"
        )
    return files, path.resolve().name


def _natural(path: Path) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _as_site(name: str | Site) -> Site:
    if isinstance(name, Site):
        return name
    try:
        return Site.parse(name)
    except InvalidArgumentError:
        return Site(-1, name)


def _check_shard(file: Path, found: dict[Site, Column], wanted: set[Site] | None) -> None:
    missing = sorted(site.key for site in (wanted or set()) - set(found))
    if missing:
        raise InvalidArgumentError(
            f"[open_saved] sites must be in the file, got {missing[0]!r}, which {file} has not"
        )
    if not found:
        raise FileFormatError(f"[open_saved] {file} must hold at least one matrix, got none")
    rows = {column.shape[0] for column in found.values()}
    if len(rows) > 1:
        raise FileFormatError(
            f"[open_saved] all sites in {file} must have the same number of rows, got "
            f"{', '.join(map(str, sorted(rows)))}. Choose some of them with sites=."
        )


def _check_same(site: Site, first: Column, other: Column) -> None:
    for what, a, b in (
        ("width", first.shape[1], other.shape[1]),
        ("dtype", first.stored, other.stored),
    ):
        if a != b:
            raise FileFormatError(
                f"[open_saved] every shard must have {what} {a} at site {site.key!r} as in "
                f"{first.file.name}, got {b} in {other.file.name}"
            )
