"""Sparse dictionaries of weights, fitted to the outputs (CoSpaDi), K-SVD or orthogonal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import subspan
from subspan import _arrays, _checks
from subspan.compression._inputs import grams_of, like, matrices_of, scales_of, square_root
from subspan.compression._pursuit import damped_root, pursue
from subspan.compression.lowrank import damped
from subspan.compression.matrices import Dense, Replacement, SparseDictionary
from subspan.compression.storage import dense_storage, dictionary_size, dictionary_storage
from subspan.errors import InvalidArgumentError

__all__ = ["sparse_dictionary"]

_TWINS = 0.99  # atoms with a larger cosine are one atom
_GROUP = 16  # atoms that are updated together
_SPENT = 1e-12  # of the largest squared length: what is left of a row that adds no direction


class _State(NamedTuple):
    """A dictionary of rows (k, n) and codes (m, k), dense, of the signals (m, n)."""

    atoms: Any
    codes: Any
    errors: Any
    """(m,) squared residuals."""


def sparse_dictionary(
    weight: Any,
    gram: Any = None,
    *,
    kept: float | None = None,
    atoms: int | None = None,
    sparsity: int | None = None,
    ratio: float = 2.0,
    dictionary: str = "ksvd",
    importance: Any = None,
    iterations: int = 60,
    power: int = 2,
    tol: float = 1e-3,
    ridge: float = 1e-6,
    seed: int = 0,
    bits: int = 16,
) -> Replacement:
    r"""Return a dictionary with sparse codes that keeps the outputs of a layer (CoSpaDi).

    .. math:: \min_{D, C} \|L (W^T - D C)\|_F, \quad L^T L = G, \quad \|c_j\|_0 \le s

    Solved as dictionary learning of :math:`L W^T`, whose dictionary is brought back by one
    triangular solve.

    Parameters
    ----------
    weight : array (m, n)
        float16, bfloat16, float32 or float64 of numpy, torch (CPU) or another library with DLPack.
        Worked on in float32, float64 weights in float64.
    gram : array (n, n) or Moments, optional
        Second moments of the inputs, as for `whitened_svd`; the identity if left out.
    kept : float in (0, 1], optional
        Bytes that may be stored, indices included, as a part of the dense ones; or give
        ``atoms`` and ``sparsity``.
    atoms, sparsity : int, optional
        Columns of the dictionary, and how many of them each of the m coded rows uses.
    ratio : float
        ``atoms / sparsity`` where ``kept`` is given.
    dictionary : {"ksvd", "orthogonal"}
        ``"ksvd"``: orthogonal matching pursuit and updates of 16 atoms at a time, from the better
        of two starts: rows chosen by pivoted orthogonalisation, or singular vectors and such rows.
        ``"orthogonal"``: orthonormal in the norm of G, at most n atoms; codes are the s largest
        products and the dictionary a polar factor, both in closed form.
    importance : array (m,), optional
        Weights >= 0 of the squared errors of the outputs.
    iterations : int
        Rounds at most; they end when the squared error falls by less than ``tol`` of itself.
    power : int
        Times that a group of 16 atoms and its codes are fitted in turn, in a round.
    tol : float
        See ``iterations``.
    ridge : float > 0
        Added to G, as a part of its mean diagonal: here it is inverted.
    seed : int
        Of the rows that fill a start that needs more atoms than there are directions.
    bits : int
        Bits of a stored value, for ``kept``.

    Returns
    -------
    SparseDictionary, or Dense
        The error is that of the outputs, in float64, of what is returned; ``history`` has the
        errors after each accepted step and never rises. A note says if it takes more bytes than the
        weight; Dense if all is to be kept.

    Raises
    ------
    InvalidArgumentError, DtypeError
        Not a matrix; neither kept nor both sizes; sizes out of range; NaN or infinity; a Gram
        matrix that does not fit.

    Notes
    -----
    A round of K-SVD costs m s² k + 2 m k n flops for the codes and 8 power m k n for the atoms.
    A code is replaced only by a better one, and unused or twin atoms by the worst coded rows, where
    that lowers the error.

    References
    ----------
    CoSpaDi: `arXiv:2509.22075 <https://arxiv.org/abs/2509.22075>`_. M. Aharon, M. Elad, A.
    Bruckstein: K-SVD, IEEE Trans. Signal Processing 54 (2006) 4311-4322. R. Rubinstein, M.
    Zibulevsky, M. Elad: Efficient implementation of the K-SVD algorithm using batch orthogonal
    matching pursuit, Technion CS-2008-08.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import sparse_dictionary
    >>> rng = np.random.default_rng(0)
    >>> pairs = np.kron(np.eye(4), rng.normal(size=(20, 2)))  # rows in four planes
    >>> found = sparse_dictionary(pairs, atoms=8, sparsity=2)
    >>> bool(found.relative_error < 1e-6), found.storage().n_bytes, pairs.size * 2
    (True, 508, 1280)
    """
    function = "sparse_dictionary"
    _checks.ndim(function, "weight", weight, 2)
    (w,), _ = matrices_of(function, weight, None)
    m, n = w.shape
    k, s = _sizes(m, n, kept, atoms, sparsity, ratio=ratio, bits=bits)
    how = _checks.choice(function, "dictionary", dictionary, ("ksvd", "orthogonal"))
    k = min(k, n) if how == "orthogonal" and kept is not None else k
    s = min(s, k)
    if how == "orthogonal" and k > n:
        raise InvalidArgumentError(
            f"[{function}] atoms must be at most {n} (columns of weight) for an orthogonal "
            f"dictionary, got {k}"
        )
    for name, value in (("iterations", iterations), ("power", power)):
        _checks.integer(function, name, value, low=1)
    tol = _checks.real(function, "tol", tol, low=0.0)
    root = None
    if gram is not None:
        g = grams_of(function, gram, (), n, None)
        root = square_root(g)[0]
        # what is inverted: rank is missing only where it is zero
        lower = square_root(damped(g, _checks.real(function, "ridge", ridge, low=1e-12)))[0]
    scale = np.ones(m)
    if importance is not None:
        scale = np.sqrt(scales_of(function, importance, (), m, None, name="importance")[0])
    total = np.linalg.norm(scale[:, None] * (w if root is None else w @ root))
    if kept == 1:
        note = "kept dense: no dictionary takes less than all bytes and loses nothing"
        return Dense(0.0, total, note, weight)
    grown = dictionary_storage(m, n, k, s, bits=bits).kept(dense_storage(m, n, bits=bits))
    note = "" if grown < 1 else f"takes {grown:.2f} of the dense bytes"
    signals = scale[:, None] * (w if root is None else w @ lower)
    signals = signals.astype(np.float64 if str(weight.dtype).endswith("64") else np.float32)
    if how == "orthogonal":
        states = _orthogonal(signals, k, s)
    else:
        states = _ksvd(signals, k, s, power=power, seed=seed)
    history: list[float] = []
    for number, state in enumerate(states):
        history.append(float(np.sqrt(state.errors.sum(dtype=np.float64))))
        if number >= iterations or _settled(history, tol, float(np.linalg.norm(signals))):
            break
    found = state.atoms.T.astype(np.float64)
    if root is not None:
        found = subspan.solve_triangular(lower, found, transposed=True)
    indices = np.sort(_support(state.codes, s), axis=1)
    values = np.take_along_axis(state.codes, indices, axis=1).astype(np.float64) / scale[:, None]
    made = SparseDictionary(
        0.0, total, note, like(weight, found), like(weight, values), _indices(weight, indices),
        tuple(history),
    )  # fmt: skip
    rest = scale[:, None] * (w - values_of(made))
    error = float(np.linalg.norm(rest if root is None else rest @ root))
    return SparseDictionary(
        error, float(total), note, made.dictionary, made.values, made.indices, made.history
    )


def values_of(made: Replacement) -> Any:
    """Return what a replacement stands for, as float64 of numpy."""
    return np.asarray(_arrays.to_numpy(made.to_dense()), np.float64)


def _indices(weight: Any, indices: Any) -> Any:
    return _arrays.from_numpy(weight, np.ascontiguousarray(indices, np.int64))


def _sizes(
    m: int, n: int, kept: float | None, atoms: int | None, sparsity: int | None,
    *, ratio: float, bits: int,
) -> tuple[int, int]:  # fmt: skip
    function = "sparse_dictionary"
    if (kept is None) == (atoms is None or sparsity is None) or (
        kept is not None and (atoms is not None or sparsity is not None)
    ):
        raise InvalidArgumentError(
            f"[{function}] kept, or both of atoms and sparsity, must be given, got kept={kept}, "
            f"atoms={atoms}, sparsity={sparsity}"
        )
    if kept is not None:
        return dictionary_size(m, n, kept, ratio=ratio, bits=bits)
    k = _checks.integer(function, "atoms", atoms, low=1)
    return k, _checks.integer(function, "sparsity", sparsity, low=1, high=k)


def _settled(history: list[float], tol: float, scale: float) -> bool:
    if history[-1] <= 1e-7 * scale:
        return True
    return len(history) > 1 and history[-2] ** 2 - history[-1] ** 2 <= tol * history[-2] ** 2


def _support(codes: Any, sparsity: int) -> Any:
    """Return the places of the largest entries; places of zeros where there are fewer."""
    return subspan.topk(np.abs(codes), sparsity).indices


def _orthogonal(signals: Any, k: int, s: int) -> Iterator[_State]:
    """Yield states of falling error; codes and atoms are best for one another in turn."""
    atoms = _axes(signals, k)
    while True:
        scores = signals @ atoms.T
        best = _support(scores, s)
        codes = np.zeros_like(scores)
        np.put_along_axis(codes, best, np.take_along_axis(scores, best, axis=1), axis=1)
        errors = np.square(signals).sum(axis=1) - np.square(codes).sum(axis=1)
        yield _State(atoms, codes, np.maximum(errors, 0.0))
        found = subspan.svd(codes.T @ signals)
        atoms = found.u @ found.vh


def _ksvd(signals: Any, k: int, s: int, *, power: int, seed: int) -> Iterator[_State]:
    """Yield states of falling error."""
    rng = np.random.default_rng(seed)
    rows = _pivots(signals, k, rng)
    both = np.concatenate([_axes(signals, min((k + 1) // 2, signals.shape[1])), rows])[:k]
    state = min(
        (_coded(signals, start, s) for start in (rows, both)), key=lambda one: one.errors.sum()
    )
    while True:
        yield state
        atoms, codes = _updated(signals, state, power)
        errors = np.square(signals - codes @ atoms).sum(axis=1)
        state = _better(_coded(signals, atoms, s), _State(atoms, codes, errors))
        renewed = _renewed(signals, state)
        if renewed is not None:
            other = _coded(signals, renewed, s)
            state = other if other.errors.sum() < state.errors.sum() else state


def _coded(signals: Any, atoms: Any, s: int) -> _State:
    found = pursue(signals, atoms, s)
    codes = np.zeros((len(signals), len(atoms)), signals.dtype)
    np.put_along_axis(codes, found.indices, found.values, axis=1)
    return _State(atoms, codes, np.square(signals - codes @ atoms).sum(axis=1))


def _better(new: _State, old: _State) -> _State:
    """Return the better code of every row; both have the same atoms."""
    worse = new.errors > old.errors
    codes = np.where(worse[:, None], old.codes, new.codes)
    return _State(new.atoms, codes, np.where(worse, old.errors, new.errors))


def _updated(signals: Any, state: _State, power: int) -> tuple[Any, Any]:
    """Fit groups of atoms, and the codes that use them, to what the others leave, in turn.

    Both are least squares with a little damping towards what is there, so that no step makes the
    error larger; with groups of one this is the power iteration of approximate K-SVD.
    """
    atoms, codes = state.atoms.copy(), state.codes.copy()
    rest = signals - codes @ atoms
    for start in range(0, len(atoms), _GROUP):
        here = slice(start, start + _GROUP)
        for _ in range(power):
            part = codes[:, here]
            (change,) = _solved((part.T @ part)[None], (part.T @ rest)[None])
            rest -= part @ change
            fitted = atoms[here] + change
            size = np.linalg.norm(fitted, axis=1)
            keep = size > 0
            atoms[here][keep] = fitted[keep] / size[keep, None]
            used = part != 0
            part *= np.where(keep, size, 0.0)
            atom = atoms[here]
            normal = (atom @ atom.T) * (used[:, :, None] & used[:, None, :])
            change = _solved(normal, ((rest @ atom.T) * used)[..., None])[..., 0] * used
            part += change
            rest -= change @ atom
    return atoms, codes


def _solved(normal: Any, right: Any) -> Any:
    """Return ``normal^-1 right`` for stacks of semidefinite matrices, damped a little."""
    root = damped_root(normal)
    return subspan.solve_triangular(root, subspan.solve_triangular(root, right), transposed=True)


def _renewed(signals: Any, state: _State) -> Any:
    """Return atoms where unused ones and twins are worst coded rows; None if all are in use."""
    cosines = np.tril(np.abs(state.atoms @ state.atoms.T), -1)
    idle = (cosines > _TWINS).any(axis=1) | ~state.codes.any(axis=0)
    places = np.flatnonzero(idle)
    worst = np.argsort(-state.errors, kind="stable")[: len(places)]
    worst = worst[state.errors[worst] > 0]
    if not len(places) or not len(worst):
        return None
    atoms = state.atoms.copy()
    atoms[places[: len(worst)]] = _unit(signals[worst])
    return atoms


def _axes(signals: Any, count: int) -> Any:
    """Return the first principal directions (count, n) as rows."""
    m, n = signals.shape
    if count <= m < n:
        return np.ascontiguousarray(subspan.svd(signals).vh[:count])
    vectors = subspan.eigh(signals.T.astype(np.float64) @ signals.astype(np.float64)).vectors
    return np.ascontiguousarray(vectors[:, ::-1][:, :count].T.astype(signals.dtype))


def _pivots(signals: Any, k: int, rng: np.random.Generator) -> Any:
    """Return k rows of length one: each the farthest from the span of those before it."""
    wide = signals.astype(np.float64)
    gram = wide @ wide.T
    rest = gram.diagonal().copy()  # squared distances
    floor = _SPENT * rest.max()
    most = min(k, *signals.shape)
    along = np.empty((len(signals), most))
    chosen: list[int] = []
    for j in range(most):
        pick = int(rest.argmax())
        if rest[pick] <= floor:
            break
        chosen.append(pick)
        along[:, j] = (gram[pick] - along[:, :j] @ along[pick, :j]) / np.sqrt(rest[pick])
        rest -= np.square(along[:, j])
        rest[pick] = 0.0
    others = rng.permutation(np.setdiff1d(np.arange(len(signals)), chosen))
    rows = signals[np.concatenate([chosen, others]).astype(np.int64)[:k]]
    missing = k - len(rows)
    if missing > 0:
        rows = np.concatenate([rows, rng.standard_normal((missing, signals.shape[1]))])
    return _unit(rows.astype(signals.dtype))


def _unit(rows: Any) -> Any:
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = np.zeros_like(rows)
    flat[:, 0] = 1.0
    return np.where(sizes > 0, rows / np.where(sizes > 0, sizes, 1.0), flat)
