"""Turn what a user asks for (kinds, site keys, module patterns) into places to hook."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from subspan.activations._extras import require
from subspan.activations._running import evaluating, new_cache
from subspan.activations._site import KINDS, Site
from subspan.activations._structure import (
    Block,
    attention_output,
    key_value_linears,
    mlp_output,
    out_features,
    text_config,
)
from subspan.activations.models import Model
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

Side = Literal["input", "output"]


@dataclass
class Probe:
    """One module to hook, which side of it, and the sites that it feeds.

    An encoder's key layer feeds one site for each of its ``heads``; else ``heads`` is None.
    """

    name: str
    module: Any
    side: Side
    heads: int | None = None
    sites: list[Site] = field(default_factory=list)


Found = dict[Site, Probe | None]  # None: read from the KV cache


@dataclass
class Plan:
    """All hooks of a capture, and the sites that are read from the KV cache instead."""

    sites: tuple[Site, ...] = ()
    probes: list[Probe] = field(default_factory=list)
    cached: list[Site] = field(default_factory=list)


def find_sites(
    model: Model,
    sites: str | Site | Iterable[str | Site] = KINDS,
    *,
    layers: Iterable[int] | None = None,
) -> tuple[Site, ...]:
    """Return the sites that `capture` would read, in order of layer, kind and head.

    Parameters
    ----------
    model : Model
        A loaded model.
    sites : kind, Site, site key, module name pattern, or iterable of them
        The kinds are "resid", "attn", "mlp", "k", "v". In a pattern ``*`` and ``?`` stand for
        characters within one part of a dotted module name, ``**`` for anything.
    layers : iterable of int, optional
        Only these layers. "resid" has one more layer than the others: what leaves the last block.

    Returns
    -------
    tuple of Site

    Raises
    ------
    InvalidArgumentError
        A pattern matches no module (the message lists similar names), or a layer is out of range.
    UnsupportedError
        The model has no such kind of site.

    """
    return make_plan(model, sites, layers).sites


def make_plan(
    model: Model, sites: str | Site | Iterable[str | Site], layers: Iterable[int] | None
) -> Plan:
    """Resolve sites to hooks; every kind or pattern must find something."""
    wanted = [sites] if isinstance(sites, str | Site) else list(sites)
    if not wanted:
        raise InvalidArgumentError("[capture] sites must name at least one site, got none")
    chosen = None if layers is None else _checked_layers(model, layers)
    table = _Table(model)
    found: Found = {}
    for want in wanted:
        _merge(found, _resolve(table, want, chosen))
    ordered = tuple(sorted(found, key=Site.order))
    probes = {id(p): p for p in found.values() if p is not None}
    for probe in probes.values():
        probe.sites = [site for site in ordered if found[site] is probe]
    cached = [site for site in ordered if found[site] is None]
    return Plan(ordered, list(probes.values()), cached)


class _Table:
    """The sites of each kind, looked up once (a model is run to learn its KV heads)."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._known: dict[str, Found] = {}

    def of_kind(self, kind: str) -> Found:
        if kind not in self._known:
            self._known[kind] = dict(_of_kind(self.model, kind))
        return self._known[kind]


def _merge(found: Found, new: Found) -> None:
    for site, probe in new.items():
        old = found.setdefault(site, probe)
        if old is not None and probe is not None and old.module is not probe.module:
            # a pattern names a module whose name is a kind, but which is not what the kind reads
            found[site._replace(kind=f"{site.kind}.out")] = probe


def _resolve(table: _Table, want: Any, chosen: frozenset[int] | None) -> Found:
    if isinstance(want, Site):
        return _resolve_site(table, want)
    if not isinstance(want, str):
        raise DtypeError(f"[capture] sites must be str or Site, got {type(want).__name__}")
    if want not in KINDS:
        if "/" in want:
            return _resolve_site(table, Site.parse(want))
        return _match(table.model, want, chosen)
    found = {
        site: probe
        for site, probe in table.of_kind(want).items()
        if chosen is None or site.layer in chosen
    }
    if not found:
        last = table.model.n_layers - 1
        raise InvalidArgumentError(
            f"[capture] layers must include one of 0..{last} for the kind {want!r}, "
            f"got {sorted(chosen or ())}"
        )
    return found


def _resolve_site(table: _Table, site: Site) -> Found:
    model = table.model
    if site.kind not in KINDS:
        (probe,) = _match(model, _module_name(model, site), None).values()
        return {site: probe}
    _checked_layers(model, [site.layer])
    found = table.of_kind(site.kind)
    if site not in found:
        heads = [s.head for s in found if s.layer == site.layer and s.head is not None]
        have = f"heads {heads[0]}..{heads[-1]}" if heads else "no such site"
        raise InvalidArgumentError(
            f"[capture] sites must exist in {model.name!r}, got {site.key!r}; the layer has {have}"
        )
    return {site: found[site]}


def _checked_layers(model: Model, layers: Iterable[int]) -> frozenset[int]:
    chosen = frozenset(int(layer) for layer in layers)
    bad = sorted(layer for layer in chosen if not 0 <= layer <= model.n_layers)
    if bad or not chosen:
        raise InvalidArgumentError(
            f"[capture] layers must be in 0..{model.n_layers} ({model.name!r} has {model.n_layers} "
            f"blocks; {model.n_layers} is what leaves the last one), got {bad or 'none'}"
        )
    return chosen


