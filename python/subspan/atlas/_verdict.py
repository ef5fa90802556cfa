"""The paragraph in words. Each sentence is a finding with its numbers; none is said without them.

Findings are dictionaries ``{"id", "text", ...numbers}``, in the order of the paragraph. A finding
that does not hold is not made, so there is no text to be wrong.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subspan.activations import kind_name
from subspan.report import visible
from subspan.report.words import count, layer_list, percent, short, span

__all__ = ["COLLAPSE_SHARE", "findings"]

COLLAPSE_SHARE = 0.9  # one direction with this share of the variance is called a collapse
_RECOVERY = 3.0  # the rank without outliers must be this many times higher to blame them

Row = Mapping[str, Any]


def findings(
    sites: Sequence[Row], weights: Sequence[Row], outliers: Row, n_tokens: int, factor: float
) -> list[dict[str, Any]]:
    """Return the findings that hold, in reading order."""
    kinds = list(dict.fromkeys(row["kind"] for row in sites))
    lead = [row for row in sites if row["kind"] == outliers["kind"] and row["all"]]
    found = _collapse(lead, outliers["tokens"])
    found += _outliers(
        lead, sites, outliers, n_tokens=n_tokens, factor=factor, collapse=tuple(found)
    )
    found += _other_collapses(sites, kinds, outliers["kind"])
    found += _rank(lead)
    found += _dims(lead)
    if "k" in kinds and "v" in kinds:
        found += _keys_values(sites)
    found += _weights(weights)
    return found + _sample(sites, n_tokens)


def _name(row: Row) -> str:
    if row["layer"] is None:
        return str(row["kind"])
    head = "" if row["head"] is None else f", head {row['head']}"
    return f"layer {row['layer']}{head}"


def _where(rows: Sequence[Row]) -> str:
    layers = [row["layer"] for row in rows if row["layer"] is not None]
    if not layers:
        return "at " + ", ".join(str(row["key"]) for row in rows)
    return ("in layer " if len(set(layers)) == 1 else "in layers ") + layer_list(layers)


def _collapse(lead: Sequence[Row], tokens: Sequence[Row]) -> list[dict[str, Any]]:
    flat = [row for row in lead if row["all"]["top_share"] >= COLLAPSE_SHARE]
    if not flat:
        return []
    ranks = [row["all"]["effective_rank"] for row in flat]
    shares = [row["all"]["top_share"] for row in flat]
    loudest = max(flat, key=lambda row: row["max_ratio"] or 0.0)
    blamed = [row for row in flat if _recovers(row)]
    text = (
        f"The {kind_name(lead[0]['kind'])} collapses {_where(flat)} ({len(flat)} of {len(lead)} "
        f"sites): one direction holds {_shares(shares)} of the variance and the effective rank "
        f"is {span(ranks)} of {flat[0]['width']}"
    )
    if loudest["max_ratio"]:
        text += (
            f"; the largest token norm is {short(loudest['max_ratio'])} times the median "
            f"({_name(loudest)})"
        )
    found = [_finding("collapse", text + ".", flat, effective_rank=ranks, top_share=shares)]
    if blamed:
        after = [row["without_outliers"]["effective_rank"] for row in blamed]
        guilty = _guilty(blamed, tokens)
        where = "there" if len(blamed) == len(flat) else _where(blamed)
        text = (
            f"Outlier tokens cause it: without them ({_range([r['n_outliers'] for r in blamed])} "
            f"of {blamed[0]['all']['n_tokens']:,} tokens) the effective rank {where} is "
            f"{span(after)}."
        )
        if guilty:
            text += f" They are {_who(guilty)}."
        numbers = {"effective_rank": after, "tokens": [token["token"] for token in guilty]}
        found.append(_finding("collapse_from_outliers", text, blamed, **numbers))
    rest = [row for row in flat if not _recovers(row)]
    if rest:
        text = (
            f"{_where(rest).capitalize()} the collapse is not due to outlier tokens: without them "
            f"one direction still holds "
            f"{_shares([row['without_outliers']['top_share'] for row in rest])}."
        )
        found.append(_finding("collapse_without_outliers", text, rest))
    return found


def _guilty(blamed: Sequence[Row], tokens: Sequence[Row]) -> list[Row]:
    """Return the tokens that are outliers in at least half of the collapsed layers."""
    layers = {row["layer"] for row in blamed}
    return [t for t in tokens if len(layers & set(t["layers"])) >= max(1, len(layers) / 2)]


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _recovers(row: Row) -> bool:
    rest = row["without_outliers"]
    return bool(
        row["n_outliers"]
        and rest
        and rest["effective_rank"] >= _RECOVERY * row["all"]["effective_rank"]
    )


def _shares(shares: Sequence[float]) -> str:
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _outliers(
    lead: Sequence[Row],
    sites: Sequence[Row],
    outliers: Row,
    *,
    n_tokens: int,
    factor: float,
    collapse: Sequence[Row],
) -> list[dict[str, Any]]:
    kind = kind_name(outliers["kind"])
    number = outliers["n_tokens"]
    if not number:
        ratios = [row["max_ratio"] for row in lead if row["max_ratio"]]
        worst = f" (largest ratio {short(max(ratios))})" if ratios else ""
        elsewhere = sum(1 for row in sites if row["n_outliers"])
        text = (
            f"No outlier tokens were found in the {kind}: no token norm exceeds {factor:g} times "
            f"the median of its site{worst}."
        )
        if elsewhere:
            text += f" Other sites do have some ({elsewhere} of {len(sites)} sites)."
        return [{"id": "no_outliers", "text": text}]
    tokens = outliers["tokens"]
    told = {index for finding in collapse for index in finding.get("tokens", ())}
    rest = [token for token in tokens if token["token"] not in told]
    text = f"{'In all, ' if told else ''}{count(number, 'token')} of {n_tokens:,} "
    text += f"({percent(number / n_tokens)}) {'is an outlier' if number == 1 else 'are outliers'} "
    text += f"in one layer or more of the {kind}"
    if rest and number <= len(tokens):
        ratio = max(token["max_ratio"] for token in rest)
        layers = {layer for token in rest for layer in token["layers"] if layer is not None}
        text += f": besides these, {_who(rest)}" if told else f": {_who(rest)}"
        text += f", in layer{'s' if len(layers) > 1 else ''} {layer_list(layers)}" if layers else ""
        text += f", up to {short(ratio)} times the median"
    text += "."
    main = outliers["dimensions"][0]
    dims = [d for d in outliers["dimensions"] if d["share"] >= 0.1][:3]
    carried = np.median([token["dimension_share"] for token in tokens])
    names = " and ".join(str(d["dimension"]) for d in dims) or str(main["dimension"])
    if sum(d["share"] for d in dims) >= 0.5:
        text += (
            f" The largest entry of an outlier lies in hidden dimension"
            f"{'s' if len(dims) > 1 else ''} {names} in {percent(sum(d['share'] for d in dims))} "
            f"of the cases and alone carries {percent(float(carried))} of its squared norm "
            "(median)."
        )
    if not collapse:
        text += " They do not collapse the spectrum: no direction holds "
        text += f"{percent(COLLAPSE_SHARE)} of the variance."
    return [
        {
            "id": "outliers",
            "text": text,
            "n_tokens": number,
            "n_first_in_window": outliers["n_first_in_window"],
            "dimensions": [d["dimension"] for d in outliers["dimensions"]],
        }
    ]


def _who(tokens: Sequence[Row]) -> str:
    """Name the tokens: by text where there is one, the most frequent first, else by row."""
    if tokens[0]["text"] is None:
        rows = sorted(token["token"] for token in tokens[:8])
        more = f" and {len(tokens) - 8} more" if len(tokens) > 8 else ""
        return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}{more}"
    parts = []
    first = [token for token in tokens if token["position_in_window"] == 0]
    rest = [token for token in tokens if token["position_in_window"] > 0]
    if first:
        lot = "the token" if len(first) == 1 else f"{len(first):,} tokens"
        parts.append(f"{lot} at position 0 of {'its' if len(first) == 1 else 'their'} window")
        parts[-1] += f" ({_texts(first)})"
    if rest:
        places = sorted(token["position_in_window"] for token in rest)
        where = f"{places[0]} to {places[-1]}" if places[0] != places[-1] else f"{places[0]}"
        parts.append(
            f"{count(len(rest), 'token')} at position{'s' if len(rest) > 1 else ''} {where} "
            f"({_texts(rest)})"
        )
    return " and ".join(parts)


def _texts(tokens: Sequence[Row]) -> str:
    texts = Counter(visible(token["text"], limit=24) for token in tokens)
    shown = [
        f"“{text}”" + (f" × {number}" if number > 1 else "")
        for text, number in texts.most_common(4)
    ]
    more = sum(texts.values()) - sum(number for _, number in texts.most_common(4))
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _other_collapses(sites: Sequence[Row], kinds: Sequence[str], lead: str) -> list[dict[str, Any]]:
    found = []
    for kind in kinds:
        flat = [
            row
            for row in sites
            if row["kind"] == kind != lead
            and row["head"] is None
            and row["all"]
            and row["all"]["top_share"] >= COLLAPSE_SHARE
        ]
        if flat:
            shares = [row["all"]["top_share"] for row in flat]
            text = (
                f"The {kind_name(kind)} is nearly one-dimensional {_where(flat)} "
                f"({_shares(shares)} of the variance in one direction"
            )
            after = [row["without_outliers"]["effective_rank"] for row in flat if _recovers(row)]
            if len(after) == len(flat):
                text += f"; effective rank {span(after)} without outlier tokens"
            found.append(_finding(f"collapse_{kind}", text + ").", flat))
    return found


def _rank(lead: Sequence[Row]) -> list[dict[str, Any]]:
    rows = [row for row in lead if row["without_outliers"]]
    if len(rows) < 2:
        return []
    with_outliers = any(row["n_outliers"] for row in rows)
    low = min(rows, key=lambda row: row["without_outliers"]["effective_rank"])
    high = max(rows, key=lambda row: row["without_outliers"]["effective_rank"])
    text = (
        f"{'Without outlier tokens the' if with_outliers else 'The'} effective rank is highest in "
        f"{_name(high)} ({short(high['without_outliers']['effective_rank'])}) and lowest in "
        f"{_name(low)} ({short(low['without_outliers']['effective_rank'])})."
    )
    return [_finding("rank", text, [high, low])]


def _dims(lead: Sequence[Row]) -> list[dict[str, Any]]:
    rows = [row for row in lead if row["without_outliers"]]
    if len(rows) < 2:
        return []
    order = sorted(rows, key=lambda row: row["without_outliers"]["dim_99"])
    dims = [row["without_outliers"]["dim_99"] for row in order]
    if dims[0] == dims[-1]:
        return []
    fewest = order[: min(3, len(order) - 1)]
    text = (
        f"Fewest dimensions for 99 % of the variance are needed {_where(fewest)} "
        f"({span(dims[: len(fewest)])} of {fewest[0]['width']}), most in "
        f"{_name(order[-1])} ({dims[-1]})."
    )
    return [_finding("dims", text, fewest, dim_99=dims[: len(fewest)])]


def _keys_values(sites: Sequence[Row]) -> list[dict[str, Any]]:
    need: dict[str, list[int]] = {}
    for kind in ("k", "v"):
        rows = [row for row in sites if row["kind"] == kind and row["without_outliers"]]
        need[kind] = [row["without_outliers"]["dim_90"] for row in rows]
    if not need["k"] or not need["v"]:
        return []
    width = next(row["width"] for row in sites if row["kind"] == "k")
    keys, values = float(np.mean(need["k"])), float(np.mean(need["v"]))
    if keys < 0.9 * values:
        claim = "Keys are more compressible than values"
    elif values < 0.9 * keys:
        claim = "Values are more compressible than keys"
    else:
        claim = "Keys and values are about equally compressible"
    text = (
        f"{claim}: 90 % of the variance needs {short(keys)} of {width} dimensions per head for "
        f"keys (range {min(need['k'])} to {max(need['k'])}), {short(values)} for values "
        f"({min(need['v'])} to {max(need['v'])})."
    )
    return [{"id": "keys_values", "text": text, "keys_dim_90": keys, "values_dim_90": values}]


def _weights(weights: Sequence[Row]) -> list[dict[str, Any]]:
    types: dict[str, list[float]] = {}
    for row in weights:
        if row["layer"] is not None and row["all"]:
            full = min(row["shape"])
            types.setdefault(row["type"], []).append(row["all"]["effective_rank_singular"] / full)
    if len(types) < 2:
        return []
    means = {kind: float(np.mean(values)) for kind, values in types.items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    text = (
        f"Among the weights {low} has the lowest effective rank ({percent(means[low])} of full on "
        f"average) and {high} the highest ({percent(means[high])})."
    )
    return [{"id": "weights", "text": text, "lowest": low, "highest": high}]


def _sample(sites: Sequence[Row], n_tokens: int) -> list[dict[str, Any]]:
    widest = max(row["width"] for row in sites)
    if n_tokens > 4 * widest:
        return []
    text = (
        f"Only {n_tokens:,} tokens were read for up to {widest:,} dimensions: ranks are biased "
        "low; read more tokens before trusting them."
    )
    return [{"id": "few_tokens", "text": text}]


def _finding(name: str, text: str, rows: Sequence[Row], **numbers: object) -> dict[str, Any]:
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    return {
        "id": name,
        "text": text,
        "layers": layers,
        "sites": [row["key"] for row in rows],
    } | numbers
