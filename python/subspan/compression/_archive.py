"""Archives of arrays: written whole or not at all, read with one kind of error."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from subspan._files import replacing
from subspan.errors import FileFormatError

__all__ = ["arrays_of", "write_arrays"]


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write arrays to an ``.npz`` file, whole or not at all."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


@contextmanager
def arrays_of(function: str, path: str | os.PathLike[str], what: str) -> Iterator[dict[str, Any]]:
    """Give the arrays of a file; what fails while they are used is a fault of the file."""
    try:
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            yield dict(file)
    except (
        *(ValueError, LookupError, TypeError, AttributeError, OSError, EOFError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise FileFormatError(f"[{function}] {path} must be {what}, got: {error}") from error
