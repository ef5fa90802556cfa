"""Orthogonal bases for values that are to be rounded: turns at random, principal directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import subspan
from subspan.compression._inputs import Floats

__all__ = ["BASES", "basis", "hadamard", "high_of", "turn"]


def high_of(d: int, fraction: float) -> int:
    """Return how many of d coordinates are this fraction of them: at least one, and not all."""
    return min(d - 1, max(1, round(fraction * d)))


def basis(kind: str, gram: Floats, high: int, rng: np.random.Generator) -> Floats:
    """Return a basis (d, d) of columns for second moments; the last ``high`` get more bits."""
    return BASES[kind](gram, high, rng)


def _none(gram: Floats, _high: int, _rng: np.random.Generator) -> Floats:
    return np.eye(len(gram))


def _turned(gram: Floats, _high: int, rng: np.random.Generator) -> Floats:
    return turn(len(gram), rng)


def _loudest_last(gram: Floats, _high: int, _rng: np.random.Generator) -> Floats:
    return np.eye(len(gram))[:, np.argsort(np.diag(gram), kind="stable")]


def _principal(gram: Floats, _high: int, _rng: np.random.Generator) -> Floats:
    return np.asarray(subspan.eigh(gram).vectors, np.float64)


def _turned_parts(gram: Floats, high: int, rng: np.random.Generator) -> Floats:
    axes, low = _principal(gram, high, rng), len(gram) - high
    return np.concatenate([axes[:, :low] @ turn(low, rng), axes[:, low:] @ turn(high, rng)], axis=1)


BASES: dict[str, Callable[[Floats, int, np.random.Generator], Floats]] = {
    "none": _none,
    "hadamard": _turned,
    "outliers": _loudest_last,
    "pca": _principal,
    "resq": _turned_parts,
}


def turn(d: int, rng: np.random.Generator) -> Floats:
    """Return a random orthogonal matrix (d, d) that evens out coordinates.

    A Hadamard matrix with random signs where one is at hand, else an orthogonal factor of a
    Gaussian matrix.
    """
    even = hadamard(d)
    if even is None:
        found: Floats = np.linalg.qr(rng.standard_normal((d, d)))[0]
        return found
    signed: Floats = even * rng.choice([-1.0, 1.0], (d, 1)) / np.sqrt(d)
    return signed


def hadamard(d: int) -> Floats | None:
    """Return a matrix of 1 and -1 with orthogonal columns, or None where none is known here.

    Sylvester's doubling of 1, and of what Paley made from squares modulo a prime q = 3 mod 4:
    I + S, where S has a row and a column of ones, and the Legendre symbols of i - j.
    """
    doublings, odd = 0, d
    while odd > 1 and odd % 2 == 0 and not _paley(odd):
        doublings, odd = doublings + 1, odd // 2
    if odd == 1:
        found = np.ones((1, 1))
    elif _paley(odd):
        q = odd - 1
        symbols = np.full(q, -1.0)
        symbols[np.arange(1, q) ** 2 % q] = 1.0
        symbols[0] = 0.0
        found = np.eye(odd)
        found[0, 1:], found[1:, 0] = 1.0, -1.0
        found[1:, 1:] += symbols[np.subtract.outer(np.arange(q), np.arange(q)) % q]
    else:
        return None
    for _ in range(doublings):
        found = np.block([[found, found], [found, -found]])
    return found


def _paley(d: int) -> bool:
    q = d - 1
    return q % 4 == 3 and all(q % factor for factor in range(3, int(q**0.5) + 1, 2))
