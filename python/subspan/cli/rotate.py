"""The command ``subspan rotate``."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

from subspan.cli._options import (
    Out,
    Overwrite,
    Quiet,
    Resume,
    Texts,
    Threads,
    Window,
    parts,
    required,
)
from subspan.cli._running import guarded, show
from subspan.errors import InvalidArgumentError

__all__ = ["rotate"]


def rotate(  # noqa: PLR0917 - typer reads names, not positions
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face folder or .gguf file, like Llama.")
    ],
    texts: Texts = None,
    out: Out = None,
    scheme: Annotated[
        str,
        typer.Option(help="none, hadamard, outliers, pca or resq; several with commas."),
    ] = "none,hadamard,resq",
    bits: Annotated[
        str, typer.Option(help="Of all numbers, or of the low part; several with commas.")
    ] = "4,8",
    high: Annotated[
        str, typer.Option(help="Part of the coordinates that gets more bits, as 1/8 or 0.125.")
    ] = "1/8",
    high_bits: Annotated[int, typer.Option(help="Of these coordinates.")] = 8,
    round_: Annotated[
        str, typer.Option("--round", help="weights, activations, cache: any of them, with commas.")
    ] = "weights,activations,cache",
    block: Annotated[
        int, typer.Option(help="Inputs of the last matrix of an MLP that are turned together.")
    ] = 256,
    clip: Annotated[
        bool, typer.Option(help="Shrink the range of a row of weights where that helps.")
    ] = True,
    evaluate: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out text; may be repeated. By default the end of each text."),
    ] = None,
    out_of_domain: Annotated[
        list[Path] | None, typer.Option(help="Text of another kind to judge by; may be repeated.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Calibration tokens in all.")] = 8192,
    eval_tokens: Annotated[int, typer.Option(help="Tokens of each text that judges.")] = 4096,
    window: Window = None,
    dtype: Annotated[
        str, typer.Option(help="Stored scales: float16, bfloat16 or float32.")
    ] = "float16",
    store: Annotated[bool, typer.Option(help="Keep the rounded models.")] = True,
    seed: Annotated[int, typer.Option(help="Of the calibration windows and the turns.")] = 0,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Round a model to few bits in several bases, measure the loss, and write a report."""
    from subspan.compression import rotate as run

    def work(progress: Any) -> Any:
        return run(
            model,
            texts or None,
            out=required("rotate", out),
            schemes=parts(scheme),
            bits=_whole(bits),
            high_bits=high_bits,
            high_fraction=_fraction(high),
            parts=parts(round_),
            block=block,
            clip=clip,
            evaluation=evaluate or None,
            out_of_domain=out_of_domain or None,
            tokens=tokens,
            eval_tokens=eval_tokens,
            window=window,
            dtype=dtype,
            store=store,
            seed=seed,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    show(guarded(work, quiet=quiet), quiet=quiet)


def _whole(text: str) -> list[int]:
    try:
        return [int(part) for part in parts(text)]
    except ValueError:
        raise InvalidArgumentError(
            f"[rotate] bits must be whole numbers with commas, such as 4,8, got {text!r}"
        ) from None


def _fraction(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise InvalidArgumentError(
            f"[rotate] high must be a fraction such as 1/8 or 0.125, got {text!r}"
        ) from None
