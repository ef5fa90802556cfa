"""Atomic files: a reader sees the old file or the whole new one, never a part.

Every file of a report goes through :func:`write_atomic`, so one place turns a full disk into one
clear error and leaves nothing half-written behind.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from subspan._files import replacing
from subspan.errors import InvalidArgumentError, OutputError

__all__ = ["Entry", "OutputError", "write_atomic", "write_json", "write_safetensors"]

# numpy kind and size -> the name that the safetensors format uses
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}


class Entry(NamedTuple):
    """One tensor of a safetensors file, made only when it is its turn to be written.

    ``stored`` names the type when numpy has none for it: ``"bfloat16"`` for uint16 arrays.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], np.ndarray]
    stored: str = ""

    @property
    def n_bytes(self) -> int:
        """Size of the tensor in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def kind(self) -> str | None:
        """What the format calls the type; None if it has no name for it."""
        if self.stored:
            return "BF16" if (self.stored, self.dtype.name) == ("bfloat16", "uint16") else None
        return _DTYPES.get(self.dtype.name)

    @classmethod
    def of(cls, name: str, array: np.ndarray, stored: str = "") -> "Entry":
        """Wrap an array that exists already."""
        return cls(name, array.shape, array.dtype, lambda: array, stored)


def _open(path: Path) -> IO[bytes]:
    # the seam that tests replace to play a full disk
    return path.open("wb")


def write_atomic(path: Path, chunks: Iterable[bytes | memoryview], *, n_bytes: int) -> None:
    """Write ``chunks`` to a temporary name beside ``path``, then rename.

    Parameters
    ----------
    path
        Final name; its folder must exist.
    chunks
        The content in order.
    n_bytes
        Total size of the content, named in the error when the disk is full.

    Raises
    ------
    OutputError
        The disk is full or the folder cannot be written; the temporary file is removed and an
        older file of the same name is left as it was.
    """
    with replacing(path, n_bytes=n_bytes) as partial, _open(partial) as file:
        for chunk in chunks:
            file.write(chunk)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as UTF-8 JSON (no NaN: that is not JSON) and a final newline."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    content = text.encode("utf-8", "replace")
    write_atomic(path, [content], n_bytes=len(content))


def write_safetensors(
    path: Path, entries: Sequence[Entry], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file one tensor at a time.

    The format is eight bytes of header length, a JSON header, and the raw little-endian tensors;
    writing it here instead of through ``safetensors.numpy.save_file`` keeps only one tensor in
    memory, where that function holds a second copy of all of them.

    Parameters
    ----------
    path
        Final name.
    entries
        Tensors in file order; names must be unique.
    metadata
        Text stored in the header under ``__metadata__``.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for entry in entries:
        if entry.name in header or entry.kind is None:
            raise InvalidArgumentError(
                "[write_safetensors] entries must have unique names and a dtype of "
                f"{', '.join(_DTYPES)} or bfloat16 (in uint16), got {entry.name!r} of {entry.dtype}"
            )
        header[entry.name] = {
            "dtype": entry.kind,
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.n_bytes],
        }
        offset += entry.n_bytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format wants the data aligned to eight bytes

    def chunks() -> Iterable[bytes | memoryview]:
        yield len(head).to_bytes(8, "little") + head
        for entry in entries:
            array = np.asarray(entry.make(), dtype=entry.dtype.newbyteorder("<"), order="C")
            if array.shape != entry.shape:
                raise InvalidArgumentError(
                    f"[write_safetensors] tensor {entry.name!r} must have shape {entry.shape}, "
                    f"got {array.shape}"
                )
            yield array.reshape(-1).view(np.uint8).data

    write_atomic(path, chunks(), n_bytes=8 + len(head) + offset)
