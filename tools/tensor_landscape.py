"""Where climbs of the subspace power method end, by rank: a picture of docs/workflows/tensors.md.

After figure 4 of Kileel and Pereira, arXiv:1912.04007: dimension 20, order 4, components drawn at
random, with a fixed shift and as `subspan.tensors.spm` climbs by default. They have 10,000 starts
for each rank.

python tools/tensor_landscape.py [FOLDER] [STARTS]     # docs/images and 500 by default
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from subspan.tensors._spm_basis import SymmetricBasis
from subspan.tensors._spm_power import REST, Deflation, Options, Search

Array = np.ndarray[Any, Any]
D, RANKS = 20, range(120, 201, 10)
STEPS, BLOCK = 5000, 1000
ENDS = ("a component", "a maximum with f < 1", "f = 1, no component", "no strict maximum near by")


def shares(rank: int, starts: int, *, adaptive: bool, seed: int = 0) -> Array:
    """Return the shares of starts that come to each of ENDS."""
    rng = np.random.default_rng([seed, rank])
    a = _directions(rng, rank)
    basis = SymmetricBasis(D, 2)
    left = Deflation(np.linalg.qr(basis.powers(a))[0], None, np.ones(rank))
    search = Search(left, (basis, basis), Options(1, BLOCK, 1e-14, STEPS, adaptive), 1e-9)
    counts = np.zeros(len(ENDS), np.int64)
    for first in range(0, starts, BLOCK):
        x = _directions(rng, min(BLOCK, starts - first)).astype(np.float32)
        counts += _counted(search, a, _climbed(search, x))
    return counts / starts


def _climbed(search: Search, x: Array) -> Array:
    """Climb from all columns until they come to rest."""
    moving = np.arange(x.shape[1])
    for age in range(STEPS):
        new, _ = search.climbed(x[:, moving], np.full(len(moving), age))
        step = np.linalg.norm(new - x[:, moving], axis=0)
        x[:, moving] = new
        moving = moving[step >= REST]
        if not len(moving):
            break
    return x.astype(np.float64)


def _counted(search: Search, a: Array, x: Array) -> Array:
    ends, near, f = search.newton(x / np.linalg.norm(x, axis=0))
    # The distance of lines, from sines: cosines lose it.
    place = np.abs(a.T @ ends).argmax(axis=0)
    nearest = a[:, place] * np.sign(np.einsum("ds,ds->s", a[:, place], ends))
    there = near & (np.linalg.norm(ends - nearest, axis=0) < 1e-10)
    low = near & ~there & (f < 1 - 1e-9)
    other = near & ~there & ~low
    return np.array([there.sum(), low.sum(), other.sum(), (~near).sum()])


def _directions(rng: np.random.Generator, count: int) -> Array:
    x = rng.standard_normal((count, D)).T
    return x / np.linalg.norm(x, axis=0)


def draw(found: dict[str, Array], path: Path) -> None:
    """One stack of shares for each way to climb."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True)
    for axis, (title, parts) in zip(axes, found.items(), strict=True):
        below = np.zeros(len(RANKS))
        for share, label, color in zip(
            parts.T, ENDS, ("#3b7dd8", "#d8843b", "#7a4fb0", "#bbbbbb"), strict=True
        ):
            axis.bar(RANKS, share, 8, below, label=label, color=color)
            below += share
        axis.axvline(D * (D - 1) // 2, color="black", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="rank", ylim=(0, 1), xticks=RANKS)
    axes[0].set_ylabel("share of starts")
    axes[0].legend(loc="lower left")
    figure.savefig(path, dpi=110)


def main(folder: Path, starts: int) -> None:
    """Draw the picture, and print its figures."""
    ways = {"fixed shift": False, "as spm climbs": True}
    found = {
        title: np.array([shares(rank, starts, adaptive=adaptive) for rank in RANKS])
        for title, adaptive in ways.items()
    }
    for title, parts in found.items():
        for rank, row in zip(RANKS, parts, strict=True):
            print(title, rank, *(f"{share:.4f}" for share in row))
    draw(found, folder / "tensors_landscape.png")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        Path(given[0] if given else "docs/images"),
        int(given[1]) if len(given) > 1 else 500,
    )
