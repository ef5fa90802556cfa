"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from subspan.errors import SubspanError

__all__ = ["DiskFullError", "replacing"]


class DiskFullError(SubspanError, OSError):
    """There was no room for a file; nothing of it was left behind."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary name in the folder of ``path``, which takes its place at the end.

    If the block raises, the temporary file is removed and ``path`` is as it was. A full disk
    becomes a `DiskFullError` that names ``path``.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem[:32]}.", suffix=f".partial{target.suffix}"
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; a result gets the permissions that the user's umask gives.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        text = str(error)
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        # safetensors reports the system's failure in the text of its own exception.
        if full or "No space left on device" in text:
            raise DiskFullError(
                errno.ENOSPC, f"[write] the disk is full: {target} was not written ({text})"
            ) from error
        raise
