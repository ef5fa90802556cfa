"""Keys and values of an attention cache in fewer dimensions, head by head (MatryoshkaKV)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from subspan import Moments, _arrays, _checks
from subspan.compression._inputs import Floats, like
from subspan.compression.factors import Factors
from subspan.compression.lowrank import whitened_svd
from subspan.errors import InvalidArgumentError

__all__ = ["CacheBasis", "basis_errors", "cache_basis", "orthogonal_basis"]


@dataclass(frozen=True)
class CacheBasis:
    """Nested coordinates of cached states, best first: ``x ~ mean + up @ (down @ (x - mean))``.

    What is stored for a token and head are the r numbers of `encode`. A query meets them without
    decoding: ``q . x ~ (up.T @ q) . code + q . mean``; for values, ``up`` goes into the output
    projection.
    """

    down: Floats
    """(..., r, d)"""
    up: Floats
    """(..., d, r)"""
    mean: Floats
    """(..., d)"""
    tails: Floats
    """(..., d + 1) squared error of every number of dimensions from 0 on, mean over tokens."""

    @property
    def rank(self) -> int:
        """Dimensions that are stored."""
        return int(self.down.shape[-2])

    def cut(self, rank: int) -> CacheBasis:
        """Return the first ``rank`` coordinates.

        Raises
        ------
        InvalidArgumentError
            There are not so many.
        """
        r = _checks.integer("CacheBasis.cut", "rank", rank, low=1, high=self.rank)
        return replace(self, down=self.down[..., :r, :], up=self.up[..., :r])

    def encode(self, states: Any) -> Any:
        """Return what is stored (..., tokens, r) of states (..., tokens, d), in their dtype."""
        x = self._wide(states, "states", self.down.shape[-1])
        return like(states, (x - self.mean[..., None, :]) @ self.down.swapaxes(-1, -2))

    def decode(self, codes: Any) -> Any:
        """Return states (..., tokens, d) of what is stored."""
        x = self._wide(codes, "codes", self.rank)
        return like(codes, x @ self.up.swapaxes(-1, -2) + self.mean[..., None, :])

    def scores(self, queries: Any, codes: Any) -> Any:
        """Return the products (..., queries, tokens) of queries and stored keys, not decoded."""
        q = self._wide(queries, "queries", self.up.shape[-2])
        x = self._wide(codes, "codes", self.rank)
        shift = q @ self.mean[..., :, None]
        return like(codes, (q @ self.up) @ x.swapaxes(-1, -2) + shift)

    def _wide(self, x: Any, name: str, width: int) -> Floats:
        _arrays.require_array("CacheBasis", name, x)
        _checks.ndim("CacheBasis", name, x, self.mean.ndim + 1)
        if int(x.shape[-1]) != width or tuple(x.shape[:-2]) != self.mean.shape[:-1]:
            raise InvalidArgumentError(
                f"[CacheBasis] {name} must be {(*self.mean.shape[:-1], 'tokens', width)}, got "
                f"{tuple(x.shape)}"
            )
        return np.asarray(_arrays.to_numpy(x), np.float64)


def cache_basis(
    states: Any, queries: Any = None, *, centred: bool = True, names: Any = None
) -> CacheBasis:
    r"""Return the coordinates in which cached states of a head lose least.

    .. math:: \min \mathbb{E} \|x - x'\|^2 \quad\text{or, with queries,}\quad
              \min \mathbb{E} (q^T (x - x'))^2

    The first is a principal component analysis, the second weights what queries look at. Both are
    `whitened_svd` of the identity.

    Parameters
    ----------
    states : Moments, or sequence of Moments
        Of the cached keys or values of one head, or of each head of a stack. Keys as they are
        cached, after rotary embedding: before it, a basis would have to be rotated by position.
    queries : Moments, or sequence of Moments, optional
        Of the queries that meet these keys (of all query heads that share them), as many as states.
    centred : bool
        Store what is left of the mean.
    names : sequence of str, optional
        What to call the heads in errors.

    Returns
    -------
    CacheBasis
        All d dimensions; ``cut`` it.

    Raises
    ------
    InvalidArgumentError
        No rows, or moments that do not fit each other.

    References
    ----------
    MatryoshkaKV: `arXiv:2410.14731 <https://arxiv.org/abs/2410.14731>`_ (the start from principal
    components; `train_cache` goes on from there).

    Examples
    --------
    >>> import numpy as np, subspan
    >>> from subspan.compression import cache_basis
    >>> rng = np.random.default_rng(0)
    >>> keys = rng.normal(size=(100, 3)) @ rng.normal(size=(3, 16))
    >>> basis = cache_basis(subspan.Moments().update(keys)).cut(3)
    >>> stored = basis.encode(keys)
    >>> stored.shape, bool(np.allclose(basis.decode(stored), keys))
    ((100, 3), True)
    """
    one = isinstance(states, Moments)
    heads = [states] if one else list(states)
    if not heads or not all(isinstance(head, Moments) for head in heads):
        raise InvalidArgumentError(
            f"[cache_basis] states must be Moments, one for each head, got {type(states).__name__}"
        )
    d = heads[0].n_features
    eye = np.broadcast_to(np.eye(d), (len(heads), d, d))
    looked = [queries] if isinstance(queries, Moments) else queries
    found = whitened_svd(eye, heads, outputs=looked, affine=centred, names=names)
    mean = np.stack([head.mean for head in heads]) if centred else np.zeros((len(heads), d))
    parts = (found.right, found.left, mean, found.tails)
    return CacheBasis(*(part[0] if one else part for part in parts))


def orthogonal_basis(axes: Floats, states: list[Moments]) -> CacheBasis:
    """Return the basis of orthonormal columns (heads, d, d), about zero, with its errors."""
    moment = np.stack([head.second_moment() for head in states])
    held = np.einsum("hdi,hde,hei->hi", axes, moment, axes)
    rest = np.cumsum(held[:, ::-1], axis=1)[:, ::-1]
    tails = np.concatenate([rest, np.zeros((len(axes), 1))], axis=1)
    down = np.ascontiguousarray(axes.swapaxes(-1, -2))
    return CacheBasis(down, axes, np.zeros(axes.shape[:2]), tails)


def basis_errors(
    basis: CacheBasis, states: list[Moments], weights: list[Moments] | None = None
) -> Floats:
    r"""Return the mean squared error of every number of dimensions (heads, d + 1).

    .. math:: \mathbb{E} \|x - x'\|^2 \quad\text{or, with weights g,}\quad
              \mathrm{tr}\, \mathbb{E}[g g^T]\, \mathbb{E}[(x - x')(x - x')^T]

    The basis has all d dimensions.
    """
    apart = np.stack([head.mean for head in states]) - basis.mean
    spread = np.stack([head.covariance(0) for head in states])
    gram = spread + apart[:, :, None] * apart[:, None, :]
    outputs = None if weights is None else np.stack([one.second_moment() for one in weights])
    pairs = Factors("cache", None, basis.up, basis.down, np.ones(basis.mean.shape))
    return pairs.errors(gram, outputs)
