"""CP decompositions by alternating least squares, several starts as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.errors import ConvergenceError, DtypeError, InvalidArgumentError
from subspan.tensors import _cp_sweep
from subspan.tensors._cp_starts import CPState, begin
from subspan.tensors._cp_sweep import Model, Rules
from subspan.tensors._cp_symmetric import require_symmetric
from subspan.tensors._reading import Array, finite, give, modes, tensor
from subspan.tensors.cp_tensor import CPTensor, normalized, rebuilt

__all__ = ["CPResult", "cp"]

_NAME = "cp"
Progress = Callable[[int, NDArray[np.float64]], object]


class CPResult(NamedTuple):
    r"""Result of :func:`cp`.

    Attributes
    ----------
    tensor : CPTensor
        Of the best start, normalised.
    error : float
        :math:`\|X - \hat X\| / \|X\|` of it, over the elements that are known.
    errors : array (sweeps, starts)
        The same after every sweep, from the last product of the sweep; NaN where a start had
        stopped.
    converged : array (starts,) of bool
    iterations : array (starts,)
        Sweeps of each start.
    best : int
        Which start ``tensor`` is of.
    state : CPState
        All starts; ``cp(x, rank, init=result)`` goes on from it.
    """

    tensor: CPTensor
    error: float
    errors: NDArray[np.float64]
    converged: NDArray[np.bool_]
    iterations: NDArray[np.int64]
    best: int
    state: CPState


def cp(
    x: Any,
    rank: int,
    *,
    init: Any = "random",
    n_starts: int = 1,
    nonnegative: bool | Sequence[int] = False,
    symmetric: bool | Sequence[Sequence[int]] = False,
    mask: Any = None,
    line_search: bool = False,
    tol: float = 1e-8,
    max_iter: int = 500,
    ridge: float = 1e-12,
    seed: int = 0,
    errors: str = "info",
    progress: Progress | None = None,
) -> CPResult:
    r"""Fit a sum of outer products to a tensor (CANDECOMP/PARAFAC) by alternating least squares.

    .. math:: \min \Big\| X - \sum_{r=1}^R \lambda_r \, a^{(0)}_r \circ \dots \circ a^{(N-1)}_r
              \Big\|, \qquad
              A_n \leftarrow X_{(n)} \Big(\bigodot_{m \ne n} A_m\Big)
              \Big(\prod_{m \ne n} A_m^T A_m\Big)^{-1}

    Parameters
    ----------
    x : array (I_0, ..., I_{N-1})
        float32 or float64, N >= 3. Of matrices every rotation of the factors fits as well: take
        `subspan.svd`.
    rank : int
        R >= 1; above the extents too, up to the smallest product of all extents but one, which
        no tensor of this shape exceeds.
    init : {"random", "hosvd"}, CPTensor, pair, list of these, or CPResult
        Gaussian factors; leading left singular vectors of the unfoldings, with Gaussian columns
        beyond their number, for the first start, and Gaussian for others; weights and factors that
        are given; or a result to go on from, with all its starts and its record.
    n_starts : int
        Starts that are worked on together: they share every pass over the tensor.
    nonnegative : bool, or modes
        Factors that must be nowhere negative: all, or those of some modes (by HALS).
    symmetric : bool, or groups of modes
        Modes that share one factor: all, or each of ``[(1, 2), ...]``. x must be symmetric in them.
        A shared factor moves towards its least squares solution by an exact line search, so that
        the error never rises.
    mask : array of bool (I_0, ..., I_{N-1}), optional
        True where x is known; elsewhere it may hold anything, and is filled from the model before
        each sweep (expectation maximisation).
    line_search : bool
        Jump ahead along the last change every second sweep (Bro), where that lowers the error.
    tol : float
        A start stops when its error changes by less in a sweep.
    max_iter : int
        Most sweeps, those of a result in ``init`` not counted.
    ridge : float
        Added to the diagonals of the R x R systems, relative to their mean.
    seed : int
        Of random factors; start s is the same whatever their number.
    errors : {"info", "raise"}
        Where ``tol`` is missed: ``converged`` says so, or `ConvergenceError`.
    progress : callable, optional
        Called as ``progress(sweep, errors)`` after every sweep.

    Returns
    -------
    CPResult (tensor, error, errors, converged, iterations, best, state)
        Arrays of ``tensor`` in x's library and dtype.

    Raises
    ------
    InvalidArgumentError
        Fewer than three modes, an empty one; NaN or infinity; a rank out of range; an init that
        does not fit; modes that do not exist, or that share a factor and must not be negative; not
        symmetric, by how much; nothing known in a mask.
    DtypeError, UnsupportedError
        Not a float array on the CPU.
    ConvergenceError
        With ``errors="raise"``, if the best start missed ``tol``.

    Notes
    -----
    A sweep takes two products of 2 I R flops with the tensor for any order where that is worth it
    (a dimension tree: a half of the modes at a time), else N; Gram matrices and R x R Cholesky
    factorisations besides, with eigenvalues where one fails. The error after a sweep comes from its
    last product, without a residual; its square is right to rounding, so that a small ``error`` is
    that of the residual, made slab by slab. With a mask every start has a tensor of its own in
    memory. Systems are solved by numpy's products: the last bits may depend on its threads.

    References
    ----------
    T. G. Kolda, B. W. Bader: Tensor decompositions and applications, SIAM Review 51 (2009), 3.4.
    A.-H. Phan, P. Tichavsky, A. Cichocki: Fast alternating LS algorithms for high order
    CANDECOMP/PARAFAC tensor factorizations, IEEE Trans. Signal Process. 61 (2013).
    R. Bro: Multi-way analysis in the food industry, thesis, Amsterdam 1998 (line search).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import cp
    >>> rng = np.random.default_rng(0)
    >>> a, b, c = (rng.standard_normal((n, 2)) for n in (4, 5, 6))
    >>> result = cp(np.einsum("ir,jr,kr->ijk", a, b, c), 2, tol=1e-12)
    >>> result.error < 1e-6, bool(result.converged[0])
    (True, True)
    """
    array = tensor(_NAME, x, remedy=". Take subspan.svd or subspan.eigh for matrices")
    known = _known(array, mask)
    finite(_NAME, "x", array, known)
    if known is not None:
        array = np.where(known, array, array.dtype.type(0))
    rules = _rules(array, nonnegative, symmetric, ridge)
    bound = min(prod(array.shape) // extent for extent in array.shape)
    rank = _checks.integer(_NAME, "rank", rank, low=1)
    if rank > bound:
        raise InvalidArgumentError(
            f"[{_NAME}] rank must be at most {bound}, the smallest product of all extents but one "
            f"of {array.shape}, which no such tensor exceeds, got {rank}"
        )
    limit = _checks.real(_NAME, "tol", tol, low=0.0)
    steps = _checks.integer(_NAME, "max_iter", max_iter, low=0)
    raising = _checks.choice(_NAME, "errors", errors, ("info", "raise")) == "raise"
    given = init.state if isinstance(init, CPResult) else init
    state = begin(array, rank, rules, given, n_starts=n_starts, seed=seed)
    size = float(np.linalg.norm(array.astype(np.float64, copy=False)))
    if size == 0:
        state.model.weights[:] = 0
        state.active[:] = False
    data = _Data(array, known, size)
    state = _run(
        data, state, rules, steps=steps, limit=limit, line_search=line_search, progress=progress
    )
    result = _result(x, data, state)
    if raising and not result.converged[result.best]:
        raise ConvergenceError(
            f"[{_NAME}] the error must change by less than tol = {limit:.3g} in a sweep, got "
            f"{result.error:.6g} still falling after {len(state.history)} sweeps. Raise max_iter "
            'or tol, or take errors="info"'
        )
    return result


class _Data(NamedTuple):
    """The tensor, where it is known (None: everywhere) and 0 elsewhere, and its norm."""

    x: Array
    known: Array | None
    size: float


def _run(
    data: _Data,
    state: CPState,
    rules: Rules,
    *,
    steps: int,
    limit: float,
    line_search: bool,
    progress: Progress | None,
) -> CPState:
    history = list(state.history)
    starts = len(state.active)
    active, search = state.active.copy(), state.search.copy()
    model = Model(state.model.weights.copy(), [a.copy() for a in state.model.factors])
    last = history[-1] if history else np.full(starts, np.inf)
    for number in range(len(history), len(history) + steps):
        places = np.flatnonzero(active)
        if places.size == 0:
            break
        before = model if places.size == starts else model.take(places)
        now = before.next()
        found = _cp_sweep.sweep(_filled(data, now), now, rules)
        error = _error(data, now, found)
        if line_search and number > 4 and number % 2 == 0:
            mine = search[places]
            _jump(data, rules, before, now, error=error, search=mine, number=number)
            search[places] = mine
        if places.size == starts:
            model = now
        else:
            model.put(places, now)
        row = np.full(starts, np.nan)
        row[places] = error
        history.append(row)
        active[places] = ~(np.abs(last[places] - error) < limit)
        last = np.where(np.isnan(row), last, row)
        if progress is not None:
            progress(number, row)
    return CPState(model, history, active, search)


def _error(data: _Data, model: Model, found: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Relative errors; ``found``: <x, model> and |model|^2, which do where all is known."""
    if data.known is None:
        assert found is not None
        squared = data.size**2 - 2 * found[:, 0] + found[:, 1]
    else:
        rest = np.where(data.known, data.x - rebuilt(model.weights, model.factors), 0)
        squared = np.square(rest, dtype=np.float64).sum(axis=tuple(range(1, rest.ndim)))
    out: NDArray[np.float64] = np.sqrt(np.maximum(squared, 0.0)) / data.size
    return out


