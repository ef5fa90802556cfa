"""The commands that look at models and activations as they are."""

from pathlib import Path
from typing import Annotated, Any

import typer

from subspan.cli._options import (
    Layers,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Texts,
    Threads,
    Window,
    count,
    layer_numbers,
    parts,
    required,
)
from subspan.cli._running import guarded, show

__all__ = ["activations", "atlas", "compare", "info"]


def atlas(  # noqa: PLR0917 - typer reads names, not positions
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hugging Face folder, .gguf file, or saved activations (.npy, .safetensors, or "
            "a folder of them).",
        ),
    ],
    texts: Texts = None,
    out: Out = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="N|all", help="Tokens to read. By default 8192 for a model, else all rows."
        ),
    ] = None,
    window: Window = None,
    batch_size: Annotated[int, typer.Option(help="Windows per batch.")] = 4,
    sites: Annotated[
        str | None,
        typer.Option(
            help="Kinds or module patterns, with commas. By default resid,attn,mlp,k,v (saved "
            "activations: every site)."
        ),
    ] = None,
    layers: Layers = None,
    outlier_factor: Annotated[
        float, typer.Option(help="A token is an outlier above this many median norms.")
    ] = 5.0,
    first_token: Annotated[
        str, typer.Option(help="First token of each window: auto, keep, outlier or drop.")
    ] = "auto",
    weights: Annotated[bool, typer.Option(help="Also describe the weight matrices.")] = True,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Measure the spectrum of every layer and write a report that says what was found."""
    from subspan.atlas import atlas as run

    def work(progress: Any) -> Any:
        return run(
            source,
            texts or None,
            out=required("atlas", out),
            tokens=count(tokens),
            window=window,
            batch_size=batch_size,
            sites=None if sites is None else parts(sites),
            layers=None if layers is None else layer_numbers("atlas", layers),
            outlier_factor=outlier_factor,
            first_token=first_token,
            weights=weights,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    show(guarded(work, quiet=quiet), quiet=quiet)


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
    out: Out = None,
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
    layers: Layers = None,
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
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Compare every layer of one model with every layer of another and write a report."""
    from subspan.comparison import compare_models as run

    def work(progress: Any) -> Any:
        return run(
            a,
            b,
            texts or None,
            out=required("compare_models", out),
            unit=unit,
            samples=count(samples),
            measures=parts(measures),
            n_permutations=permutations,
            level=level,
            null_layers=null_layers,
            dims=dims,
            noise=noise,
            keep=keep,
            sites=None if sites is None else parts(sites),
            layers=None if layers is None else layer_numbers("compare_models", layers),
            layers_b=None if layers_b is None else layer_numbers("compare_models", layers_b),
            outlier_factor=outlier_factor,
            window=window,
            batch_size=batch_size,
            seed=seed,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    show(guarded(work, quiet=quiet), quiet=quiet)


def activations(  # noqa: PLR0917 - typer reads names, not positions
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hugging Face folder, .gguf file, or saved activations (.npy, .safetensors, or "
            "a folder of them), which are copied.",
        ),
    ],
    texts: Texts = None,
    out: Out = None,
    sites: Annotated[
        str | None,
        typer.Option(
            help="Kinds or module patterns, with commas. By default resid (saved activations: "
            "every site)."
        ),
    ] = None,
    layers: Layers = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N|all", help="Tokens to read. By default all.")
    ] = None,
    window: Window = None,
    batch_size: Annotated[int, typer.Option(help="Windows per batch.")] = 4,
    dtype: Annotated[
        str, typer.Option(help="How to store values: float16, bfloat16 or float32.")
    ] = "float16",
    shard_mb: Annotated[
        float, typer.Option(help="Size of a shard in MB: memory, and what an interruption costs.")
    ] = 128,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Run a model over texts and store its activations, for training and for looking things up."""
    from subspan.activations import write_activations as run

    def work(progress: Any) -> Any:
        return run(
            source,
            texts or None,
            required("write_activations", out),
            sites=None if sites is None else parts(sites),
            layers=None if layers is None else layer_numbers("write_activations", layers),
            tokens=count(tokens),
            window=window,
            batch_size=batch_size,
            dtype=dtype,
            shard_mb=shard_mb,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )

    store = guarded(work, quiet=quiet)
    if not quiet:
        places = ", ".join(site.key for site in store.sites[:4])
        more = f" and {len(store.sites) - 4} more" if len(store.sites) > 4 else ""
        typer.echo(f"Stored {store.n_tokens:,} tokens at {places}{more} in {store.path}")


def info() -> None:
    """Print version, CPU level, threads and what this build can do."""
    import subspan

    config = subspan.show_config()
    width = max(map(len, config))
    for name, value in config.items():
        typer.echo(f"{name:<{width}}  {value}")
