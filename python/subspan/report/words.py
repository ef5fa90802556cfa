"""Numbers into words: small helpers that the sentences of every verdict share."""

from collections.abc import Iterable, Sequence

__all__ = ["count", "layer_list", "listed", "percent", "short", "span"]


def layer_list(layers: Iterable[int]) -> str:
    """Return layers as compact ranges.

    Examples
    --------
    >>> layer_list([9, 10, 11, 15, 16, 20])
    '9–11, 15, 16 and 20'
    """
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    parts: list[str] = []
    for low, high in runs:
        if high - low >= 2:
            parts.append(f"{low}–{high}")
        else:
            parts += [str(layer) for layer in range(low, high + 1)]
    return listed(parts)


def listed(parts: Sequence[str]) -> str:
    """Return a list in words.

    Examples
    --------
    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def percent(share: float) -> str:
    """Return a share as per cent; near 0 and 1 with enough digits to say something.

    Examples
    --------
    >>> percent(0.5), percent(0.9876), percent(0.0012), percent(0.99996)
    ('50 %', '98.8 %', '0.1 %', '99.996 %')
    """
    value = 100 * share
    if value in {0.0, 100.0}:
        return f"{value:.0f} %"
    edge = min(value, 100 - value)
    digits = 0 if edge >= 10 else 1 if edge >= 0.1 else 2 if edge >= 0.01 else 3
    return f"{value:.{digits}f} %"


def span(values: Sequence[float]) -> str:
    """Return the range of some numbers, or the one number when they look alike.

    Examples
    --------
    >>> span([1.04, 1.9, 3.0]), span([85.2, 85.4])
    ('1.0 to 3.0', '85')
    """
    low, high = short(min(values)), short(max(values))
    return low if low == high else f"{low} to {high}"


def short(value: float) -> str:
    """Return a number with the digits a sentence can carry."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 20 else f"{value:.1f}"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun.

    Examples
    --------
    >>> count(1, "token"), count(1200, "token")
    ('1 token', '1,200 tokens')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
