"""What options of several commands share: their words, and how their texts are read."""

from pathlib import Path
from typing import Annotated

import typer

from subspan.errors import InvalidArgumentError

__all__ = [
    "Layers",
    "Out",
    "Overwrite",
    "Quiet",
    "Resume",
    "Texts",
    "Threads",
    "Window",
    "count",
    "layer_numbers",
    "numbers",
    "parts",
    "required",
]

Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Output folder (required).", show_default=False),
]
Layers = Annotated[str | None, typer.Option(help="Layers, as 3,7 or start:stop:step (0:30:2).")]
Threads = Annotated[int | None, typer.Option(help="Threads to use.")]
Resume = Annotated[bool, typer.Option("--resume", help="Insist on continuing an interrupted run.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a run that lies in the output folder.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]
Texts = Annotated[list[Path] | None, typer.Argument(metavar="[TEXT]...", help="UTF-8 text files.")]
Window = Annotated[
    int | None,
    typer.Option(help="Tokens per window. By default 512, or the model's context if shorter."),
]


def required(function: str, out: Path | None) -> Path:
    """Return the output folder, or say that it must be named."""
    if out is None:
        raise InvalidArgumentError(f"[{function}] --out must name a folder, got none")
    return out


def parts(text: str) -> list[str]:
    """Read a list with commas."""
    return [part.strip() for part in text.split(",")]


def numbers(function: str, name: str, text: str) -> list[float]:
    """Read numbers with commas."""
    try:
        return [float(part) for part in parts(text)]
    except ValueError:
        raise InvalidArgumentError(
            f"[{function}] {name} must be numbers with commas, such as 0.9,0.8, got {text!r}"
        ) from None


def count(text: str | None) -> int | str | None:
    """Read a number; other words go on, to be judged by the job."""
    return int(text) if text is not None and text.isdecimal() else text


def layer_numbers(function: str, text: str) -> list[int]:
    """Read ``3,7`` or ``start:stop:step`` (also mixed: ``0:4,10``)."""
    chosen: list[int] = []
    for part in text.split(","):
        try:
            numbers = [int(piece) for piece in part.split(":")]
            if len(numbers) == 1:
                chosen += numbers
                continue
            chosen += range(*numbers)
        except (ValueError, TypeError) as error:
            raise InvalidArgumentError(
                f"[{function}] layers must look like 3,7 or 0:30:2 (start:stop:step), got {text!r}"
            ) from error
    if not chosen:
        raise InvalidArgumentError(
            f"[{function}] layers must choose at least one layer, got {text!r}"
        )
    return sorted(set(chosen))
