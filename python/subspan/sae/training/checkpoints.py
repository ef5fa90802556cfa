"""Checkpoints of a run: one file each that is there whole or not at all.

A checkpoint is a safetensors file: what the run is (JSON under ``subspan`` in its metadata) and all
that it needs to go on as if it had not stopped: weights and buffers, running means, counters, the
state of the random generator, the place in the data.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subspan.errors import FileFormatError, InvalidArgumentError, UnsupportedError
from subspan.report.files import Entry, write_safetensors

__all__ = ["SCHEMA", "Checkpoint", "latest_checkpoint", "read_checkpoint", "write_checkpoint"]

SCHEMA = "subspan.sae.checkpoint/1"
_NAME = re.compile(r"checkpoint-(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
    about : dict
        ``architecture``, ``step`` and whatever else is no tensor.
    """

    tensors: dict[str, Any]
    about: dict[str, Any]


def write_checkpoint(
    folder: str | os.PathLike[str], checkpoint: Checkpoint, *, keep: int = 2
) -> Path:
    """Write ``checkpoint-STEP.safetensors``, and remove all but the ``keep`` latest.

    Raises
    ------
    OutputError
        The disk is full or the folder cannot be written. Older checkpoints are untouched, and
        nothing half-written is left.
    """
    path = Path(folder) / f"checkpoint-{checkpoint.about['step']:09d}.safetensors"
    entries = [Entry.of(name, x.detach().numpy()) for name, x in checkpoint.tensors.items()]
    about = {"schema": SCHEMA, **checkpoint.about}
    write_safetensors(path, entries, {"subspan": json.dumps(about, allow_nan=False)})
    for _, older in _found(folder)[:-keep]:
        with contextlib.suppress(OSError):  # one too many does no harm
            older.unlink()
    return path


def latest_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint | None:
    """Read the latest checkpoint of a folder that is whole; None where there is none.

    Warns of a damaged one before it takes the one before.

    Raises
    ------
    FileFormatError
        There are checkpoints, and none of them can be read.
    """
    found = _found(folder)
    for number, (_, path) in enumerate(reversed(found)):
        try:
            return read_checkpoint(path)
        except FileFormatError as error:
            if number + 1 == len(found):
                raise
            warnings.warn(f"{error} The one before it is used.", stacklevel=2)
    return None


def read_checkpoint(path: str | os.PathLike[str], *, architecture: str | None = None) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path : path
    architecture : str, optional
        What it must be of.

    Raises
    ------
    FileFormatError
        The file is truncated or no checkpoint.
    InvalidArgumentError
        It is of another architecture.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise UnsupportedError(
            "[read_checkpoint] needs the package 'safetensors', which is not installed. "
            "Install it with: pip install 'subspan[models]'"
        ) from error
    name = os.fspath(path)
    try:
        with safe_open(name, "pt") as file:
            about = json.loads((file.metadata() or {}).get("subspan", "{}"))
            if about.get("schema") != SCHEMA:
                raise FileFormatError(
                    f"[read_checkpoint] path must be a checkpoint ({SCHEMA}), got {name!r} of "
                    f"schema {about.get('schema')!r}."
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        if isinstance(error, FileFormatError | FileNotFoundError):
            raise
        raise FileFormatError(
            f"[read_checkpoint] path must be a whole checkpoint, got {name!r} ({error})."
        ) from error
    checkpoint = Checkpoint(tensors, about)
    if architecture is not None:
        require_architecture(checkpoint, architecture)
    return checkpoint


def require_architecture(checkpoint: Checkpoint, architecture: str) -> None:
    """Raise unless a checkpoint is of an architecture."""
    if (came := checkpoint.about.get("architecture")) != architecture:
        raise InvalidArgumentError(
            f"[train] checkpoint must be of architecture {architecture!r}, got one of {came!r}. "
            "Make that autoencoder, or start anew in another folder"
        )


def require_shapes(wanted: Mapping[str, Any], came: Mapping[str, Any]) -> None:
    """Raise unless the tensors are those that are wanted, with their shapes and dtypes."""
    for name, x in wanted.items():
        if name not in came:
            raise InvalidArgumentError(
                f"[train] checkpoint must hold {name!r}, got one without. It is of another "
                "autoencoder or version"
            )
        if came[name].shape != x.shape or came[name].dtype != x.dtype:
            raise InvalidArgumentError(
                f"[train] checkpoint must hold {name!r} of shape {tuple(x.shape)} and {x.dtype}, "
                f"got {tuple(came[name].shape)} and {came[name].dtype}"
            )
    if extra := sorted(set(came) - set(wanted)):
        raise InvalidArgumentError(
            f"[train] checkpoint must hold nothing that is unknown here, got {extra[0]!r}. It is "
            "of another autoencoder or version"
        )


def _found(folder: str | os.PathLike[str]) -> list[tuple[int, Path]]:
    """Return steps and paths of all checkpoints, oldest first."""
    names = ((_NAME.fullmatch(path.name), path) for path in Path(folder).iterdir())
    return sorted((int(match[1]), path) for match, path in names if match)
