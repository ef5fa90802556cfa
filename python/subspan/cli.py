"""The ``subspan`` command. Every command is one Python call; here are only words and a bar."""

from pathlib import Path
from typing import Annotated, Any

from subspan.errors import InternalError, InvalidArgumentError, SubspanError

try:
    import typer
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text
except ImportError as error:  # the command itself: a line to read, not a traceback
    raise SystemExit(
        f"subspan: the command needs typer and rich ({error}). "
        "Install them with: pip install 'subspan[report]'"
    ) from error

__all__ = ["app", "main"]

app = typer.Typer(
    name="subspan",
    help="Find, compare, encode and compress subspaces of features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_STAGES = {
    "loading": "loading",
    "tokens": "reading tokens",
    "activations": "activations",
    "spectra": "spectra",
    "weights": "weights",
    "report": "writing the report",
}

# Options that every job has.
_Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Output folder (required).", show_default=False),
]
_Layers = Annotated[str | None, typer.Option(help="Layers, as 3,7 or start:stop:step (0:30:2).")]
_Threads = Annotated[int | None, typer.Option(help="Threads to use.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Insist on continuing an interrupted run.")]
_Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a run that lies in the output folder.")
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]


def main() -> None:
    """Run the command line."""
    app()


@app.callback()
def _root() -> None:
    """Find, compare, encode and compress subspaces of features."""


