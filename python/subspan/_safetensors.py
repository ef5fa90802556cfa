"""What a .safetensors file holds, and where: the one reader of such headers.

Layout: eight bytes with the length of the header (little endian), the header in JSON with dtype,
shape and byte range of each tensor, then the data. Source: the format description in the
documentation of safetensors.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from subspan.errors import FileFormatError

__all__ = ["Header", "Stored", "read_header"]

_MAX_HEADER = 100_000_000  # bytes; the limit that the format's own reader sets
_SIZES = {"F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4}
_SIZES |= {"U32": 4, "I64": 8, "U64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}


class Stored(NamedTuple):
    """One tensor: its dtype as the format names it, its shape, and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """The tensors of a file by name, and the text that its writer added."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def read_header(function: str, file: Path) -> Header:
    """Read the header; every tensor lies within the file and is as long as its shape says.

    Raises
    ------
    FileFormatError
        The file is truncated, or of another kind.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise _damaged(function, file, f"a header of {length} bytes in a file of {size}")
        try:
            table = json.loads(stream.read(length))
        except ValueError as error:
            raise _damaged(function, file, f"a header that is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise _damaged(function, file, "a header that is not a table")
    added = table.pop("__metadata__", {})
    tensors = {}
    for name, entry in table.items():
        stored = _stored(entry, 8 + length)
        if isinstance(stored, str):
            raise _damaged(function, file, f"{stored} for {name!r}")
        if stored.end > size:
            raise _damaged(function, file, f"{size} bytes where {name!r} ends at {stored.end}")
        tensors[str(name)] = stored
    texts = added.items() if isinstance(added, dict) else ()
    return Header(tensors, {str(key): str(value) for key, value in texts})


def _stored(entry: Any, data: int) -> Stored | str:
    """Return the place of a tensor, or what is wrong with it."""
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
    except (TypeError, KeyError, ValueError):
        return "a bad entry"
    if not 0 <= begin <= end or min(shape, default=0) < 0:
        return "a bad entry"
    if dtype in _SIZES and end - begin != prod(shape) * _SIZES[dtype]:
        return f"{end - begin} bytes of shape {shape} in {dtype}"
    return Stored(dtype, shape, data + begin, data + end)


def _damaged(function: str, file: Path, came: str) -> FileFormatError:
    return FileFormatError(
        f"[{function}] {file} must be a whole .safetensors file, got {came}. It may be "
        "truncated or of another kind."
    )
