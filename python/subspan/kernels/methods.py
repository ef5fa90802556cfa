"""The ways of `subspan.kernel_matvec` to make a product: exactly, from a factor, from samples."""

from math import prod
from typing import Any, NamedTuple

import numpy as np

from subspan import _arrays, _checks
from subspan.errors import ConvergenceError, InvalidArgumentError
from subspan.kernels import _cost
from subspan.kernels._error import ProductInfo, RowError
from subspan.kernels._kernel import DECREASING, DEFINITE, Array, Floats, Kernel, points, sides
from subspan.kernels.features import FEATURED, FeatureMap, even
from subspan.kernels.nystrom import PivotedCholesky
from subspan.kernels.sparse import sparsify

__all__ = ["METHODS", "Kernel", "Request", "product"]

METHODS = ("exact", "sparse", "nystrom", "rff", "auto")

_NAME = "kernel_matvec"
_BY_ROWS = "norm2(out - K v) / norm2(K v), from rows made exactly, plus two standard errors"
_BY_CUTOFF = "norm2(out - K v) / norm2(K v), bounded by the cut-off"
_EXACT = "norm2(out - K v) / norm2(K v), but for rounding"
_RANK = 1024  # landmarks, where nobody says how many
_FEATURES = 1 << 16  # random features, where nobody says how many
_FIRST = 512  # random features from which the others are foretold
_SMALL = 1e8  # nanoseconds of the exact product, below which looking for another takes longer
_WORTH = 0.7  # of the exact product, what another may cost to be tried


class _Job(NamedTuple):
    """A product to be made; y is x where there is none."""

    kernel: Kernel
    x: Array
    y: Array
    v: Array
    tol: float | None
    rank: int | None
    seed: int

    @property
    def one_sided(self) -> bool:
        return self.y is self.x


class _Product(NamedTuple):
    out: Array
    info: ProductInfo


class Request(NamedTuple):
    """What `subspan.kernel_matvec` was asked for beside the arrays."""

    kernel: Kernel
    method: str
    tol: float | None
    rank: int | None
    seed: int
    cutoff: float


def product(x: Any, y: Any, v: Any, asked: Request, *, return_info: bool) -> Any:
    """Return what `subspan.kernel_matvec` does for these arguments; its docstring is theirs."""
    method, kernel = asked.method, asked.kernel
    _checks.choice(_NAME, "method", method, METHODS)
    _checks.integer(_NAME, "seed", asked.seed, low=0, high=(1 << 64) - 1)
    if asked.tol is not None:
        asked = asked._replace(tol=_checks.real(_NAME, "tol", asked.tol, low=0.0))
    if method in {"exact", "auto", "sparse"} and asked.rank is not None:
        raise InvalidArgumentError(
            f"[{_NAME}] rank must be None for method={method!r}, got {asked.rank}. It is that of "
            '"nystrom" and "rff"'
        )
    if method == "exact" and asked.tol is not None:
        raise InvalidArgumentError(
            f'[{_NAME}] tol must be None for method="exact", got {asked.tol}. Use method="auto"'
        )
    if method == "exact" or (method == "auto" and not _choosable(x, y, v, asked)):
        out = kernel.multiply(x, y, v, asked.cutoff)
        pairs = int(x.shape[-2]) * int((x if y is None else y).shape[-2])
        return (out, _info("exact", 0.0, _EXACT, pairs=pairs)) if return_info else out
    if asked.cutoff:
        raise InvalidArgumentError(
            f"[{_NAME}] cutoff must be 0 for method={method!r}, got {asked.cutoff}. It belongs to "
            'method="exact"'
        )
    job, vectors = _job(x, y, v, asked)
    out, info = {"nystrom": _nystrom, "rff": _rff, "sparse": _sparse, "auto": _auto}[method](job)
    out = (out[:, 0] if vectors else out).astype(job.x.dtype, copy=False)
    delivered = _arrays.from_numpy(x, np.ascontiguousarray(out))
    return (delivered, info) if return_info else delivered


