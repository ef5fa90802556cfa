"""Files that appear whole or not at all: the one place that turns a full disk into one error."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from subspan.errors import OutputError

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str], *, n_bytes: int | None = None) -> Iterator[Path]:
    """Give a temporary name beside ``path``, which takes its place at the end of the block.

    If the block raises, the temporary file is removed and ``path`` is as it was. ``n_bytes``, the
    size to come, is named when the disk is full.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(target)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink()
        # Writers in other languages report the system's failure in a text of their own.
        if "No space left on device" in str(error):
            raise _output_error(target, n_bytes, errno.ENOSPC, error) from error
        if isinstance(error, OSError) and not isinstance(error, OutputError):
            raise _output_error(target, n_bytes, error.errno, error) from error
        raise


def _output_error(
    path: Path, n_bytes: int | None, number: int | None, error: BaseException
) -> OutputError:
    if number in {errno.ENOSPC, errno.EDQUOT}:
        size = "more room than there is"
        if n_bytes is not None:
            size = f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes} bytes"
        text = (
            f"the disk is full: {path.name} needs {size}; nothing half-written was left. "
            "Free space there (or choose another folder) and run again"
        )
    else:
        text = f"cannot write the file: {getattr(error, 'strerror', None) or error}"
    return OutputError(number or errno.EIO, f"[write] {text}", str(path))
