"""Where the starts of a CP decomposition begin, or go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import subspan
from subspan import _checks
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.tensors import _cp_sweep
from subspan.tensors._cp_sweep import Model, Rules
from subspan.tensors._reading import Array, dense
from subspan.tensors.cp_tensor import read_pair
from subspan.tensors.unfolding import matrix

__all__ = ["CPState", "begin"]

_NAME = "cp"


class CPState(NamedTuple):
    """All starts as they were left, from which `cp` goes on."""

    model: Model
    history: list[NDArray[np.float64]]
    active: NDArray[np.bool_]
    search: NDArray[np.int64]
    """(starts, 2): the root of the line search and its failures in a row."""


def begin(x: Array, rank: int, rules: Rules, init: Any, *, n_starts: int, seed: int) -> CPState:
    """Return the first state, or the one that is given."""
    if isinstance(init, CPState):
        shape = tuple(a.shape[1] for a in init.model.factors)
        came = init.model.weights.shape[1]
        if shape != x.shape or came != rank:
            raise InvalidArgumentError(
                f"[{_NAME}] init must be a result for shape {x.shape} and rank {rank}, got one for "
                f"{shape} and {came}"
            )
        return init
    count = _checks.integer(_NAME, "n_starts", n_starts, low=1)
    if isinstance(init, str):
        _checks.choice(_NAME, "init", init, ("random", "hosvd"))
        seed = _checks.integer(_NAME, "seed", seed, low=0)
        drawn = [_random(x, rank, rules, [seed, s]) for s in range(count)]
        if init == "hosvd":
            drawn[0] = _leading(x, rank, drawn[0], rules)
        starts = [(np.ones(rank, x.dtype), factors) for factors in drawn]
    else:
        several = isinstance(init, list) and len(init) > 0 and not hasattr(init[0], "dtype")
        starts = [_given(x, rank, one) for one in (init if several else [init])]
        if len(starts) != count and count > 1:
            raise InvalidArgumentError(
                f"[{_NAME}] n_starts must be {len(starts)}, as many as in init, got {count}"
            )
    for _, factors in starts:
        for group in rules.groups:
            for n in group[1:]:
                factors[n] = factors[group[0]]
    stacked = [np.stack([factors[n] for _, factors in starts]) for n in range(x.ndim)]
    parts = [_cp_sweep.unit(a) for a in stacked]
    weights = np.stack([w for w, _ in starts])
    for _, sizes in parts:
        weights = weights * sizes
    number = len(starts)
    return CPState(
        Model(weights, [a for a, _ in parts]),
        [],
        np.ones(number, bool),
        np.tile(np.array([2, 0]), (number, 1)),
    )


def _random(x: Array, rank: int, rules: Rules, seed: Sequence[int]) -> list[Array]:
    rng = np.random.default_rng(seed)
    drawn = [rng.standard_normal((extent, rank)).astype(x.dtype) for extent in x.shape]
    return [np.abs(a) if n in rules.nonnegative else a for n, a in enumerate(drawn)]


def _leading(x: Array, rank: int, other: list[Array], rules: Rules) -> list[Array]:
    out = []
    for n, drawn in enumerate(other):
        rows = matrix(x, n)
        vectors = subspan.eigh(subspan.gram(rows.T)).vectors[:, ::-1][:, :rank]
        if vectors.shape[1] < rank:
            vectors = np.concatenate([vectors, drawn[:, vectors.shape[1] :]], axis=1)
        out.append(np.abs(vectors) if n in rules.nonnegative else np.ascontiguousarray(vectors))
    return out


def _given(x: Array, rank: int, init: Any) -> tuple[Array, list[Array]]:
    try:
        weights, factors = init
    except (TypeError, ValueError):
        raise DtypeError(
            f"[{_NAME}] init must be 'random', 'hosvd', a CPTensor, a pair (weights, factors), a "
            f"list of them, or a CPResult, got {type(init).__name__}"
        ) from None
    factors = [dense(_NAME, f"init.factors[{n}]", a) for n, a in enumerate(factors)]
    if weights is None:
        weights = np.ones(rank, x.dtype)
    weights, factors = read_pair(_NAME, "init", weights, factors)
    wanted = [(extent, rank) for extent in x.shape]
    if [a.shape for a in factors] != wanted or weights.dtype != x.dtype:
        raise InvalidArgumentError(
            f"[{_NAME}] init must have {x.dtype} factors {wanted}, got {weights.dtype} "
            f"{[a.shape for a in factors]}"
        )
    return weights, factors