def _choosable(x: Any, y: Any, v: Any, asked: Request) -> bool:
    """Return whether there is anything to choose: an error to spend, and enough to save.

    What is no product at all is left to the exact one to refuse.
    """
    y = x if y is None else y
    if not asked.tol or asked.cutoff or asked.kernel.name not in DEFINITE:
        return False
    if not all(map(_arrays.library_of, (x, y, x if v is None else v))):
        return False
    shape = (1,) if v is None else tuple(v.shape)
    if (len(x.shape), len(y.shape)) != (2, 2) or len(shape) not in {1, 2}:
        return False
    if any(getattr(a, "requires_grad", False) for a in (x, y, v, asked.kernel.bandwidth)):
        return False
    n, m, d, e = (int(k) for k in (x.shape[0], y.shape[0], x.shape[1], prod(shape[1:])))
    return _cost.Size(n, m, d, e, _arrays.dtype_name(x) == "float64").exact() > _SMALL


def _job(x: Any, y: Any, v: Any, asked: Request) -> tuple[_Job, bool]:
    """Return the checked arguments, and whether v is one vector."""
    kernel, method, tol, rank = asked[:4]
    rows = points(_NAME, x=x, y=y)
    first, last = rows[0], rows[-1]
    allowed = {"sparse": DECREASING, "rff": FEATURED}.get(method, DEFINITE)
    kernel.check(_NAME, first.shape[1], allowed)
    if v is None:
        v = _arrays.from_numpy(x, np.ones(len(last), first.dtype))
    _arrays.require_same(_NAME, x=x, v=v)
    values, vectors = sides(_NAME, "v", v, len(last), first.dtype)
    if rank is not None:
        total = sum(map(len, rows)) if method == "nystrom" else 1 << 30
        rank = _checks.integer(_NAME, "rank", rank, low=1, high=total)
    elif tol is None:
        raise InvalidArgumentError(
            f"[{_NAME}] tol must be given for method={method!r}, got None"
            + ("" if method == "sparse" else ", and no rank either")
        )
    return _Job(kernel, first, last, values, tol, rank, asked.seed), vectors


