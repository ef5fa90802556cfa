"""The whole job on a model: activations to disk, training, losses on held-out text, the report."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from subspan import _checks
from subspan.activations import (
    ActivationStore,
    OutlierRule,
    Site,
    TokenBatch,
    find_sites,
    load_model,
    write_activations,
)
from subspan.activations.sources import set_threads
from subspan.errors import InvalidArgumentError
from subspan.report import RunFolder, Stopwatch
from subspan.report.result import Progress, silent
from subspan.sae._adapter import Coder
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.cards._collect import Context
from subspan.sae.cards._job import RESULTS, Job, training_facts
from subspan.sae.cards._source import Blocks, is_store
from subspan.sae.cards.reporting import Report
from subspan.sae.evaluation import Evaluation, evaluate

__all__ = ["study"]

_SCHEMA = "subspan.sae.study/1"
_WITH_K = (
    *("topk", "batch_topk", "matryoshka", "mutual_choice", "feature_choice"),
    *("matching_pursuit", "orthogonal"),
)
_K = 32
_BLOCK = 8192  # rows whose norms and places are looked at together
_EPOCHS = 10


def study(
    source: Any,
    texts: Any = None,
    *,
    out: str | os.PathLike[str],
    site: str | Site | None = None,
    model: Any = None,
    architecture: str = "topk",
    k: float | None = None,
    expansion: float = 8.0,
    n_latents: int | None = None,
    options: Mapping[str, Any] | None = None,
    tokens: int | str | None = None,
    window: int | None = None,
    store_dtype: str = "float16",
    exclude: OutlierRule | None = OutlierRule(),  # noqa: B008 - frozen
    held_out: float = 0.05,
    eval_tokens: int = 16384,
    report_tokens: int | None = 262144,
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Report:
    """Train a sparse autoencoder on a site of a model, and judge it on text it has not seen.

    Activations are written to a store, an autoencoder is trained on them, spliced into the model to
    measure what it loses, and every latent gets a card on a page.

    Parameters
    ----------
    source : str, Path, Model, or ActivationStore
        A causal language model, which reads ``texts``, or a store of its activations.
    texts : str, Path, iterable of them, optional
        Needed with a model.
    out : path
        Output folder: new, empty, or holding an interrupted run of the same settings, which goes
        on where it stopped.
    site : str or Site, optional
        Where; by default the residual stream entering the middle layer, or the site of the store.
    model : str, Path or Model, optional
        With a store: its model. Without it there are no losses, and no effects on logits.
    architecture : str
        See `make_sae`.
    k : float, optional
        Latents for each token, of architectures that have it; by default 32.
    expansion : float
        Latents for each dimension of the activations; ``n_latents`` gives their number instead.
    options : mapping, optional
        Further arguments of the class of the architecture.
    tokens : int or "all", optional
        Tokens of text to read; by default all.
    window : int, optional
        Tokens of a window; by default 512, or the context length if that is shorter.
    store_dtype : {"float16", "bfloat16", "float32"}
        How activations are stored.
    exclude : OutlierRule, optional
        Tokens that the rule calls outliers, or drops, are neither trained on nor replaced. A few
        of them hold nearly all of the variance of some layers (see `subspan.atlas`), and an
        autoencoder would learn nothing else. None: all tokens count.
    held_out : float
        Share of the windows that are kept from training, spread evenly over the text; the losses
        are measured on them.
    eval_tokens, report_tokens : int
        Tokens for the losses at most, and for the cards (None: all).
    seed : int
        Of the weights and of the order of the rows.
    threads : int, optional
    resume, overwrite : bool
        Insist on an interrupted run; replace whatever run lies in ``out``.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    **settings
        Fields of `TrainConfig`. Unless steps or tokens are given as ``steps`` or ``train_tokens``,
        ten times the stored tokens are trained on, and unless ``dead_after_tokens`` is, a latent
        counts as dead after a tenth of the training without firing.

    Returns
    -------
    Report
        The folder has the autoencoder in ``sae`` (see `Autoencoder.load`), the run in ``training``,
        the activations in ``store``, and the files of `report`.

    Raises
    ------
    InvalidArgumentError
        An argument is wrong, or does not fit another.
    OutputError
        The folder cannot be used, or the disk is full; the same call goes on from there.

    Notes
    -----
    Time and memory: those of `write_activations`, `train`, `evaluate` and `report`, one after the
    other. The disk takes 2 bytes (4 for float32) for each token and dimension.
    """
    stages, watch = progress or silent, Stopwatch()
    _checks.real("study", "held_out", held_out, low=0.0, high=0.5)
    _checks.real("study", "expansion", expansion, low=1e-6)
    asked = {
        "source": _name(source), "site": None if site is None else _key(site),
        "architecture": architecture, "k": k, "expansion": expansion, "n_latents": n_latents,
        "options": dict(options or {}), "tokens": tokens, "window": window,
        "store_dtype": store_dtype, "exclude": repr(exclude), "held_out": held_out,
        "eval_tokens": eval_tokens, "report_tokens": report_tokens, "seed": seed,
        "settings": settings,
    }  # fmt: skip
    stored = is_store(source)
    _check_texts(stored, texts)
    folder = RunFolder(out, kind="study", results=(*RESULTS, "sae", "store", "training"))
    folder.check(resume=resume, overwrite=overwrite)
    if threads is not None:
        set_threads("study", threads, model=True)
    with watch.part("loading"):
        stages("loading", 0, 1)
        given = model if stored else source
        opened = None if given is None else load_model(given)
        if not stored:
            site = _one_site(opened, site)
    with folder.held({"schema": _SCHEMA, **asked}, overwrite=overwrite) as resumed:
        with watch.part("activations"):
            store = _store(
                source, texts, opened, folder.path / "store", site, fresh=not resumed,
                tokens=tokens, window=window, dtype=store_dtype, progress=stages,
            )  # fmt: skip
        blocks = Blocks(
            "study", store, None, model=opened, site=site, tokens=report_tokens, window=None,
            batch_size=1,
        )  # fmt: skip
        parts = _parts(store, blocks.site, exclude, held_out)
        with watch.part("training"):
            sae = _trained(
                store, blocks.site, parts, folder.path / "training", fresh=not resumed,
                size=n_latents or round(expansion * store.width(blocks.site)),
                architecture=architecture, options=_options(architecture, k, options, seed),
                settings=_settings(settings, store.n_tokens, seed), progress=stages,
            )  # fmt: skip
        found = None
        if opened is not None and parts.windows:
            with watch.part("evaluation"):
                found = _evaluated(
                    sae, opened, store, parts, blocks.site, eval_tokens, exclude, stages
                )
        job = Job(
            Coder("study", sae), blocks, Context(seed=seed), exclude, effects=8, near=5, watch=watch
        )
        made = job.write(
            folder, evaluation=found, training=training_facts(folder.path / "training"),
            progress=stages, resumed=resumed, held_out=held_out,
            also=lambda stage: sae.save(stage / "sae"),
        )  # fmt: skip
    return Report(folder.path, made)


@dataclass(frozen=True)
class _Parts:
    """How the rows of a store are used."""

    not_trained: np.ndarray
    """(n_tokens,) bool: outliers, and what is held out."""
    held_out: np.ndarray
    """Rows held out that are no outliers."""
    windows: list[tuple[int, int]]
    """The windows that are held out."""


class _Windows(Sequence[TokenBatch]):
    """Windows of a store as batches of tokens, read when they are asked for."""

    def __init__(self, store: ActivationStore, windows: list[tuple[int, int]]) -> None:
        self._store, self._windows = store, windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: Any) -> Any:
        return self._store.tokens(*self._windows[index])


def _store(
    source: Any,
    texts: Any,
    model: Any,
    place: Path,
    site: Any,
    *,
    fresh: bool,
    **options: Any,
) -> ActivationStore:
    """Return the store: the one given, the one that is finished already, or a new one."""
    if is_store(source):
        return source if isinstance(source, ActivationStore) else ActivationStore(source)
    if not fresh and is_store(place):
        return ActivationStore(place)
    return write_activations(
        model, texts, place, sites=[site], overwrite=fresh and place.exists(), **options
    )


def _check_texts(stored: bool, texts: Any) -> None:
    if stored and texts is not None:
        raise InvalidArgumentError(
            "[study] texts must be left out for a store, which has its own, got "
            f"{type(texts).__name__}"
        )
    if not stored and texts is None:
        raise InvalidArgumentError("[study] texts must be given with a model, got none")


def _one_site(model: Any, site: str | Site | None) -> Site:
    """Return the site that is asked for, by default the residual stream in the middle."""
    wanted = f"layer.{model.n_layers // 2:02d}/resid" if site is None else site
    found = find_sites(model, [wanted])
    if len(found) != 1:
        raise InvalidArgumentError(
            f"[study] site must name one site, got {site!r}, which names {len(found)}"
        )
    return found[0]


def _parts(store: ActivationStore, site: Site, rule: OutlierRule | None, held_out: float) -> _Parts:
    """Find outliers, and hold out every so many windows."""
    outlier = np.zeros(store.n_tokens, bool)
    begins = []
    reference: float | None = None
    for start in range(0, store.n_tokens, _BLOCK):
        stop = min(start + _BLOCK, store.n_tokens)
        first = store.tokens(start, stop).first_in_window
        begins.append(start + np.flatnonzero(first))
        if rule is not None:
            norms = store.norms(site, start, stop)
            reference = rule.reference(norms, first) if reference is None else reference
            outlier[start:stop] = ~rule.classify(norms, first, reference).ordinary
    borders = np.append(np.concatenate(begins), store.n_tokens)
    out = np.zeros(store.n_tokens, bool)
    windows: list[tuple[int, int]] = []
    if held_out:
        every = max(2, round(1 / held_out))
        chosen = np.arange(len(borders) - 1)[every // 2 :: every]
        windows = [(int(borders[i]), int(borders[i + 1])) for i in chosen]
    for start, stop in windows:
        out[start:stop] = True
    if (out | outlier).all():
        raise InvalidArgumentError(
            f"[study] texts must leave tokens to train on, got {store.n_tokens} of which all are "
            "outliers or held out. Give more text, or held_out=0"
        )
    return _Parts(out | outlier, np.flatnonzero(out & ~outlier), windows)


def _options(
    architecture: str, k: float | None, options: Mapping[str, Any] | None, seed: int
) -> dict[str, Any]:
    made: dict[str, Any] = {"seed": seed, **(options or {})}
    if k is not None or architecture in _WITH_K:
        made.setdefault("k", _K if k is None else k)
    return made


def _settings(given: Mapping[str, Any], stored: int, seed: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"seed": seed, **given}
    if "train_tokens" in settings:
        settings["tokens"] = settings.pop("train_tokens")
    elif "steps" not in settings:
        settings["tokens"] = _EPOCHS * stored
    total = settings.get("tokens") or settings["steps"] * settings.get("batch_size", 4096)
    settings.setdefault("dead_after_tokens", max(1, total // 10))
    return settings


def _trained(
    store: ActivationStore,
    site: Site,
    parts: _Parts,
    place: Path,
    *,
    fresh: bool,
    size: int,
    architecture: str,
    options: dict[str, Any],
    settings: dict[str, Any],
    progress: Progress,
) -> Autoencoder:
    """Return what training gives, or gave before the run was interrupted."""
    if fresh or not (place / "training.json").is_file():
        from subspan.sae import make_sae, train

        sae = make_sae(architecture, store.width(site), size, **options)
        look = parts.held_out[:: max(1, len(parts.held_out) // 4096)]
        train(
            sae, store, site=site.key, exclude=parts.not_trained, out=place,
            held_out=store.take(site, look) if len(look) else None,
            overwrite=fresh and place.exists(), progress=progress, **settings,
        )  # fmt: skip
    made = Autoencoder.load(place / "sae")
    known = {
        "site": site.key,
        "model": store.facts.get("name"),
        "text": store.facts.get("text_hash"),
    }
    return replace(made, metadata={**made.metadata, **known})


def _evaluated(  # noqa: PLR0917
    sae: Autoencoder,
    model: Any,
    store: ActivationStore,
    parts: _Parts,
    site: Site,
    tokens: int,
    exclude: OutlierRule | None,
    progress: Progress,
) -> Evaluation:
    """Measure the losses on held-out windows, evenly drawn where there are more than are asked."""
    lengths = np.array([stop - start for start, stop in parts.windows])
    step = max(1, -(-int(lengths.sum()) // tokens))
    windows = _Windows(store, parts.windows[::step])
    return evaluate(sae, model, windows, site=site, exclude=exclude, progress=progress)


def _key(site: str | Site) -> str:
    return site if isinstance(site, str) else site.key


def _name(source: Any) -> str:
    if isinstance(source, str | os.PathLike):
        return str(Path(source).expanduser().resolve())
    return str(getattr(source, "path", None) or getattr(source, "name", type(source).__name__))
