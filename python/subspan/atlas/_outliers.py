"""Who the outlier tokens are: their text, place, norm, and the dimension that carries it."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from subspan.activations import Site
from subspan.activations.sources import Tokens
from subspan.atlas._state import SiteState

__all__ = ["outlier_report"]

_LISTED = 1000  # tokens named in the JSON report; their number is always given


def outlier_report(
    states: Mapping[str, SiteState], names: Mapping[str, Site], tokens: Tokens
) -> dict[str, Any]:
    """Aggregate the outliers of all sites by token.

    Tokens are ranked by the number of sites of the leading kind (the residual stream where it was
    read) in which they are outliers, then by their largest norm ratio.
    """
    kinds = list(dict.fromkeys(name.kind for name in names.values()))
    lead = "resid" if "resid" in kinds else kinds[0]
    found: dict[int, dict[str, Any]] = {}
    dims: Counter[int] = Counter()
    per_kind: dict[str, set[int]] = defaultdict(set)
    for key, state in states.items():
        if state.outliers is None:
            continue
        norms = np.concatenate(state.norms)
        median = float(np.median(norms))
        parts = (np.concatenate(p) for p in (state.tokens, state.dims, state.peaks))
        name = names[key]
        for token, dim, peak in zip(*parts, strict=True):
            index = int(token)
            per_kind[name.kind].add(index)
            entry = found.setdefault(index, {"sites": 0, "layers": [], "max_ratio": 0.0})
            entry["sites"] += 1
            if name.kind != lead:
                continue
            entry["layers"].append(name.layer if name.layer >= 0 else None)
            dims[int(dim)] += 1
            ratio = float(norms[index]) / median if median > 0 else 0.0
            if ratio > entry["max_ratio"]:
                share = float(peak) ** 2 / max(float(norms[index]) ** 2, 1e-300)
                entry |= {
                    "max_ratio": ratio,
                    "max_norm": float(norms[index]),
                    "max_layer": name.layer if name.layer >= 0 else None,
                    "dimension": int(dim),
                    "dimension_value": float(peak),
                    "dimension_share": min(share, 1.0),
                }
    ranked = sorted(
        (index for index in found if found[index]["layers"]),
        key=lambda index: (-len(found[index]["layers"]), -found[index]["max_ratio"], index),
    )
    listed = [_named(index, found[index], tokens) for index in ranked[:_LISTED]]
    first = int(np.sum(tokens.in_window[ranked] == 0)) if ranked else 0
    total = sum(dims.values())
    return {
        "kind": lead,
        "n_tokens": len(ranked),
        "n_first_in_window": first,
        "n_tokens_by_kind": {kind: len(per_kind[kind]) for kind in kinds},
        "dimensions": [
            {"dimension": dim, "share": count / total} for dim, count in dims.most_common(8)
        ],
        "tokens": listed,
    }


def _named(index: int, entry: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
    named: dict[str, Any] = {
        "token": index,
        "document": int(tokens.document[index]),
        "position": int(tokens.position[index]),
        "position_in_window": int(tokens.in_window[index]),
        "text": None,
        "before": None,
        "after": None,
    }
    if tokens.text is not None:
        start = index - min(4, int(tokens.in_window[index]))
        named["text"] = tokens.text[index]
        named["before"] = "".join(tokens.text[start:index])
        same = [
            later
            for later in range(index + 1, min(index + 4, len(tokens.text)))
            if tokens.in_window[later] > tokens.in_window[index]
        ]
        named["after"] = "".join(tokens.text[later] for later in same)
    return named | dict(entry)
