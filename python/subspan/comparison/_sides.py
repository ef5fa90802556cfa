"""The two sides of a comparison, opened so that sample i of one is sample i of the other."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from subspan.activations import Model, Site, load_model
from subspan.activations.sources import ModelSource, SavedSource, Source, is_saved, sources_of
from subspan.activations.tokens import read_text
from subspan.comparison._perturb import perturbed
from subspan.errors import InvalidArgumentError

__all__ = ["UNITS", "Choices", "Side", "Sides", "open_sides"]

UNITS = ("auto", "token", "line")
SAMPLES = 2048  # by default: some times the width of a small model, minutes on a laptop
_WINDOW = 512


class Choices(NamedTuple):
    """What the caller asked for, as far as it concerns what is read."""

    unit: str
    samples: int | str | None
    window: int | None
    batch_size: int
    sites: tuple[str | Site, ...] | None
    layers: tuple[int, ...] | None
    layers_b: tuple[int, ...] | None
    noise: float
    keep: float
    seed: int


class Side(NamedTuple):
    """One of the two."""

    label: str
    """"A" or "B"."""
    source: Source
    facts: dict[str, Any]


class Sides(NamedTuple):
    """Both, and what a sample is."""

    a: Side
    b: Side
    unit: str
    """"row", "token" or "line"."""
    n: int


def open_sides(a: Any, b: Any, texts: Any, choices: Choices) -> Sides:
    """Open both, refuse what cannot be compared."""
    given = sources_of(texts)
    saved = [is_saved("compare_models", name, side) for name, side in (("a", a), ("b", b))]
    if saved[0] != saved[1]:
        kinds = ["saved activations" if yes else "a model" for yes in saved]
        raise InvalidArgumentError(
            "[compare_models] a and b must both be models or both be saved activations, got "
            f"{kinds[0]} and {kinds[1]}. Save the activations of the model on the same samples "
            "first, with subspan.activations.capture"
        )
    return _saved(a, b, given, choices) if saved[0] else _models(a, b, given, choices)


def _saved(a: Any, b: Any, texts: list[Any], choices: Choices) -> Sides:
    for name, wrong in (
        ("texts", bool(texts)),
        ("unit", choices.unit != "auto"),
        ("noise", choices.noise > 0),
        ("keep", choices.keep < 1),
    ):
        if wrong:
            raise InvalidArgumentError(
                f"[compare_models] {name} must be left out for saved activations: their rows are "
                "the samples, and there are no weights. If models were meant, give folders with "
                "config.json or .gguf files"
            )
    limit = choices.samples if isinstance(choices.samples, int) else None
    made = []
    for source, layers in ((a, choices.layers), (b, choices.layers_b or choices.layers)):
        asked = choices.sites
        opened = SavedSource(
            source, function="compare_models", tokens=limit, sites=asked, layers=layers
        )
        if asked is None and any(site.kind == "resid" for site in opened.sites):
            opened.sites = tuple(site for site in opened.sites if site.kind == "resid")
        made.append(opened)
    rows = [int(opened.saved.n_rows) for opened in made]
    if rows[0] != rows[1]:
        raise InvalidArgumentError(
            "[compare_models] a and b must have the same rows, sample by sample, got "
            f"{rows[0]:,} and {rows[1]:,} rows"
        )
    first, second = (
        Side(label, side, side.facts()) for label, side in zip("AB", made, strict=True)
    )
    return Sides(first, second, "row", made[0].n_tokens)


def _models(a: Any, b: Any, texts: list[Any], choices: Choices) -> Sides:
    if not texts:
        raise InvalidArgumentError(
            "[compare_models] texts must be given with models, got none. Name one or more text "
            "files"
        )
    first = load_model(a)
    # the same file once more is the same model: reading a GGUF file takes half a minute
    second = first if _same(a, b) else load_model(b)
    if choices.noise > 0 or choices.keep < 1:
        second = perturbed(second, noise=choices.noise, keep=choices.keep, seed=choices.seed)
    window = choices.window or min(
        _WINDOW, *(model.context or _WINDOW for model in (first, second))
    )
    layers_b = choices.layers_b
    if layers_b is None and first.n_layers == second.n_layers:
        layers_b = choices.layers
    samples = SAMPLES if choices.samples is None else choices.samples
    most = samples if isinstance(samples, int) else None

    def opened(unit: str, texts: list[Any]) -> tuple[ModelSource, ModelSource]:
        limit = most if unit == "token" else None
        one, two = (
            ModelSource(
                model, texts, tokens=limit, window=window, batch_size=choices.batch_size,
                sites=choices.sites or ("resid",), layers=layers,
            )
            for model, layers in ((first, choices.layers), (second, layers_b))
        )  # fmt: skip
        return one, two

    unit = choices.unit
    if unit in {"auto", "token"}:
        pair = opened("token", texts)
        same = pair[0].stream.fingerprint == pair[1].stream.fingerprint
        if unit == "token" and not same:
            raise InvalidArgumentError(
                "[compare_models] unit 'token' needs models that cut the texts into the same "
                f"tokens, got {first.name!r} and {second.name!r}, which do not. Use unit 'line': "
                "the mean over the tokens of each line"
            )
        unit = "token" if same else "line"
    n = 0
    if unit == "line":
        lines = _lines(texts, most)
        pair = opened("line", list(lines))
        n = len(lines)
    n = n or pair[0].n_tokens
    names = [text.name if isinstance(text, Path) else f"text {i}" for i, text in enumerate(texts)]
    one, two = (
        Side(label, source, source.facts() | {"texts": names})
        for label, source in zip("AB", pair, strict=True)
    )
    return Sides(one, two, unit, n)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str | os.PathLike) and isinstance(b, str | os.PathLike):
        return Path(a).expanduser().resolve() == Path(b).expanduser().resolve()
    return isinstance(a, Model) and a is b


def _lines(texts: Iterable[Any], limit: int | None) -> list[str]:
    """Return the lines that hold something, in order."""
    lines: list[str] = []
    for text in texts:
        whole = read_text(text) if isinstance(text, Path) else text
        lines += [line.strip() for line in str(whole).splitlines() if line.strip()]
    return lines[:limit]