def _filled(data: _Data, model: Model) -> Array:
    if data.known is None:
        return data.x
    return np.where(data.known, data.x, rebuilt(model.weights, model.factors))


def _jump(
    data: _Data,
    rules: Rules,
    before: Model,
    now: Model,
    *,
    error: NDArray[np.float64],
    search: NDArray[np.int64],
    number: int,
) -> None:
    """Go on along the change of the sweep, by number^(1/root) times its length, if that helps."""
    step = float(number) ** (1.0 / search[:, 0]) - 1
    factors = []
    for n in range(data.x.ndim):
        old, new = before.factors[n], now.factors[n]
        if rules.free and n == rules.free[-1]:  # the sizes are those of the last factor
            old = old * before.weights[:, None, :]
            new = new * now.weights[:, None, :]
        ahead = new + step.astype(new.dtype)[:, None, None] * (new - old)
        factors.append(np.maximum(ahead, 0) if n in rules.nonnegative else ahead)
    weights = now.weights.copy() if not rules.free else np.ones_like(now.weights)
    parts = [_cp_sweep.unit(a) for a in factors]
    for _, sizes in parts:
        weights *= sizes
    there = Model(weights, [a for a, _ in parts])
    found = None if data.known is not None else _cp_sweep.inner_and_norm(data.x, there)
    far = _error(data, there, found)
    better = np.flatnonzero(far < error)
    now.put(better, there.take(better))
    error[better] = far[better]
    failed = np.ones(len(error), bool)
    failed[better] = False
    search[:, 1] = np.where(failed, search[:, 1] + 1, 0)
    spent = search[:, 1] == 4
    search[spent] = np.stack([search[spent, 0] + 1, np.zeros(int(spent.sum()), int)], axis=1)


