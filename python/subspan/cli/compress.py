"""The command ``subspan compress``."""

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
    numbers,
    parts,
    required,
)
from subspan.cli._running import guarded, show

__all__ = ["compress"]


def compress(  # noqa: PLR0917 - typer reads names, not positions
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face folder or .gguf file.")
    ],
    texts: Texts = None,
    out: Out = None,
    method: Annotated[
        str,
        typer.Option(
            help="svd, asvd, fwsvd, whitened-svd, two-sided-svd, ksvd-dictionary or "
            "orthogonal-dictionary; several with commas."
        ),
    ] = "whitened-svd",
    kept: Annotated[
        str, typer.Option(help="Part of the bytes to keep, indices included; several with commas.")
    ] = "0.9,0.8,0.6",
    allocation: Annotated[
        str,
        typer.Option(
            help="uniform, error or loss: how the bytes are shared out; several with commas."
        ),
    ] = "uniform",
    evaluate: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out text; may be repeated. By default the end of each text."),
    ] = None,
    out_of_domain: Annotated[
        list[Path] | None, typer.Option(help="Text of another kind to judge by; may be repeated.")
    ] = None,
    modules: Annotated[
        str | None,
        typer.Option(help="Module patterns, with commas. By default all linear layers of blocks."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Calibration tokens in all.")] = 8192,
    eval_tokens: Annotated[int, typer.Option(help="Tokens of each text that judges.")] = 4096,
    window: Window = None,
    least: Annotated[
        float, typer.Option(help="No matrix falls below this, where shares are not uniform.")
    ] = 0.2,
    iterations: Annotated[int, typer.Option(help="Rounds of a dictionary, at most.")] = 20,
    ratio: Annotated[float, typer.Option(help="Atoms of a dictionary for each one used.")] = 2.0,
    dtype: Annotated[
        str, typer.Option(help="Stored values: float16, bfloat16 or float32.")
    ] = "float16",
    store: Annotated[bool, typer.Option(help="Keep the compressed models.")] = True,
    seed: Annotated[int, typer.Option(help="Of the calibration windows and gradients.")] = 0,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Replace the weights of a model by smaller ones, measure the loss, and write a report."""
    from subspan.compression import compress as run

    def work(progress: Any) -> Any:
        return run(
            model,
            texts or None,
            out=required("compress", out),
            methods=parts(method),
            kept=numbers("compress", "kept", kept),
            allocations=parts(allocation),
            evaluation=evaluate or None,
            out_of_domain=out_of_domain or None,
            modules=None if modules is None else parts(modules),
            tokens=tokens,
            eval_tokens=eval_tokens,
            window=window,
            least=least,
            iterations=iterations,
            ratio=ratio,
            dtype=dtype,
            store=store,
            seed=seed,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    show(guarded(work, quiet=quiet), quiet=quiet)
