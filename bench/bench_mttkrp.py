"""Tensor products and decompositions: time and error against TensorLy, pyttb and numpy.

python bench/bench_mttkrp.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import sys
from typing import Any

import harness
import numpy as np
import subspan
from harness import Case, available
from subspan.tensors import cp, tucker

SHAPES: dict[str, list[tuple[tuple[int, ...], int]]] = {
    "full": [((300, 300, 300), 32), ((60, 60, 60, 60), 32), ((500, 50, 50), 10)],
    "quick": [((100, 100, 100), 32), ((30, 30, 30, 30), 16)],
    "tiny": [((4, 5, 6), 2), ((3, 4, 3, 4), 2)],
}
# Shape, rank, starts, sweeps.
SWEEPS: dict[str, list[tuple[tuple[int, ...], int, int, int]]] = {
    "full": [((500, 50, 50), 10, 1, 20), ((60,) * 4, 16, 1, 5), ((20,) * 3, 5, 64, 20)],
    "quick": [((200, 30, 30), 10, 1, 10), ((20,) * 3, 5, 16, 10)],
    "tiny": [((4, 5, 6), 2, 2, 2)],
}
TUCKER: dict[str, list[tuple[tuple[int, ...], int]]] = {
    "full": [((100, 100, 100), 10), ((40, 40, 40, 40), 6)],
    "quick": [((50, 50, 50), 5)],
    "tiny": [((5, 6, 7), 2)],
}


class Problem:
    """A noisy tensor of low rank in either order of memory, and factors for every start."""

    def __init__(self, shape: tuple[int, ...], rank: int, starts: int = 1) -> None:
        rng = np.random.default_rng(0)
        truth = [rng.standard_normal((n, rank)) for n in shape]
        x = truth[0]
        for a in truth[1:]:
            x = (x[:, None, :] * a).reshape(-1, rank)
        self.x = x.sum(axis=1).reshape(shape)
        self.x += 0.1 * np.linalg.norm(self.x) / self.x.size**0.5 * rng.standard_normal(shape)
        self.starts = [[rng.standard_normal((n, rank)) for n in shape] for _ in range(starts)]
        self.factors, self.rank = self.starts[0], rank
        self.ones = np.ones(rank)
        if available("pyttb"):
            import pyttb

            self.turned = pyttb.tensor(np.asfortranarray(self.x))


def _einsum(x: np.ndarray[Any, Any], factors: Any, mode: int) -> np.ndarray[Any, Any]:
    letters = "abcdef"[: x.ndim]
    others = [n for n in range(x.ndim) if n != mode]
    given = ",".join([letters, *(f"{letters[n]}z" for n in others)])
    arrays = [factors[n] for n in others]
    return np.einsum(f"{given}->{letters[mode]}z", x, *arrays, optimize=True)


def products(mode: int) -> dict[str, harness.Contender]:
    found: dict[str, harness.Contender] = {
        "subspan.mttkrp": lambda s: subspan.mttkrp(s.x, s.factors, mode),
        "numpy einsum optimize": lambda s: _einsum(s.x, s.factors, mode),
    }
    if available("tensorly"):
        from tensorly.tenalg import unfolding_dot_khatri_rao

        found["tensorly"] = lambda s: unfolding_dot_khatri_rao(s.x, (s.ones, s.factors), mode)
    if available("pyttb"):
        found["pyttb"] = lambda s: s.turned.mttkrp(s.factors, mode)
    return found


def _plain_sweeps(x: np.ndarray[Any, Any], start: Any, count: int) -> float:
    """Return the relative error after sweeps of plain alternating least squares."""
    factors = [a.copy() for a in start]
    product = factors[-1]
    for _ in range(count):
        for n in range(x.ndim):
            product = _einsum(x, factors, n)
            grams = [a.T @ a for m, a in enumerate(factors) if m != n]
            factors[n] = np.linalg.solve(np.prod(grams, axis=0), product.T).T
    model = np.prod([a.T @ a for a in factors], axis=0).sum()
    inner, size = float((product * factors[-1]).sum()), float(np.vdot(x, x))
    return float(max((size + model - 2 * inner) / size, 0.0)) ** 0.5


def sweeps(count: int) -> dict[str, harness.Contender]:
    found: dict[str, harness.Contender] = {
        "subspan.cp": lambda s: _ours(s, count),
        "numpy einsum optimize": lambda s: _all_plain(s, count),
    }
    if available("tensorly"):
        from tensorly.decomposition import parafac

        def tensorly(s: Problem) -> float:
            options = {"n_iter_max": count, "tol": 0, "return_errors": True}
            lefts = [
                parafac(s.x, s.rank, init=(s.ones, [a.copy() for a in f]), **options)[1][-1]
                for f in s.starts
            ]
            return float(lefts[0])

        found["tensorly parafac"] = tensorly
    if available("pyttb"):
        import pyttb

        def ttb(s: Problem) -> float:
            fits = []
            for f in s.starts:
                init = pyttb.ktensor([a.copy(order="F") for a in f], s.ones.copy())
                options = {"maxiters": count, "stoptol": 0, "printitn": 0, "init": init}
                fits.append(1 - pyttb.cp_als(s.turned, s.rank, **options)[2]["fit"])
            return float(fits[0])

        found["pyttb cp_als"] = ttb
    return found


def _all_plain(s: Problem, count: int) -> float:
    errors = [_plain_sweeps(s.x, f, count) for f in s.starts]
    return errors[0]


def _ours(s: Problem, count: int) -> float:
    starts = [(s.ones, f) for f in s.starts]
    return float(cp(s.x, s.rank, init=starts, tol=0, max_iter=count).errors[-1, 0])


def compressions(rank: int) -> dict[str, harness.Contender]:
    found: dict[str, harness.Contender] = {
        "subspan.tucker": lambda s: tucker(s.x, rank).error,
        "subspan.tucker hooi": lambda s: tucker(s.x, rank, method="hooi").error,
        "numpy ST-HOSVD": lambda s: _plain(s.x, rank),
    }
    if available("tensorly"):
        from tensorly.decomposition import tucker as other

        def tensorly(s: Problem) -> float:
            core, _ = other(s.x, [rank] * s.x.ndim)
            return _left(s.x, core)

        found["tensorly tucker"] = tensorly
    if available("pyttb"):
        import pyttb

        def ttb(s: Problem) -> float:
            ranks = [rank] * s.x.ndim
            return _left(s.x, pyttb.hosvd(s.turned, 1e-3, verbosity=0, ranks=ranks).core.data)

        found["pyttb hosvd"] = ttb
    return found


def _plain(x: np.ndarray[Any, Any], rank: int) -> float:
    """Eigenvectors of Gram matrices of unfoldings, mode by mode."""
    core = x
    for n in range(x.ndim):
        rows = np.moveaxis(core, n, 0).reshape(core.shape[n], -1)
        vectors = np.linalg.eigh(rows @ rows.T)[1][:, ::-1][:, :rank]
        core = np.moveaxis(np.tensordot(vectors.T, core, (1, n)), 0, n)
    return _left(x, core)


def _left(x: np.ndarray[Any, Any], core: np.ndarray[Any, Any]) -> float:
    size = float(np.vdot(x, x))
    return float(max(size - np.square(core).sum(), 0) / size) ** 0.5


def cases(size: str) -> list[Case]:
    """Return the comparisons of a size."""
    found = []
    for shape, rank in SHAPES[size]:
        name = "x".join(map(str, shape))
        for mode in range(len(shape)):

            def judge(s: Problem, result: Any, mode: int = mode) -> dict[str, float]:
                wanted = _einsum(s.x, s.factors, mode)
                return {"error": float(np.abs(result - wanted).max() / np.abs(wanted).max())}

            found.append(
                Case(
                    f"mttkrp {name} R={rank} mode {mode}",
                    lambda shape=shape, rank=rank: Problem(shape, rank),
                    products(mode),
                    judge,
                    flops=2.0 * float(np.prod(shape)) * rank,
                )
            )

    for shape, rank, starts, count in SWEEPS[size]:
        name = "x".join(map(str, shape))
        found.append(
            Case(
                f"cp {name} R={rank} {starts} starts {count} sweeps",
                lambda shape=shape, rank=rank, starts=starts: Problem(shape, rank, starts),
                sweeps(count),
                lambda s, left, count=count: {
                    "error": abs(left - _plain_sweeps(s.x, s.factors, count))
                },
            )
        )
    for shape, rank in TUCKER[size]:
        name = "x".join(map(str, shape))
        found.append(
            Case(
                f"tucker {name} R={rank}",
                lambda shape=shape, rank=rank: Problem(shape, rank),
                compressions(rank),
                lambda s, left, rank=rank: {"above": max(left - _plain(s.x, rank), 0.0)},
            )
        )
    return found


def main(argv: list[str] | None = None) -> dict[str, Any]:
    return harness.main(__file__, cases, __doc__ or "", argv)


if __name__ == "__main__":
    main(sys.argv[1:])