def _result(x: Any, data: _Data, state: CPState) -> CPResult:
    starts = len(state.active)
    record = np.stack(state.history) if state.history else np.empty((0, starts))
    final = np.array([_last(record[:, s]) for s in range(starts)])
    best = int(np.argmin(np.where(np.isnan(final), np.inf, final)))
    weights = state.model.weights[best]
    factors = [a[best] for a in state.model.factors]
    error = float(final[best])
    if not error**2 > 1e6 * float(np.finfo(data.x.dtype).eps):  # few digits of it are right
        error = _exact(data, weights, factors)
    weights, unitary = normalized(weights, factors)
    return CPResult(
        CPTensor(give(x, weights), tuple(give(x, a) for a in unitary)),
        error,
        record,
        ~state.active,
        np.sum(~np.isnan(record), axis=0),
        best,
        state,
    )


def _last(column: NDArray[np.float64]) -> float:
    found = column[~np.isnan(column)]
    return float(found[-1]) if found.size else float("nan")


def _exact(data: _Data, weights: Array, factors: list[Array]) -> float:
    """Return the error of the residual, made in slabs of the first mode."""
    x, known, size = data
    if size == 0:
        return 0.0
    rows = max(1, (1 << 20) // max(prod(x.shape[1:]), 1))
    total = 0.0
    wide = [a.astype(np.float64) for a in factors]
    for first in range(0, x.shape[0], rows):
        part = slice(first, first + rows)
        rest = x[part] - rebuilt(weights.astype(np.float64), [wide[0][part], *wide[1:]])
        if known is not None:
            rest = np.where(known[part], rest, 0)
        total += float(np.square(rest).sum())
    return float(np.sqrt(total)) / size


def _known(x: Array, mask: Any) -> Array | None:
    if mask is None:
        return None
    known = np.asarray(mask)
    if known.dtype != np.bool_:
        raise DtypeError(f"[{_NAME}] mask must be of bool, got {known.dtype}")
    if known.shape != x.shape:
        raise InvalidArgumentError(
            f"[{_NAME}] mask must have the shape of x {x.shape}, got {known.shape}"
        )
    if not known.any():
        raise InvalidArgumentError(f"[{_NAME}] mask must leave elements of x, got none")
    return known


def _rules(x: Array, nonnegative: Any, symmetric: Any, ridge: float) -> Rules:
    order = x.ndim
    positive: tuple[int, ...] = ()
    if nonnegative is True:
        positive = tuple(range(order))
    elif nonnegative is not False:
        positive = modes(_NAME, "nonnegative", nonnegative, order)
    groups: list[tuple[int, ...]] = []
    if symmetric is True:
        groups = [tuple(range(order))]
    elif symmetric is not False:
        flat = modes(_NAME, "symmetric", [n for group in symmetric for n in group], order)
        for group in symmetric:
            groups.append(flat[: len(group)])
            flat = flat[len(group) :]
    for group in groups:
        if len(group) < 2:
            raise InvalidArgumentError(
                f"[{_NAME}] symmetric must be groups of two or more modes, got {group}"
            )
        require_symmetric(_NAME, x, group)
    both = sorted(set(positive) & {n for group in groups for n in group})
    if both:
        raise InvalidArgumentError(
            f"[{_NAME}] nonnegative must name modes that share no factor, got {both}, which are in "
            "symmetric. Leave them out of one of the two"
        )
    return Rules(
        x.shape,
        frozenset(positive),
        tuple(groups),
        _checks.real(_NAME, "ridge", ridge, low=0.0, high=1.0),
        0 if groups else _cp_sweep.tree_split(x.shape),
    )