def _module_name(model: Model, site: Site) -> str:
    """Return the module that `_site_of` and `_merge` gave this name to."""
    if site.layer < 0:
        return site.kind
    _checked_layers(model, [site.layer])
    blocks = _blocks(model, "a module in a block")
    name = blocks[min(site.layer, len(blocks) - 1)].name
    inner = site.kind.removesuffix(".out")
    return name if site.kind == "block" else f"{name}.{inner if inner in KINDS else site.kind}"


def _blocks(model: Model, kind: str) -> tuple[Block, ...]:
    if not model.blocks:
        raise UnsupportedError(
            f"[capture] sites must exist in the model, got {kind!r} for {type(model.hf).__name__}, "
            "whose blocks could not be told apart. Give patterns of module names."
        )
    return model.blocks


def _of_kind(model: Model, kind: str) -> Iterator[tuple[Site, Probe | None]]:
    """Yield the sites of one kind in all layers."""
    blocks = _blocks(model, kind)
    if kind == "resid":
        for number, name, module in blocks:
            yield Site(number, kind), Probe(name, module, "input")
        number, name, module = blocks[-1]
        yield Site(number + 1, kind), Probe(name, module, "output")
    elif kind in ("attn", "mlp"):
        find = attention_output if kind == "attn" else mlp_output
        hits = [(b, hit) for b in blocks if (hit := find(b.module)) is not None]
        if not hits:
            raise _no_kind(model, kind, "no block has one")
        for block, (name, module) in hits:
            yield Site(block.number, kind), Probe(f"{block.name}.{name}", module, "output")
    elif model.kind == "causal":
        for layer, heads in enumerate(_cache_heads(model, kind)):
            yield from ((Site(layer, kind, head), None) for head in range(heads))
    else:
        yield from _encoder_heads(model, blocks, kind)


def _cache_heads(model: Model, kind: str) -> list[int]:
    """Count the KV heads of each layer by running one token."""
    torch = require("torch", function="capture")
    cache = new_cache()
    ids = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    try:
        with evaluating(model.hf), torch.inference_mode():
            model.hf.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    except Exception as error:
        raise _no_kind(model, kind, f"running it with a KV cache failed: {error}") from error
    heads = [0 if layer.keys is None else int(layer.keys.shape[1]) for layer in cache.layers]
    if not any(heads):
        raise _no_kind(model, kind, "its KV cache stays empty")
    return heads


def _encoder_heads(
    model: Model, blocks: tuple[Block, ...], kind: str
) -> Iterator[tuple[Site, Probe | None]]:
    config = text_config(model.hf)
    default = int(config.hidden_size) // int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or default)
    for block in blocks:
        pair = key_value_linears(block.module)
        if pair is None:
            raise _no_kind(model, kind, "keys and values are not made by separate linear layers")
        name, module = pair[0 if kind == "k" else 1]
        heads = out_features(module) // head_dim
        probe = Probe(f"{block.name}.{name}", module, "output", heads)
        for head in range(heads):
            yield Site(block.number, kind, head), probe


def _no_kind(model: Model, kind: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"[capture] sites must exist in the model, got {kind!r} for {type(model.hf).__name__}: "
        f"{why}. Give patterns of module names, or leave the kind out."
    )


def _match(model: Model, pattern: str, chosen: frozenset[int] | None) -> Found:
    modules = {name: module for name, module in model.hf.named_modules() if name}
    expression = _glob(pattern)
    hits = [name for name in modules if expression.fullmatch(name)]
    if not hits:
        raise InvalidArgumentError(
            f"[capture] sites must be one of {', '.join(KINDS)} or match a module name, got "
            f"{pattern!r}, which matches none. {_nearby(pattern, list(modules))}"
        )
    found: Found = {}
    for name in hits:
        site = _site_of(model, name)
        if chosen is None or site.layer in chosen:
            found[site] = Probe(name, modules[name], "output")
    if not found:
        raise InvalidArgumentError(
            f"[capture] layers must include one that {pattern!r} matches, got "
            f"{sorted(chosen or ())}"
        )
    return found


def _site_of(model: Model, name: str) -> Site:
    for block in model.blocks:
        if name == block.name:
            return Site(block.number, "block")
        if name.startswith(f"{block.name}."):
            inner = name[len(block.name) + 1 :]
            # "k" and "v" are kinds with heads; a module of that name is another thing
            return Site(block.number, f"{inner}.out" if inner in ("resid", "k", "v") else inner)
    return Site(-1, name)


def _glob(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]+\])", pattern)
    special = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    text = ""
    for part in parts:
        inside = part.startswith("[") and part.endswith("]")
        text += part.replace("[!", "[^") if inside else special.get(part, re.escape(part))
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidArgumentError(
            f"[capture] sites must be valid patterns, got {pattern!r} ({error})"
        ) from error


def _nearby(pattern: str, names: list[str]) -> str:
    """Name a few modules that the user may have meant, one for all layers."""
    general = list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))
    close = difflib.get_close_matches(re.sub(r"\.\d+(?=\.|$)", ".*", pattern), general, 4, 0.3)
    return f"Nearby names: {', '.join(close or general[-4:])}."