@app.command()
def atlas(  # noqa: PLR0917 - typer reads names, not positions
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hugging Face folder, .gguf file, or saved activations (.npy, .safetensors, or "
            "a folder of them).",
        ),
    ],
    texts: Annotated[
        list[Path] | None, typer.Argument(metavar="[TEXT]...", help="UTF-8 text files.")
    ] = None,
    out: _Out = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N|all", help="Tokens to read. By default 8192 for a model, else all rows."
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens per window. By default 512, or the model's context if shorter."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per batch.")] = 4,
    sites: Annotated[
        str | None,
        typer.Option(
            help="Kinds or module patterns, with commas. By default resid,attn,mlp,k,v (saved "
            "activations: every site)."
        ),
    ] = None,
    layers: _Layers = None,
    outlier_factor: Annotated[
        float, typer.Option(help="A token is an outlier above this many median norms.")
    ] = 5.0,
    first_token: Annotated[
        str, typer.Option(help="First token of each window: auto, keep, outlier or drop.")
    ] = "auto",
    weights: Annotated[bool, typer.Option(help="Also describe the weight matrices.")] = True,
    threads: _Threads = None,
    resume: _Resume = False,
    overwrite: _Overwrite = False,
    quiet: _Quiet = False,
) -> None:
    """Measure the spectrum of every layer and write a report that says what was found."""
    from subspan.atlas import atlas as run

    def work(progress: Any) -> Any:
        return run(
            source,
            texts or None,
            out=_required("atlas", out),
            tokens=_count(tokens),
            window=window,
            batch_size=batch_size,
            sites=None if sites is None else _parts(sites),
            layers=None if layers is None else _layers("atlas", layers),
            outlier_factor=outlier_factor,
            first_token=first_token,
            weights=weights,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    _show(_guarded(work, quiet=quiet), quiet=quiet)


@app.command()
def compare(  # noqa: PLR0917 - typer reads names, not positions
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Hugging Face folder, .gguf file, or saved activations (.npy, .safetensors, or "
            "a folder of them).",
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(
            metavar="B", help="Another of the same kind; also A itself, with --noise or --keep."
        ),
    ],
    texts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[TEXT]...", help="UTF-8 text files that both models read."),
    ] = None,
    out: _Out = None,
    unit: Annotated[
        str,
        typer.Option(help="A sample: token, line (mean over its tokens), or auto."),
    ] = "auto",
    samples: Annotated[
        str | None,
        typer.Option(
            metavar="N|all", help="Samples to read. By default 2048 for models, else all rows."
        ),
    ] = None,
    measures: Annotated[
        str, typer.Option(help="Measures, with commas; the first decides on the matches.")
    ] = "cka,svcca,procrustes",
    permutations: Annotated[int, typer.Option(help="Permutations for the null; 0: none.")] = 20,
    level: Annotated[float, typer.Option(help="Of the null: part of the permutations.")] = 0.95,
    null_layers: Annotated[
        int, typer.Option(help="Layers of either side with a null of their own.")
    ] = 6,
    dims: Annotated[int, typer.Option(help="Dimension of the leading subspaces.")] = 16,
    noise: Annotated[
        float, typer.Option(help="Noise on the weights of B, as a part of their size.")
    ] = 0.0,
    keep: Annotated[
        float, typer.Option(help="Part of the singular values of B's weights to keep.")
    ] = 1.0,
    sites: Annotated[
        str | None,
        typer.Option(help="Kinds or module patterns, with commas. By default resid."),
    ] = None,
    layers: _Layers = None,
    layers_b: Annotated[
        str | None, typer.Option(help="Layers of B. By default those of A if equally deep.")
    ] = None,
    outlier_factor: Annotated[
        float, typer.Option(help="A token is an outlier above this many median norms.")
    ] = 5.0,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens per window. By default 512, or less for short contexts."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per batch.")] = 8,
    seed: Annotated[int, typer.Option(help="Of permutations and noise.")] = 0,
    threads: _Threads = None,
    resume: _Resume = False,
    overwrite: _Overwrite = False,
    quiet: _Quiet = False,
) -> None:
    """Compare every layer of one model with every layer of another and write a report."""
    from subspan.comparison import compare_models as run

    def work(progress: Any) -> Any:
        return run(
            a,
            b,
            texts or None,
            out=_required("compare_models", out),
            unit=unit,
            samples=_count(samples),
            measures=_parts(measures),
            n_permutations=permutations,
            level=level,
            null_layers=null_layers,
            dims=dims,
            noise=noise,
            keep=keep,
            sites=None if sites is None else _parts(sites),
            layers=None if layers is None else _layers("compare_models", layers),
            layers_b=None if layers_b is None else _layers("compare_models", layers_b),
            outlier_factor=outlier_factor,
            window=window,
            batch_size=batch_size,
            seed=seed,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    _show(_guarded(work, quiet=quiet), quiet=quiet)


@app.command()
def activations(  # noqa: PLR0917 - typer reads names, not positions
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hugging Face folder, .gguf file, or saved activations (.npy, .safetensors, or "
            "a folder of them), which are copied.",
        ),
    ],
    texts: Annotated[
        list[Path] | None, typer.Argument(metavar="[TEXT]...", help="UTF-8 text files.")
    ] = None,
    out: _Out = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="Kinds or module patterns, with commas. By default resid (saved activations: "
            "every site)."
        ),
    ] = None,
    layers: _Layers = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N|all", help="Tokens to read. By default all.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens per window. By default 512, or the model's context if shorter."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Windows per batch.")] = 4,
    dtype: Annotated[
        str, typer.Option(help="How to store values: float16, bfloat16 or float32.")
    ] = "float16",
    shard_mb: Annotated[
        float, typer.Option(help="Size of a shard in MB: memory, and what an interruption costs.")
    ] = 128,
    threads: _Threads = None,
    resume: _Resume = False,
    overwrite: _Overwrite = False,
    quiet: _Quiet = False,
) -> None:
    """Run a model over texts and store its activations, for training and for looking things up."""
    from subspan.activations import write_activations as run

    def work(progress: Any) -> Any:
        return run(
            source,
            texts or None,
            _required("write_activations", out),
            sites=None if sites is None else _parts(sites),
            layers=None if layers is None else _layers("write_activations", layers),
            tokens=_count(tokens),
            window=window,
            batch_size=batch_size,
            dtype=dtype,
            shard_mb=shard_mb,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    store = _guarded(work, quiet=quiet)
    if not quiet:
        places = ", ".join(site.key for site in store.sites[:4])
        more = f" and {len(store.sites) - 4} more" if len(store.sites) > 4 else ""
        typer.echo(f"Stored {store.n_tokens:,} tokens at {places}{more} in {store.path}")


@app.command()
def info() -> None:
    """Print version, CPU level, threads and what this build can do."""
    import subspan

    config = subspan.show_config()
    width = max(map(len, config))
    for name, value in config.items():
        typer.echo(f"{name:<{width}}  {value}")


def _required(function: str, out: Path | None) -> Path:
    if out is None:
        raise InvalidArgumentError(f"[{function}] --out must name a folder, got none")
    return out


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _count(text: str | None) -> int | str | None:
    """Read a number; other words go on, to be judged by the job."""
    return int(text) if text is not None and text.isdecimal() else text


def _layers(function: str, text: str) -> list[int]:
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


def _show(result: Any, *, quiet: bool) -> None:
    """Print the verdict and where the page lies."""
    if not quiet:
        console = Console()
        console.print()
        console.print(result.summary, markup=False, highlight=False)
        console.print()
        console.print(f"Report: {result.page}", markup=False, highlight=False, soft_wrap=True)


class _Rate(ProgressColumn):
    """Tokens per second, once there is a speed."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None or not task.total else f"{speed:,.0f}/s")


def _guarded(work: Any, *, quiet: bool) -> Any:
    """Run ``work(progress)`` with a bar; turn every failure into one message and an exit code."""
    errors = Console(stderr=True)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=quiet,
    )
    tasks: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in tasks:
            for task in tasks.values():
                bar.stop_task(task)
                bar.update(task, visible=False)
            tasks[stage] = bar.add_task(_STAGES.get(stage, stage), total=total or None)
        bar.update(tasks[stage], completed=done)

    try:
        with bar:
            return work(progress)
    except KeyboardInterrupt:
        message = "Interrupted. Run the same command again: it resumes from the last checkpoint."
        code = 130
    except InternalError as error:
        message, code = f"Internal error: {error}", 1
    except (SubspanError, FileNotFoundError, PermissionError) as error:
        message, code = f"Error: {_text(error)}", 2
    except Exception as error:
        # a fault of ours: still one line, with the place to look at
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = (
            f" ({Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno})" if where else ""
        )
        message, code = f"Internal error: {type(error).__name__}: {error}{place}", 1
    errors.print(message, markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _text(error: BaseException) -> str:
    # an OSError would print as "[Errno 28] ...": the message and the path are what a user needs
    if isinstance(error, OSError) and error.strerror:
        path = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{path}"
    return str(error)


if __name__ == "__main__":
    main()
