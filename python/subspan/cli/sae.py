"""The commands on sparse autoencoders: ``subspan sae train``, ``eval``, ``report``, ``convert``."""

import ast
import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from subspan.cli._options import (
    Out,
    Overwrite,
    Quiet,
    Resume,
    Texts,
    Threads,
    Window,
    count,
    required,
)
from subspan.cli._running import guarded, show
from subspan.errors import InvalidArgumentError

__all__ = ["app", "convert", "evaluate", "report", "train"]

app = typer.Typer(
    name="sae",
    help="Train, judge, look at and convert sparse autoencoders.",
    no_args_is_help=True,
)

Sae = Annotated[
    str, typer.Argument(metavar="SAE", help="Folder or file of an autoencoder, in any format.")
]
SiteName = Annotated[
    str | None,
    typer.Option("--site", help="Where, as layer.15/resid; by default what the file says."),
]
OutlierFactor = Annotated[
    float,
    typer.Option(help="A token is an outlier above this many median norms; 0: none is."),
]
FirstToken = Annotated[
    str, typer.Option(help="First token of each window: auto, keep, outlier or drop.")
]


@app.command()
def train(  # noqa: PLR0917 - typer reads names, not positions
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hugging Face folder, .gguf file, or a store of activations.",
        ),
    ],
    texts: Texts = None,
    out: Out = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Where, as layer.15/resid or layer.03/mlp; by default the residual stream in the "
            "middle of the model."
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Short for --site: the residual stream entering a layer.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With a store: its model, for losses and logits.")
    ] = None,
    architecture: Annotated[
        str,
        typer.Option(
            help="topk, batch_topk, jumprelu, relu, gated, matryoshka, mutual_choice, "
            "feature_choice, matching_pursuit or orthogonal."
        ),
    ] = "topk",
    k: Annotated[
        float | None,
        typer.Option(help="Latents for each token. By default 32, where there is a k."),
    ] = None,
    expansion: Annotated[float, typer.Option(help="Latents for each dimension.")] = 8.0,
    n_latents: Annotated[
        int | None, typer.Option(help="Number of latents, in place of --expansion.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N|all", help="Tokens of text to read. By default all.")
    ] = None,
    train_tokens: Annotated[
        int | None, typer.Option(help="Tokens to train on. By default ten times those stored.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, in place of --train-tokens.")] = None,
    batch_size: Annotated[int, typer.Option(help="Tokens of a step.")] = 4096,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate. By default 2e-4 / sqrt(latents / 16384).")
    ] = None,
    warmup_steps: Annotated[int, typer.Option(help="Steps in which the rate rises.")] = 0,
    decay_steps: Annotated[int, typer.Option(help="Last steps in which it falls.")] = 0,
    init: Annotated[str, typer.Option(help="tied or active_subspace.")] = "tied",
    precision: Annotated[
        str, typer.Option(help="certified, by way of bfloat16, or exact: the bits are the same.")
    ] = "certified",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A further option of the architecture (make_sae) or of the training "
            "(TrainConfig). May be repeated.",
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the text that is kept for measuring.")
    ] = 0.05,
    eval_tokens: Annotated[int, typer.Option(help="Tokens for the losses, at most.")] = 16384,
    report_tokens: Annotated[
        str, typer.Option(metavar="N|all", help="Tokens for the cards, at most.")
    ] = "262144",
    window: Window = None,
    store_dtype: Annotated[
        str, typer.Option(help="How to store activations: float16, bfloat16 or float32.")
    ] = "float16",
    outlier_factor: OutlierFactor = 5.0,
    first_token: FirstToken = "auto",
    seed: Annotated[int, typer.Option(help="Of the weights and the order of the tokens.")] = 0,
    threads: Threads = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Store activations, train an autoencoder on them, measure it, and write the report."""
    from subspan.sae import study as run

    def work(progress: Any) -> Any:
        options, settings = _options(option or [])
        given = {"lr": lr, "steps": steps, "train_tokens": train_tokens}
        settings |= {name: value for name, value in given.items() if value is not None}
        settings |= {"batch_size": batch_size, "init": None if init == "none" else init}
        settings |= {"warmup_steps": warmup_steps, "decay_steps": decay_steps}
        return run(
            source,
            texts or None,
            out=required("study", out),
            site=_site(site, layer),
            model=model,
            architecture=architecture,
            k=None if k is None else int(k) if k == int(k) else k,
            expansion=expansion,
            n_latents=n_latents,
            options={"precision": precision, **options},
            tokens=count(tokens),
            window=window,
            store_dtype=store_dtype,
            exclude=_rule(outlier_factor, first_token),
            held_out=held_out,
            eval_tokens=eval_tokens,
            report_tokens=_limit("report_tokens", report_tokens),
            seed=seed,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            **settings,
        )

    show(guarded(work, quiet=quiet), quiet=quiet)


@app.command("eval")
def evaluate(  # noqa: PLR0917 - typer reads names, not positions
    sae: Sae,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face folder or .gguf file.")
    ],
    texts: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="UTF-8 text files.")],
    site: SiteName = None,
    tokens: Annotated[str, typer.Option(metavar="N|all", help="Tokens to read, at most.")] = "8192",
    window: Window = None,
    batch_size: Annotated[int, typer.Option(help="Windows per batch.")] = 4,
    outlier_factor: OutlierFactor = 5.0,
    first_token: FirstToken = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON in place of a table.")
    ] = False,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no bar.")] = False,
) -> None:
    """Put an autoencoder into a model and print what the model loses."""
    from subspan.activations.sources import set_threads
    from subspan.sae import evaluate as run

    def work(progress: Any) -> Any:
        if threads is not None:
            set_threads("evaluate", threads, model=True)
        loaded = _load(sae)
        return run(
            loaded,
            model,
            texts,
            site=_known_site("evaluate", loaded, site),
            tokens=_limit("tokens", tokens),
            window=window,
            batch_size=batch_size,
            exclude=_rule(outlier_factor, first_token),
            progress=progress,
        )

    found = guarded(work, quiet=quiet).to_dict()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, value in _flat(found):
        typer.echo(f"{name:<34}{value}")


@app.command()
def report(  # noqa: PLR0917 - typer reads names, not positions
    sae: Sae,
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Hugging Face folder, .gguf file, or a store of activations."
        ),
    ],
    texts: Texts = None,
    out: Out = None,
    site: SiteName = None,
    model: Annotated[
        str | None, typer.Option(help="With a store: its model, for the effects on its logits.")
    ] = None,
    tokens: Annotated[
        str, typer.Option(metavar="N|all", help="Tokens to read, at most.")
    ] = "65536",
    window: Window = None,
    losses: Annotated[
        bool, typer.Option(help="Also measure what the model loses, on a part of the texts.")
    ] = True,
    outlier_factor: OutlierFactor = 5.0,
    first_token: FirstToken = "auto",
    seed: Annotated[int, typer.Option(help="Of the places drawn at random.")] = 0,
    threads: Threads = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write a page with a card for every latent of an autoencoder."""
    from subspan.activations import load_model
    from subspan.sae import evaluate as measure
    from subspan.sae import report as run

    def work(progress: Any) -> Any:
        loaded, rule = _load(sae), _rule(outlier_factor, first_token)
        place = _known_site("report", loaded, site)
        found, opened = None, cast("Any", source)
        folder = required("report", out)
        if losses and texts:  # a store has its own
            opened = load_model(source)
            found = measure(
                loaded, opened, texts, site=place, window=window, exclude=rule, progress=progress
            )
        return run(
            loaded,
            opened,
            texts or None,
            out=folder,
            site=place,
            model=model,
            tokens=_limit("tokens", tokens),
            window=window,
            exclude=rule,
            evaluation=found,
            seed=seed,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
        )

    show(guarded(work, quiet=quiet), quiet=quiet)


