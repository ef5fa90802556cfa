"""Named arrays in files: safetensors, torch, npz. Nothing that a file holds is ever executed."""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan._arrays import dtype_name, to_numpy
from subspan._files import replacing
from subspan._safetensors import Stored, read_header
from subspan.errors import FileFormatError, InvalidArgumentError, UnsupportedError
from subspan.report.files import Entry, write_safetensors

__all__ = [
    "arrays_of",
    "damaged",
    "in_folder",
    "read_json",
    "read_npz",
    "read_safetensors",
    "read_torch",
    "write_folder",
    "write_torch",
]

_READ = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
_READ |= {"U8": "|u1", "BOOL": "|b1", "I8": "|i1", "I16": "<i2"}

Arrays = dict[str, NDArray[Any]]


def damaged(function: str, file: Path, wanted: str, came: object) -> FileFormatError:
    """Return the error for a file that is not what it should be."""
    return FileFormatError(f"[{function}] {str(file)!r} must {wanted}, got {came}")


def in_folder(function: str, path: str | os.PathLike[str], *names: str) -> Path:
    """Return the folder ``path``, or of the file ``path``, if it has files of these names."""
    folder = Path(path)
    if folder.is_file() and folder.name in names:
        folder = folder.parent
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        there = (
            sorted(each.name for each in folder.iterdir())[:8] if folder.is_dir() else "no folder"
        )
        raise damaged(function, folder, f"be a folder with {' and '.join(names)}", there)
    return folder


# ---- reading -----------------------------------------------------------------------------------


def read_json(function: str, file: Path) -> dict[str, Any]:
    """Return the table in a JSON file."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise damaged(function, file, "be JSON", error) from error
    if not isinstance(value, dict):
        raise damaged(function, file, "hold a table", type(value).__name__)
    return value


def read_safetensors(function: str, file: Path) -> Arrays:
    """Return the arrays of a safetensors file; bfloat16, which numpy lacks, becomes float32."""
    return {
        name: _tensor(function, file, name, stored)
        for name, stored in read_header(function, file).tensors.items()
    }


def _tensor(function: str, file: Path, name: str, stored: Stored) -> NDArray[Any]:
    if stored.dtype not in _READ:
        raise damaged(function, file, f"hold numbers that numpy has at {name!r}", stored.dtype)
    dtype = np.dtype(_READ[stored.dtype])
    values = np.fromfile(file, dtype, prod(stored.shape), offset=stored.begin)
    if stored.dtype == "BF16":  # the upper half of a float32
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.reshape(stored.shape)


def read_torch(function: str, file: Path) -> dict[str, Any]:
    """Return the table in a file of ``torch.save``, with arrays for tensors."""
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(
            f"[{function}] {str(file)!r} needs the package 'torch', got an import error ({error}). "
            "Install it with: pip install 'subspan[models]'"
        ) from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own
        reason = str(error).partition("\n")[0]
        raise damaged(function, file, "hold tensors and nothing that runs code", reason) from error
    if not isinstance(state, Mapping):
        raise damaged(function, file, "hold a table of tensors", type(state).__name__)
    return _plain(state, torch.Tensor)


def _plain(state: Mapping[str, Any], tensor: type) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, tensor):
            out[name] = to_numpy(value)
        else:
            out[name] = _plain(value, tensor) if isinstance(value, Mapping) else value
    return out


def read_npz(function: str, file: Path) -> Arrays:
    """Return the arrays of an .npz file."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise damaged(function, file, "be a whole .npz file of numbers", error) from error


def arrays_of(function: str, file: Path, state: Mapping[str, Any], *names: str) -> list[Any]:
    """Return the arrays of these names, finite; a name that starts with "?" may be missing."""
    out: list[Any] = []
    for name in names:
        array = state.get(name.lstrip("?"))
        if array is None and not name.startswith("?"):
            raise damaged(function, file, f"have the tensor {name!r}", ", ".join(map(str, state)))
        if array is not None and not np.isfinite(np.sum(array, dtype=np.float64)):
            raise damaged(function, file, f"have finite numbers in {name!r}", "NaN or infinity")
        out.append(array)
    return out


# ---- writing -----------------------------------------------------------------------------------


def write_folder(
    folder: Path, tensors: Mapping[str, Any], weights: str, config: str, table: Mapping[str, Any]
) -> None:
    """Write a safetensors file and a JSON file; an older pair stays until both are on the disk."""
    with _written(folder / config, table):
        entries = [_entry(name, x) for name, x in tensors.items()]
        write_safetensors(folder / weights, entries, {"format": "pt"})


def _entry(name: str, x: Any) -> Entry:
    if dtype_name(x) != "bfloat16":
        return Entry.of(name, np.ascontiguousarray(to_numpy(x)))
    if isinstance(x, np.ndarray):  # of ml_dtypes
        bits = np.ascontiguousarray(x).view(np.uint16)
    else:
        import torch

        bits = x.detach().cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
    return Entry.of(name, bits, "bfloat16")


def write_torch(
    folder: Path, state: Mapping[str, Any], weights: str, config: str, table: Mapping[str, Any]
) -> None:
    """Write a file of ``torch.save`` and a JSON file, as `write_folder`."""
    import torch

    with _written(folder / config, table), replacing(folder / weights) as file:
        torch.save(dict(state), file)


@contextmanager
def _written(file: Path, table: Mapping[str, Any]) -> Iterator[None]:
    """Write a JSON file, which takes its place at the end of the block."""
    try:
        text = json.dumps(table, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"[save] metadata must be what JSON can hold, got: {error}"
        ) from error
    with replacing(file, n_bytes=len(text.encode())) as partial:
        partial.write_text(text, "utf-8")
        yield