def _nystrom(job: _Job) -> _Product:
    n = len(job.x)
    rows = job.x if job.one_sided else np.concatenate([job.x, job.y])
    growth = PivotedCholesky(rows, job.kernel, job.seed)
    most = job.rank or min(len(rows), _RANK)
    rows_of = RowError(job.kernel, job.x, job.y, job.v, job.seed)
    target, look = most if job.tol is None else min(32, most), 0
    while True:
        growth.grow(target)
        left = growth.factor[:, :n]
        right = left if job.one_sided else growth.factor[:, n:]
        out = left.T @ (right @ job.v)
        error, samples = rows_of.of(out, look, growth.residual[:n])
        traces = [growth.residual[part].sum() for part in (slice(0, n), slice(-len(job.y), None))]
        info = _info(
            "nystrom",
            error,
            _BY_ROWS,
            bound=float(np.sqrt(traces[0] * traces[1])),
            rank=growth.rank,
            pairs=growth.rank * len(rows),
            samples=samples,
        )
        if job.tol is None or error <= job.tol:
            return _Product(out, info)
        if growth.rank >= most or growth.exhausted:
            raise _missed(job.tol, f"{growth.rank} landmarks reach {error:.3g}", "nystrom")
        target, look = min(most, target + max(32, target // 2)), look + 1


def _rff(job: _Job) -> _Product:
    most = even(_NAME, job.kernel, job.rank or _FEATURES)
    rows_of = RowError(job.kernel, job.x, job.y, job.v, job.seed)
    d = job.x.shape[1]
    out: Floats = np.zeros((len(job.x), job.v.shape[1]))
    weights = job.kernel.diagonal(job.x)  # the errors of "exp_dot" sit in long rows
    made, block = 0, 0
    more = most if job.tol is None else min(most, _FIRST)
    while True:
        features = FeatureMap(job.kernel, d, more, seed=job.seed, block=block)
        out += (features.multiply(job.x, job.y, job.v) - out) * (more / (made + more))
        made += more
        error, samples = rows_of.of(out, block, weights)
        if job.tol is None or error <= job.tol:
            return _Product(out, _info("rff", error, _BY_ROWS, rank=made, samples=samples))
        # Errors fall with the root of the number of features.
        wanted = 1.2 * made * (error / job.tol) ** 2 if job.tol else np.inf
        if made == most or wanted > 4 * most:
            raise _missed(job.tol, f"{made} random features reach {error:.3g}", "rff")
        more = min(most, max(made + 2, 2 * int(wanted / 2))) - made
        block += 1


def _sparse(job: _Job) -> _Product:
    assert job.tol is not None
    pilot = _cost.Pilot(job.kernel, job.x, job.y, job.v, job.seed)
    plan = pilot.plan(job.tol)
    if plan.cost >= pilot.size.exact():
        return _exact(job)
    factor = sparsify(
        job.x,
        None if job.one_sided else job.y,
        kernel=job.kernel.name,
        bandwidth=job.kernel.bandwidth,
        alpha=job.kernel.alpha,
        threshold=plan.threshold,
    )
    try:
        out, info = factor.product(job.v, tol=job.tol, seed=job.seed, return_info=True)
    except ConvergenceError:  # the sample promised more than the columns kept
        return _exact(job)
    return _Product(out, info)


def _auto(job: _Job) -> _Product:
    """Make the product in the way that should be the quickest, and exactly where it fails."""
    assert job.tol is not None
    pilot = _cost.Pilot(job.kernel, job.x, job.y, job.v, job.seed)
    ways = {"exact": _WORTH * pilot.size.exact()}
    cutoff = 0.0
    if job.kernel.name in DECREASING:
        cutoff = pilot.cutoff(job.tol)
        ways["cutoff"] = pilot.size.boxed(pilot.share(cutoff))
        if pilot.size.search(0) < ways["exact"]:
            ways["sparse"] = pilot.plan(job.tol).cost
    rank = _foreseen(job, pilot)
    if rank is not None:
        total = len(job.x) + (0 if job.one_sided else len(job.y))
        ways["nystrom"] = pilot.size._replace(n=total).low_rank(3 * rank // 2)
    way = min(ways, key=ways.__getitem__)
    if way == "cutoff":
        return _cut(job, cutoff)
    if way == "sparse":
        return _sparse(job)
    if way == "nystrom" and rank is not None:
        try:
            return _nystrom(job._replace(rank=min(2 * rank + 32, len(job.x))))
        except ConvergenceError:
            return _exact(job)
    return _exact(job)


def _foreseen(job: _Job, pilot: _cost.Pilot) -> int | None:
    """Return the landmarks that half of tol takes for a sample of the points; None: too many."""
    assert job.tol is not None
    n = len(pilot.x)
    growth = PivotedCholesky(np.concatenate([pilot.x, pilot.y]), job.kernel, job.seed)
    exact = pilot.block @ pilot.v
    size = np.linalg.norm(exact, axis=0)
    for rank in (16, 32, 64, 128, 256):
        growth.grow(rank)
        out = growth.factor[:, :n].T @ (growth.factor[:, n:] @ pilot.v)
        if (np.linalg.norm(out - exact, axis=0) <= 0.5 * job.tol * size).all():
            return growth.rank
        if growth.exhausted:
            return None
    return None


def _exact(job: _Job, cutoff: float = 0.0) -> _Product:
    out = job.kernel.multiply(job.x, None if job.one_sided else job.y, job.v, cutoff)
    return _Product(out, _info("exact", 0.0, _EXACT, pairs=len(job.x) * len(job.y)))


def _cut(job: _Job, cutoff: float) -> _Product:
    """Leave out pairs below a cut-off, if its bound on the error is then below tol."""
    assert job.tol is not None
    out = _exact(job, cutoff).out
    off = cutoff * np.sqrt(len(job.x)) * np.abs(job.v.astype(np.float64)).sum(0)
    size = np.linalg.norm(out.astype(np.float64), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = float(np.where(off > 0, off / np.maximum(size - off, 0), 0.0).max(initial=0.0))
    if error > job.tol:
        return _exact(job)
    return _Product(out, _info("cutoff", error, _BY_CUTOFF))


def _info(
    method: str,
    error: float,
    norm: str,
    *,
    bound: float = float("nan"),
    rank: int = 0,
    pairs: int = 0,
    samples: int = 0,
) -> ProductInfo:
    return ProductInfo(method, error, norm, bound, rank, pairs, samples)


def _missed(tol: float, reached: str, method: str) -> ConvergenceError:
    return ConvergenceError(
        f"[{_NAME}] tol must be one that method={method!r} can meet, got {tol:g} where {reached}. "
        'Raise rank or tol, or use method="exact"'
    )