@app.command()
def convert(
    source: Sae,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    to: Annotated[
        str, typer.Option("--to", help="subspan, saelens, sparsify or dictionary_learning.")
    ] = "saelens",
    quiet: Quiet = False,
) -> None:
    """Write an autoencoder in another format; every known format is read."""
    from subspan.sae.formats import save

    def work(_: Any) -> Any:
        loaded = _load(source)
        save(loaded, out, format=to)
        return loaded

    loaded = guarded(work, quiet=True)
    if not quiet:
        typer.echo(f"{loaded!r} in {out}, format {to}")


def _load(path: str) -> Any:
    from subspan.sae.formats import load

    return load(path)


def _known_site(function: str, sae: Any, site: str | None) -> str:
    """Return the site that is asked for, or the one in the file."""
    known = site or sae.metadata.get("site")
    if not known:
        raise InvalidArgumentError(
            f"[{function}] --site must name the site of the autoencoder, whose file does not, as "
            "layer.15/resid"
        )
    return str(known)


def _site(site: str | None, layer: int | None) -> str | None:
    if site is not None and layer is not None:
        raise InvalidArgumentError("[study] at most one of --site and --layer must be given")
    return site if layer is None else f"layer.{layer:02d}/resid"


def _rule(factor: float, first_token: str) -> Any:
    from subspan.activations import OutlierRule

    if factor == 0 and first_token == "auto":
        return None
    return OutlierRule(factor=factor, first_token=first_token)  # type: ignore[arg-type]


def _limit(name: str, text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise InvalidArgumentError(f"[sae] {name} must be a number or 'all', got {text!r}")
    return int(text)


def _options(given: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read NAME=VALUE and part what belongs to the training from what is the architecture's."""
    from dataclasses import fields

    from subspan.sae import TrainConfig

    known = {field.name for field in fields(TrainConfig)}
    options: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise InvalidArgumentError(f"[study] --option must look like NAME=VALUE, got {text!r}")
        (settings if name in known else options)[name] = _value(value)
    return options, settings


def _value(text: str) -> Any:
    """Read a number, a list or a truth value; anything else is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _flat(found: dict[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return nested values line by line."""
    lines: list[tuple[str, str]] = []
    for name, value in found.items():
        whole = f"{before}{name}"
        if isinstance(value, dict):
            lines += _flat(value, f"{whole}.")
        else:
            lines.append((whole, f"{value:.6g}" if isinstance(value, float) else str(value)))
    return lines
