"""The paragraph in words: sentences that each carry a finding and its numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from subspan.comparison._measure import Arrays, Measured
from subspan.report.words import count, layer_list, listed

__all__ = ["blocks", "findings", "site_names", "title"]

_TITLES = {"cka": "CKA", "svcca": "SVCCA", "pwcca": "PWCCA", "cca": "CCA", "rsa": "RSA",
          "procrustes": "Procrustes distance", "shape": "shape distance"}  # fmt: skip
_SAME_BLOCK = 0.05  # mean difference of the similarities of neighbours, as part of their range
_NEAR = 1  # layers: a best match this close to the same layer lies on the diagonal

Row = Mapping[str, Any]


def findings(
    report: Row, found: Sequence[Measured], turned: Arrays, whole: Measured | None
) -> list[dict[str, Any]]:
    """Return the findings that hold, in reading order."""
    lead = found[0]
    match = lead.best()
    names = (site_names(report["a"]["sites"]), site_names(report["b"]["sites"]))
    if all(j is None for j in match):
        text = "No layer varies over these samples: there is nothing to compare."
        return [{"id": "nothing", "text": text}]
    said = _matches(lead, match, names)
    said += _null(report, found, match, names)
    said += _agreement(found, match)
    said += _blocks(report, names)
    said += _angles(report, turned)
    said += _outliers(report, lead, whole)
    return said + _sample(report, found)


def title(name: str) -> str:
    """Return the words for a measure."""
    return _TITLES.get(name, name)


def site_names(sites: Sequence[Row]) -> list[str]:
    """Return short names: layer numbers where these are unique, else keys."""
    layers = [site["layer"] for site in sites]
    if None in layers or len(set(layers)) < len(layers):
        return [str(site["key"]) for site in sites]
    return [str(layer) for layer in layers]


def blocks(order: np.ndarray) -> list[list[int]]:
    """Group consecutive layers that look alike from the other side: first and last place of each.

    Neighbours belong together where the mean difference of their similarities is below a
    twentieth of the range of all similarities.
    """
    known = order[np.isfinite(order)]
    span = float(np.ptp(known)) if known.size else 0.0
    groups = [[0, 0]]
    for i in range(1, len(order)):
        both = np.isfinite(order[i]) & np.isfinite(order[i - 1])
        step = float(np.abs(order[i] - order[i - 1])[both].mean()) if both.any() else np.inf
        if span > 0 and step <= _SAME_BLOCK * span:
            groups[-1][1] = i
        else:
            groups.append([i, i])
    return groups


def _value(number: float) -> str:
    return f"{number:.2f}" if abs(number) < 0.995 or number == 1.0 else f"{number:.3f}"


def _said(names: Sequence[str], places: Sequence[int]) -> str:
    chosen = [names[i] for i in places]
    if all(name.isdecimal() for name in chosen):
        return ("layer " if len(chosen) == 1 else "layers ") + layer_list(map(int, chosen))
    shown = ", ".join(chosen[:4])
    return shown + (f" and {len(chosen) - 4} more" if len(chosen) > 4 else "")


def _matches(
    lead: Measured, match: list[int | None], names: tuple[list[str], list[str]]
) -> list[dict[str, Any]]:
    known = [(i, j) for i, j in enumerate(match) if j is not None]
    places = [i for i, _ in known]
    values = np.array([lead.matrix[i, j] for i, j in known])
    low, high = float(values.min()), float(values.max())
    worst = places[int(values.argmax() if lead.is_distance else values.argmin())]
    reach = f"{title(lead.name)} {_value(low)} to {_value(high)}"
    if _value(low) == _value(high):
        reach = f"{title(lead.name)} {_value(low)}"
    numbers = {"match": match, "lowest": low, "highest": high}
    if names[0] == names[1]:
        off = [i for i, j in known if abs(i - j) > _NEAR]
        exact = sum(i == j for i, j in known)
        if not off:
            text = f"Layers of A and B match in order: {exact} of {len(known)} are most like the "
            text += "same layer of the other, the rest like a neighbour" * (exact < len(known))
            text = text.replace("other, the", "other and the")
            if exact == len(known):
                text = "Every layer of A is most like the same layer of B"
            text += f" ({reach}, least alike in {_said(names[0], [worst])})."
            return [{"id": "diagonal", "text": text, "exact": exact, **numbers}]
        text = f"{exact} of {len(known)} layers of A are most like the same layer of B ({reach}); "
        text += f"{_said(names[0], off)} of A {'is' if len(off) == 1 else 'are'} most like another "
        text += f"one: {_runs([(i, j) for i, j in known if i in off], names)}."
        return [{"id": "off_diagonal", "text": text, "exact": exact, "off": off, **numbers}]
    text = f"Best matches by {title(lead.name)}: {_runs(known, names)} ({reach})."
    rise = np.diff([j for _, j in known])
    if len(known) > 2 and (rise >= 0).all() and rise.any():
        text += " They rise with depth throughout."
    return [{"id": "matches", "text": text, **numbers}]


def _runs(pairs: Sequence[tuple[int, int]], names: tuple[list[str], list[str]]) -> str:
    """Tell pairs as runs of layers of A with the same best layer of B."""
    runs: list[tuple[list[int], int]] = []
    for i, j in pairs:
        if runs and runs[-1][1] == j:
            runs[-1][0].append(i)
        else:
            runs.append(([i], j))
    longest = sorted(runs, key=lambda run: -len(run[0]))[:6]
    told = [
        f"{_said(names[0], places)} of A with {_said(names[1], [j])} of B"
        for places, j in runs
        if any(places is other for other, _ in longest)
    ]
    more = len(runs) - len(longest)
    return ", ".join(told) + (f", and {count(more, 'shorter run')}" if more else "")


def _null(
    report: Row,
    found: Sequence[Measured],
    match: list[int | None],
    names: tuple[list[str], list[str]],
) -> list[dict[str, Any]]:
    lead = found[0]
    if lead.above is None:
        return []
    finite = np.isfinite(lead.matrix)
    below = int((finite & ~lead.above).sum())
    total = int(finite.sum())
    quantile = f"{100 * report['settings']['level']:g} % of permutations"
    weak = [i for i, j in enumerate(match) if j is not None and not lead.above[i, j]]
    if not below:
        text = f"All {total:,} pairs of layers are more alike than {quantile} ({title(lead.name)})."
    else:
        text = f"{below:,} of {count(total, 'pair')} of layers are no more alike than {quantile} "
        text += f"({title(lead.name)})"
        fully = [i for i in range(len(finite)) if finite[i].any() and not lead.above[i].any()]
        if fully:
            text += f"; {_said(names[0], fully)} of A resemble"
            text += f"{'s' if len(fully) == 1 else ''} no layer of B"
        text += "."
        if weak and len(weak) > len(fully):
            text += f" The best match is no better than chance for {_said(names[0], weak)} of A."
    return [{"id": "null", "text": text, "below": below, "pairs": total, "weak": weak}]


def _agreement(found: Sequence[Measured], match: list[int | None]) -> list[dict[str, Any]]:
    said = []
    for other in found[1:]:
        pairs = [
            (i, j) for i, j in zip(match, other.best(), strict=True)
            if i is not None and j is not None
        ]  # fmt: skip
        if len(pairs) > 1:
            near = sum(abs(i - j) <= _NEAR for i, j in pairs)
            said.append((other.name, near, len(pairs)))
    if not said:
        return []
    told = listed([f"{title(name)} for {near} of {total}" for name, near, total in said])
    text = f"The best match is the same to within one layer by {told}."
    return [{"id": "agreement", "text": text, "near": {name: near for name, near, _ in said}}]


def _blocks(report: Row, names: tuple[list[str], list[str]]) -> list[dict[str, Any]]:
    parts = []
    for label, side, known in (("A", report["a"], names[0]), ("B", report["b"], names[1])):
        long = [group for group in side["blocks"] if group[1] - group[0] >= 2]
        if long:
            told = [f"{known[first]} to {known[last]}" for first, last in long]
            parts.append(f"layers {listed(told)} of {label}")
    if not parts:
        return []
    text = f"Blocks that look alike from the other side: {'; '.join(parts)}."
    return [{"id": "blocks", "text": text}]


def _angles(report: Row, turned: Arrays) -> list[dict[str, Any]]:
    lines, chance = turned["samples"], turned.get("chance_samples")
    known = np.flatnonzero(np.isfinite(lines).any(axis=1))
    if chance is None or not len(known):
        return []
    middle = np.degrees([np.nanmedian(lines[i]) for i in known])
    least, most = known[int(middle.argmin())], known[int(middle.argmax())]
    names = site_names(report["a"]["sites"])
    reach = f"{middle.max():.0f}°"
    if round(middle.min()) < round(middle.max()):
        reach = f"{middle.min():.0f}° ({_said(names, [int(least)])}) to "
        reach += f"{middle.max():.0f}° ({_said(names, [int(most)])})"
    text = (
        f"Between the leading {report['settings']['dims']} dimensions of matching layers the "
        f"median principal angle is {reach}; by chance it would be "
        f"{np.degrees(np.nanmedian(chance)):.0f}°."
    )
    return [{"id": "angles", "text": text, "median_degrees": middle.tolist()}]


def _outliers(report: Row, lead: Measured, whole: Measured | None) -> list[dict[str, Any]]:
    if whole is None:
        return []
    about = report["samples"]
    tokens = about["n_outlier_tokens"]
    change = np.abs(whole.matrix - lead.matrix)
    text = f"Outliers ({tokens['A']:,} tokens in A, {tokens['B']:,} in B"
    if report["settings"]["unit"] != "line":
        text = f"Outliers ({tokens['A']:,} in A, {tokens['B']:,} in B, of {about['n']:,} samples"
    text += f") are left out; with them {title(lead.name)} would change by up to "
    text += f"{_value(float(np.nanmax(change)))} ({_value(float(np.nanmean(change)))} on average)."
    return [{"id": "outliers", "text": text, "largest_change": float(np.nanmax(change))}]


def _sample(report: Row, found: Sequence[Measured]) -> list[dict[str, Any]]:
    widest = max(site["width"] for side in ("a", "b") for site in report[side]["sites"])
    n = report["samples"]["n_used"]
    others = [title(one.name) for one in found if one.name != "cka"]
    if n > 4 * widest or not others:
        return []
    text = (
        f"Only {n:,} samples for up to {widest:,} dimensions: by {listed(others)} layers "
        "look more alike than they are; read these against the null."
    )
    return [{"id": "few_samples", "text": text}]
