"""Readers of .npy and .safetensors: headers are checked, data stays on disk until asked for."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from subspan._safetensors import read_header
from subspan.errors import FileFormatError

_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SAFETENSORS |= {"I64": "<i8", "I32": "<i4", "U8": "u1"}
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Column:
    """One stored matrix: where it lies and what it holds. ``kind`` is None if it cannot be read.

    No map and no file handle stays open between reads, so that the number of files is not limited
    and what was read does not count as memory of the process for longer than the read.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    stored: str
    kind: np.dtype[Any] | None
    offset: int = 0
    order: Literal["C", "F"] = "C"

    def checked(self) -> "Column":
        """Return itself when it can serve as activations, else raise."""
        where = f"{self.file} must hold" + (f" at {self.name!r}" if self.name else "")
        if self.kind is None or (self.kind.kind != "f" and self.stored != "BF16"):
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
        wide = self.kind is not None and self.kind.itemsize > 4
        return np.float64 if wide else np.float32

    @property
    def dtype_name(self) -> str:
        """Name of the stored data type: float16, bfloat16, float32, float64."""
        assert self.kind is not None
        return _NAMES.get(self.stored, self.kind.name)

    def mapped(self, *, sparse: bool = False) -> npt.NDArray[Any]:
        """Map the values as they are stored; the map is gone when the array is.

        ``sparse`` says that few of the rows will be read, so that the system need not read ahead.
        """
        assert self.kind is not None
        count = int(np.prod(self.shape, dtype=np.int64))
        try:
            with self.file.open("rb") as stream:
                raw = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            flat = np.frombuffer(raw, self.kind, count, self.offset) if count else np.empty(0)
        except (OSError, ValueError) as error:
            raise FileFormatError(
                f"[read] {self.file} must be as it was when it was opened, got: {error}"
            ) from error
        if hasattr(mmap, "MADV_RANDOM"):
            raw.madvise(mmap.MADV_RANDOM if sparse else mmap.MADV_SEQUENTIAL)
        return flat.reshape(self.shape, order=self.order)

    def read_into(self, out: npt.NDArray[Any], start: int, stop: int) -> None:
        """Copy rows into ``out``, widening float16 and bfloat16."""
        widen_into(out, self.mapped()[start:stop], self.stored)


def widen_into(out: npt.NDArray[Any], rows: npt.NDArray[Any], stored: str) -> None:
    """Copy stored values into ``out``; bfloat16 is stored as the upper half of a float32."""
    if stored == "BF16":
        np.left_shift(rows, 16, out=out.view(np.uint32), dtype=np.uint32, casting="unsafe")
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
    kind = data.dtype if usable else None
    order: Literal["C", "F"] = "C" if data.flags.c_contiguous else "F"
    offset = int(getattr(data, "offset", 0))
    return {"": Column(file, "", data.shape, str(data.dtype), kind, offset, order)}


def open_safetensors(file: Path) -> dict[str, Column]:
    """Find the tensors of a .safetensors file by name."""
    return {
        name: Column(file, name, stored.shape, stored.dtype, _kind(stored.dtype), stored.begin)
        for name, stored in read_header("open_saved", file).tensors.items()
    }


def _kind(stored: str) -> np.dtype[Any] | None:
    return np.dtype(_SAFETENSORS[stored]) if stored in _SAFETENSORS else None
