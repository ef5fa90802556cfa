"""What the methods of `kernel_matvec` take and how far off they are: figures and a picture.

python bench/kernel_methods.py --costs           constants for python/subspan/kernels/_cost.py
python bench/kernel_methods.py --picture FILE    error against time, over dimensions and sizes

All on one thread and in CPU seconds, which do not depend on what else the machine does; the exact
product and the others take turns, and the fastest rounds count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import subspan
from subspan.kernels import ProductInfo, nystrom

Array = np.ndarray[Any, Any]
Run = Callable[[], Any]

DIMENSIONS, SIZES = (2, 8, 32), (5_000, 20_000)
RANKS, FEATURES = (16, 32, 64, 128, 256, 512), (128, 512, 2048, 8192)


def fastest(runs: Sequence[Run], rounds: int) -> list[float]:
    """Return the least seconds of each of some calls that take turns; the first is not timed."""
    best = [np.inf] * len(runs)
    for turn in range(rounds + 1):
        for i, run in enumerate(runs):
            start = time.process_time()
            run()
            if turn:
                best[i] = min(best[i], time.process_time() - start)
    return best


def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> Array:
    """Return the non-negative weights of the columns that give the seconds best, relatively."""
    a = np.array(rows) / np.array(seconds)[:, None]
    weights = np.linalg.lstsq(a, np.ones(len(a)), rcond=None)[0]
    return np.asarray(np.maximum(weights, 0.0))


# ---- constants -------------------------------------------------------------------------------


def costs(n: int = 6000, rounds: int = 4) -> dict[str, float]:
    """Measure the constants of the model, in nanoseconds."""
    rng = np.random.default_rng(0)
    points = {d: rng.standard_normal((n, d)).astype(np.float32) for d in (2, 16, 64)}
    shapes = [(d, e) for d in points for e in (1, 8, 32)]

    def product(d: int, e: int, dtype: type = np.float32) -> Run:
        x, v = points[d].astype(dtype), rng.standard_normal((n, e)).astype(dtype)
        return lambda: subspan.kernel_matvec(x, x.copy(), v, bandwidth=float(d) ** 0.5)

    singles = fastest([product(*shape) for shape in shapes], rounds)
    doubles = fastest([product(*shape, np.float64) for shape in shapes], rounds)
    some = points[16]
    one, two = fastest(
        [
            lambda: subspan.kernel_matvec(some, None, some[:, 0], bandwidth=4.0),
            lambda: subspan.kernel_matvec(some, some.copy(), some[:, 0], bandwidth=4.0),
        ],
        rounds,
    )
    pair, coordinate, side = fit([(1, d, e) for d, e in shapes], np.array(singles) / n**2 * 1e9)

    def search(d: int, radius: float) -> Run:
        x = points[d]
        return lambda: subspan.radius_neighbors(x, x.copy(), radius=radius)

    searches = fastest([search(d, 1e-3) for d in points], rounds)
    searched, by_coordinate = fit([(1, d) for d in points], np.array(searches) / n**2 * 1e9)
    x = points[2]
    wide = subspan.radius_neighbors(x, x.copy(), radius=0.3)
    count = len(wide.indices)
    values = np.ones(count, np.float32)
    sides = [np.ones((n, e), np.float32) for e in (1, 32)]
    few, many, all_found = fastest(
        [
            *(
                lambda v=v: subspan.sparse_decode(values, wide.indices, v, offsets=wide.offsets)
                for v in sides
            ),
            search(2, 0.3),
        ],
        rounds,
    )
    found = (all_found - searches[0]) / count * 1e9
    narrow, broad = fastest([lambda r=r: nystrom(x, rank=r, bandwidth=0.3) for r in (64, 256)], 2)
    entries = {r: n * r * (pair + 2 * coordinate + 32 * side) * 2.2e-9 for r in (64, 256)}
    entry, flop = fit(
        [(n * r * 1e-9, n * r * r * 1e-9) for r in (64, 256)],
        [max(narrow - entries[64], 1e-4), max(broad - entries[256], 1e-4)],
    )
    return {
        "_PAIR": pair,
        "_COORDINATE": coordinate,
        "_SIDE": side,
        "_DOUBLE": float(np.median(np.array(doubles) / np.array(singles))),
        "_SAME": one / two,
        "_SEARCHED": searched,
        "_SEARCHED_COORDINATE": by_coordinate,
        "_FOUND": found,
        "_STORED": max(many - few, 0.0) / 31 / count * 1e9,
        "_ENTRY": entry,
        "_FLOP": flop,
    }


# ---- picture ---------------------------------------------------------------------------------


def curve(x: Array, v: Array, width: float, exact: Array, how: Sequence[dict[str, Any]]) -> Array:
    """Return (time of the exact product / time, relative error) of some ways to make it."""
    errors: list[float] = []
    runs: list[Run] = [lambda: subspan.kernel_matvec(x, None, v, bandwidth=width)]
    for options in how:
        out, info = subspan.kernel_matvec(x, None, v, bandwidth=width, return_info=True, **options)
        assert isinstance(info, ProductInfo)
        errors.append(float(np.linalg.norm(out - exact) / np.linalg.norm(exact)))
        runs.append(lambda o=options: subspan.kernel_matvec(x, None, v, bandwidth=width, **o))
    first, *others = fastest(runs, 3)
    return np.array([(first / t, e) for t, e in zip(others, errors, strict=True)])


def picture(path: Path) -> None:
    """Draw the error of one product against its speed-up, for two bandwidths."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(2, len(DIMENSIONS), figsize=(10, 6), layout="constrained")
    rng = np.random.default_rng(0)
    for row, (scale, name) in enumerate(((1.0, "the spread"), (0.25, "a quarter of it"))):
        for d, axes in zip(DIMENSIONS, grid[row], strict=True):
            for n, style in zip(SIZES, ("--", "-"), strict=True):
                x = rng.standard_normal((n, d)).astype(np.float32)
                v = rng.uniform(size=n).astype(np.float32)
                width = scale * float(d) ** 0.5
                wide = (x.astype(np.float64), None, v.astype(np.float64))
                exact = subspan.kernel_matvec(*wide, bandwidth=width)
                ways = (
                    ("Nystrom", "C0", [{"method": "nystrom", "rank": r} for r in RANKS]),
                    ("random features", "C1", [{"method": "rff", "rank": r} for r in FEATURES]),
                    ("cut-off", "C2", [{"cutoff": 10.0**-k} for k in (2, 4, 6)]),
                )
                for label, colour, how in ways:
                    shown = f"{label}, n = {n}" if row == 0 else None
                    line = curve(x, v, width, exact, how)
                    axes.plot(*line.T, style, color=colour, marker=".", label=shown)
                print(f"d {d} n {n} bandwidth {name}", flush=True)
            axes.axvline(1.0, color="0.6", linewidth=1)
            axes.set(xscale="log", yscale="log", ylim=(1e-7, 2), title=f"d = {d}, {name}")
    for axes in grid[-1]:
        axes.set_xlabel("times as quick as the exact product")
    for axes in grid[:, 0]:
        axes.set_ylabel("relative error")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    with machine.equal_threads(1):
        if options.costs:
            for name, value in costs().items():
                print(f"{name} = {value:.3g}")
        if options.picture:
            picture(options.picture)


if __name__ == "__main__":
    main()
