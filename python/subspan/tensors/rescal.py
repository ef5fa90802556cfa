"""Nonnegative RESCAL of stacks of relations, and how many latent groups they have (RESCALk)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks
from subspan.errors import InvalidArgumentError
from subspan.tensors import _rescal_clusters, _rescal_updates
from subspan.tensors._reading import Array, finite, give, tensor

__all__ = ["Rescal", "RescalK", "RescalScan", "rescal", "rescal_k"]

_TOGETHER = 64 << 20  # bytes of perturbed copies that are worked on at once


class Rescal(NamedTuple):
    r"""Result of :func:`rescal`.

    Attributes
    ----------
    a : array (n, k)
        Groups of entities: unit columns, nonnegative.
    r : array (m, k, k)
        Relations between groups, nonnegative.
    error : float
        :math:`\|X - A R A^T\| / \|X\|`.
    errors : array (iterations, starts)
        After every iteration; NaN where a start had stopped. They never rise.
    converged : array (starts,) of bool
    """

    a: Any
    r: Any
    error: float
    errors: NDArray[np.float64]
    converged: NDArray[np.bool_]


class RescalScan(NamedTuple):
    """What the perturbed runs of one k say.

    Attributes
    ----------
    k : int
    min_silhouette, mean_silhouette : float
        Over the clusters of the columns of all runs: 1 where every run finds the same groups.
    error : float
        Relative error of the medians of the clusters, with relations fitted to x itself.
    a, r : array (n, k), (m, k, k)
        These medians and relations.
    run_errors : array (perturbations,)
        Relative errors of the runs, each to its perturbed copy.
    """

    k: int
    min_silhouette: float
    mean_silhouette: float
    error: float
    a: Any
    r: Any
    run_errors: NDArray[np.float64]


class RescalK(NamedTuple):
    """Result of :func:`rescal_k`.

    Attributes
    ----------
    k : int
        The chosen number of groups.
    scans : tuple of RescalScan
        One for each k that was tried, ascending.
    """

    k: int
    scans: tuple[RescalScan, ...]

    @property
    def chosen(self) -> RescalScan:
        """The scan of the chosen k."""
        return next(scan for scan in self.scans if scan.k == self.k)


def rescal(
    x: Any,
    k: int,
    *,
    n_starts: int = 1,
    tol: float = 1e-6,
    max_iter: int = 2000,
    seed: int = 0,
    progress: Callable[[int, NDArray[np.float64]], object] | None = None,
) -> Rescal:
    r"""Factorise a stack of nonnegative relations by shared groups (nonnegative RESCAL).

    .. math:: X_t \approx A R_t A^T, \qquad A \ge 0, \; R_t \ge 0

    by multiplicative updates

    .. math:: R_t \leftarrow R_t \frac{A^T X_t A}{A^T A R_t A^T A}, \qquad
              A \leftarrow A \frac{\sum_t X_t A R_t^T + X_t^T A R_t}
              {\sum_t A R_t A^T A R_t^T + A R_t^T A^T A R_t}

    Parameters
    ----------
    x : array (m, n, n)
        m relations between n entities, >= 0; float32 or float64.
    k : int
        Groups, 1..n.
    n_starts : int
        Random starts; the best is returned.
    tol : float
        A start stops when its error falls by less than this in an iteration.
    max_iter : int
        Most iterations.
    seed : int
        Of the starts.
    progress : callable, optional
        Called as ``progress(iteration, errors)``.

    Returns
    -------
    Rescal (a, r, error, errors, converged)
        Arrays in x's library and dtype; groups in descending order of their share of the model.

    Raises
    ------
    InvalidArgumentError
        Not (m, n, n); negative elements, NaN or infinity; k out of range.
    DtypeError, UnsupportedError
        Not a float array on the CPU.

    Notes
    -----
    4 m n^2 k flops for each start and iteration: two products with x, which has no copy. A step of
    A that would raise the error is halved on a logarithmic scale, as A stands on both sides of R.

    References
    ----------
    M. Nickel, V. Tresp, H.-P. Kriegel: A three-way model for collective learning on
    multi-relational data, ICML 2011.
    E. Skau et al.: Determination of latent dimensionality in international trade flow, Machine
    Learning: Science and Technology 1 (2020), section 2 (the updates).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import rescal
    >>> a = np.kron(np.eye(2), np.ones((3, 1)))
    >>> x = a @ np.array([[[1.0, 3.0], [0.0, 2.0]]]) @ a.T
    >>> result = rescal(x, 2, n_starts=4)
    >>> result.error < 1e-2, result.a.shape
    (True, (6, 2))
    """
    array = _relations("rescal", x)
    k = _checks.integer("rescal", "k", k, low=1, high=array.shape[1])
    limit, steps = _limits("rescal", tol, max_iter)
    starts = _checks.integer("rescal", "n_starts", n_starts, low=1)
    seed = _checks.integer("rescal", "seed", seed, low=0)
    first = [_start(array, k, [seed, s]) for s in range(starts)]
    found = _rescal_updates.factorize(array[None], first, limit, steps, progress)
    final = _final(found.errors)
    best = int(np.argmin(final))
    a, r = _scaled(found.a[best], found.r[best])
    order = np.argsort(-(np.abs(r).sum(axis=(0, 1)) + np.abs(r).sum(axis=(0, 2))), kind="stable")
    a, r = a[:, order], r[:, order][:, :, order]
    return Rescal(give(x, a), give(x, r), float(final[best]), found.errors, found.converged)


def rescal_k(
    x: Any,
    ks: Iterable[int],
    *,
    perturbations: int = 10,
    noise: float = 0.03,
    tol: float = 1e-6,
    max_iter: int = 2000,
    least: float = 0.7,
    seed: int = 0,
    init: RescalK | None = None,
    progress: Callable[[RescalScan], object] | None = None,
) -> RescalK:
    r"""Find how many groups a stack of relations has, by the stability of its factors (RESCALk).

    For each k, `rescal` of copies :math:`X \circ (1 + \mathrm{noise} \, U)`, U uniform in [-1, 1],
    each from a start of its own; the unit columns of all runs are put into k clusters with one
    column of each run, by optimal matching to their medians; silhouettes, with angles for
    distances, say whether the runs agree.

    The rule, which is ours (the paper reads the curves): the largest k whose smallest silhouette is
    at least ``least`` and whose error is at most 1.1 times that of the knee, the k where the curve
    of errors lies farthest below its chord; else the largest k that is stable; else the most
    stable.

    Parameters
    ----------
    x : array (m, n, n)
        As for `rescal`.
    ks : iterable of int
        Numbers of groups to try, each in 1..n.
    perturbations : int
        Runs for each k, >= 2.
    noise : float
        In [0, 1).
    tol, max_iter : float, int
        Of each run, as for `rescal`.
    least : float
        Smallest silhouette of a stable k.
    seed : int
        Of copies and starts; those of one k do not depend on the others.
    init : RescalK, optional
        A result of which the k that it has are not worked out again.
    progress : callable, optional
        Called with every `RescalScan` as it comes.

    Returns
    -------
    RescalK (k, scans)
        Arrays in x's library and dtype.

    Raises
    ------
    InvalidArgumentError, DtypeError, UnsupportedError
        No ks; an argument out of range; as `rescal`.

    Notes
    -----
    ``perturbations`` times the cost of `rescal` for each k. Copies are worked on together as far as
    they fit into 64 MiB; no more of them are kept.

    References
    ----------
    E. Skau et al. (as `rescal`).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import rescal_k
    >>> rng = np.random.default_rng(0)
    >>> a = np.kron(np.eye(3), np.ones((4, 1)))
    >>> x = a @ rng.random((5, 3, 3)) @ a.T
    >>> rescal_k(x, range(2, 5), perturbations=5, max_iter=300).k
    3
    """
    name = "rescal_k"
    array = _relations(name, x)
    wanted = sorted({_checks.integer(name, "ks", k, low=1, high=array.shape[1]) for k in ks})
    if not wanted:
        raise InvalidArgumentError(f"[{name}] ks must be one or more numbers of groups, got none")
    limit, steps = _limits(name, tol, max_iter)
    runs = _checks.integer(name, "perturbations", perturbations, low=2)
    noise = _checks.real(name, "noise", noise, low=0.0, high=0.999)
    least = _checks.real(name, "least", least, low=-1.0, high=1.0)
    seed = _checks.integer(name, "seed", seed, low=0)
    scans = {scan.k: scan for scan in (init.scans if init is not None else ())}
    for k in wanted:
        if k not in scans:
            scan = _scan(array, k, runs, noise, limit=limit, steps=steps, seed=seed)
            scans[k] = scan._replace(a=give(x, scan.a), r=give(x, scan.r))
            if progress is not None:
                progress(scans[k])
    ordered = tuple(scans[k] for k in sorted(scans))
    return RescalK(_chosen(ordered, least), ordered)


def _scan(
    x: Array, k: int, runs: int, noise: float, *, limit: float, steps: int, seed: int
) -> RescalScan:
    together = max(1, min(runs, _TOGETHER // x.nbytes))
    columns, errors = [], []
    for first in range(0, runs, together):
        places = range(first, min(first + together, runs))
        copies = np.stack([_perturbed(x, noise, [seed, k, s, 1]) for s in places])
        starts = [_start(x, k, [seed, k, s, 0]) for s in places]
        found = _rescal_updates.factorize(copies, starts, limit, steps)
        columns += [_scaled(a, r)[0] for a, r in zip(found.a, found.r, strict=True)]
        errors.append(_final(found.errors))
    whole = np.stack(columns).astype(np.float64)
    orders, medians = _rescal_clusters.clusters(whole)
    matched = np.take_along_axis(whole, orders[:, None, :], axis=2)
    values = _rescal_clusters.silhouettes(matched)
    a = medians.astype(x.dtype)
    r, error = _rescal_updates.refit(x, a)
    return RescalScan(
        k,
        float(values.min()),
        float(values.mean()),
        error,
        a,
        r,
        np.concatenate(errors),
    )


def _chosen(scans: tuple[RescalScan, ...], least: float) -> int:
    ks = np.array([scan.k for scan in scans], np.float64)
    error = np.array([scan.error for scan in scans])
    stable = np.array([scan.min_silhouette >= least for scan in scans])
    if not stable.any():
        return scans[int(np.argmax([scan.min_silhouette for scan in scans]))].k
    knee = 0
    if len(scans) > 2:
        along = (ks - ks[0]) / (ks[-1] - ks[0])
        knee = int(np.argmax(error[0] + along * (error[-1] - error[0]) - error))
    elif len(scans) == 2:
        knee = int(np.argmin(error))
    good = stable & (error <= 1.1 * error[knee])
    return scans[int(np.flatnonzero(good if good.any() else stable)[-1])].k


def _scaled(a: Array, r: Array) -> tuple[Array, Array]:
    """Return unit columns, and relations that take their sizes."""
    sizes = np.linalg.norm(a, axis=0)
    return a / np.where(sizes > 0, sizes, 1), r * sizes[:, None] * sizes


def _start(x: Array, k: int, seed: list[int]) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    m, n, _ = x.shape
    return rng.random((n, k)).astype(x.dtype), rng.random((m, k, k)).astype(x.dtype)


def _perturbed(x: Array, noise: float, seed: list[int]) -> Array:
    u = np.random.default_rng(seed).uniform(-noise, noise, x.shape)
    return (x * (1 + u)).astype(x.dtype)


def _final(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.full(errors.shape[1], np.nan)
    for row in errors:
        out = np.where(np.isnan(row), out, row)
    return out


def _limits(function: str, tol: float, max_iter: int) -> tuple[float, int]:
    return (
        _checks.real(function, "tol", tol, low=0.0),
        _checks.integer(function, "max_iter", max_iter, low=1),
    )


def _relations(function: str, x: Any) -> Array:
    array = tensor(function, x, remedy="; one matrix is x[None]")
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise InvalidArgumentError(
            f"[{function}] x must be (m, n, n), m relations of n entities, got {array.shape}"
        )
    finite(function, "x", array)
    if array.min() < 0:
        raise InvalidArgumentError(f"[{function}] x must be nowhere negative, got {array.min()}")
    return np.ascontiguousarray(array)
