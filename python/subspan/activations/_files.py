"""Readers of .npy and .safetensors: headers are checked, data stays on disk until asked for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan.errors import FileFormatError

_MAX_HEADER = 100_000_000  # bytes; the limit that the format's own reader sets
_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SIZES = {"F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1, "I8": 1, "U8": 1, "I16": 2, "U16": 2, "I32": 4}
_SIZES |= {"U32": 4, "I64": 8, "U64": 8, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True, eq=False)
class Column:
    """One stored matrix: where it lies and what it holds; ``data`` is a memory map."""

    file: Path
    name: str
    shape: tuple[int, ...]
    stored: str
    data: npt.NDArray[Any] | None

    def checked(self) -> "Column":
        """Return itself when it can serve as activations, else raise."""
        where = f"{self.file} must hold" + (f" at {self.name!r}" if self.name else "")
        if self.data is None:
            raise FileFormatError(
                f"[open_saved] {where} float16, bfloat16, float32 or float64, got {self.stored}"
            )
        if len(self.shape) != 2:
            raise FileFormatError(
                f"[open_saved] {where} a matrix of shape (rows, width), got shape {self.shape}. "
                "Reshape to two axes, or choose other tensors with sites=."
            )
        if not all(self.shape):
            raise FileFormatError(f"[open_saved] {where} at least one value, got {self.shape}")
        return self

    @property
    def dtype(self) -> npt.DTypeLike:
        """Data type of what `read_into` delivers."""
        wide = self.data is not None and self.data.dtype.kind == "f" and self.data.itemsize > 4
        return np.float64 if wide else np.float32

    def read_into(self, out: npt.NDArray[Any], start: int, stop: int) -> None:
        """Copy rows into ``out``, widening float16 and bfloat16."""
        assert self.data is not None
        rows = self.data[start:stop]
        if self.stored == "BF16":  # the upper half of a float32
            out[...] = (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            out[...] = rows


def open_npy(file: Path) -> dict[str, Column]:
    """Map a .npy file; the single matrix has no name."""
    try:
        data = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise FileFormatError(
            f"[open_saved] {file} must be a whole .npy file, got: {error}. It may be truncated."
        ) from error
    if not isinstance(data, np.ndarray):
        raise FileFormatError(f"[open_saved] {file} must be a .npy file, got {type(data).__name__}")
    usable = data.dtype.kind == "f" and data.itemsize <= 8
    return {"": Column(file, "", data.shape, str(data.dtype), data if usable else None)}


def open_safetensors(file: Path) -> dict[str, Column]:
    """Map the tensors of a .safetensors file by name.

    Layout: eight bytes with the length of the header (little endian), the header in JSON with
    dtype, shape and byte range of each tensor, then the data.
    Source: the format description in the documentation of safetensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise _damaged(file, f"a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise _damaged(file, f"a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(file, "a header that is not a table")
    header.pop("__metadata__", None)
    columns = {}
    for name, entry in header.items():
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            begin, end = (int(n) for n in entry["data_offsets"])
        except (TypeError, KeyError, ValueError) as error:
            raise _damaged(file, f"a bad entry for {name!r}") from error
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if not 0 <= begin <= end or min(shape, default=0) < 0:
            raise _damaged(file, f"a bad entry for {name!r}")
        if dtype in _SIZES and end - begin != count * _SIZES[dtype]:
            raise _damaged(file, f"{end - begin} bytes for {name!r} of shape {shape} in {dtype}")
        start = 8 + length + begin
        if 8 + length + end > size:
            raise _damaged(file, f"{size} bytes where {name!r} ends at {8 + length + end}")
        data: npt.NDArray[Any] | None = None
        if dtype in _SAFETENSORS:
            kind = np.dtype(_SAFETENSORS[dtype])
            data = np.empty(shape, kind)
            if count:
                data = np.memmap(file, dtype=kind, mode="r", offset=start, shape=shape)
        columns[name] = Column(file, name, shape, dtype, data)
    return columns


def _damaged(file: Path, came: str) -> FileFormatError:
    return FileFormatError(
        f"[open_saved] {file} must be a whole .safetensors file, got {came}. It may be truncated "
        "or of another kind."
    )
