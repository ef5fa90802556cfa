"""The command ``subspan kv``."""

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

__all__ = ["kv"]


def kv(  # noqa: PLR0917 - typer reads names, not positions
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face folder or .gguf file.")
    ],
    texts: Texts = None,
    out: Out = None,
    method: Annotated[
        str,
        typer.Option(
            help="channels, pca, score-aware, loss-aware or trained; several with commas."
        ),
    ] = "pca,loss-aware",
    kept: Annotated[
        str, typer.Option(help="Part of the cache's bytes to keep; several with commas.")
    ] = "0.75,0.5",
    allocation: Annotated[
        str,
        typer.Option(help="uniform, loss (predicted) or search (measured); several with commas."),
    ] = "uniform,loss",
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
    step: Annotated[
        int | None,
        typer.Option(help="Ranks are multiples of this where not uniform; an eighth of a head."),
    ] = None,
    least: Annotated[
        float, typer.Option(help="No head falls below this part, where ranks are not uniform.")
    ] = 0.375,
    training: Annotated[int, typer.Option(help="Steps of training, a window each.")] = 200,
    rate: Annotated[float, typer.Option(help="Rate of the training.")] = 1e-3,
    search_tokens: Annotated[int, typer.Option(help="Tokens that a search measures by.")] = 512,
    dtype: Annotated[
        str, typer.Option(help="Stored numbers: float16, bfloat16 or float32.")
    ] = "float16",
    store: Annotated[bool, typer.Option(help="Keep the plans.")] = True,
    seed: Annotated[int, typer.Option(help="Of windows, gradients and training.")] = 0,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Hold a model's keys and values in fewer dimensions, measure the loss, and write a report."""
    from subspan.compression import compress_cache as run

    def work(progress: Any) -> Any:
        return run(
            model,
            texts or None,
            out=required("kv", out),
            methods=parts(method),
            kept=numbers("kv", "kept", kept),
            allocations=parts(allocation),
            evaluation=evaluate or None,
            out_of_domain=out_of_domain or None,
            tokens=tokens,
            eval_tokens=eval_tokens,
            window=window,
            step=step,
            least=least,
            training=training,
            rate=rate,
            search_tokens=search_tokens,
            dtype=dtype,
            store=store,
            seed=seed,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    show(guarded(work, quiet=quiet), quiet=quiet)
