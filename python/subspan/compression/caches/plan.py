"""The cache of a whole model in fewer dimensions: bases and ranks of every head, and their file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import Moments, _checks
from subspan._safetensors import read_header
from subspan.activations import Model
from subspan.compression._inputs import Floats
from subspan.compression.caches.basis import CacheBasis, basis_errors, cache_basis, orthogonal_basis
from subspan.compression.caches.moments import CacheMoments
from subspan.compression.storage import Part, Storage, cache_storage
from subspan.errors import FileFormatError, InvalidArgumentError
from subspan.report import Entry, write_safetensors

__all__ = ["CACHE_METHODS", "CachePlan", "plan_cache", "power"]

CACHE_METHODS = ("channels", "pca", "score-aware", "loss-aware")
_SCHEMA = "subspan.cache/1"
_SIDES = ("keys", "values")
_NORMS = {"pca": "states", "score-aware": "attention", "loss-aware": "loss"}


@dataclass(frozen=True)
class CachePlan:
    """Bases of all key-value heads of a model, and how many dimensions each of them keeps."""

    method: str
    keys: CacheBasis
    """Of (layers, heads, ...); keys are those after rotary embedding."""
    values: CacheBasis
    ranks: NDArray[np.int64]
    """(2, layers, heads) of keys and of values."""

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, key-value heads)."""
        return int(self.ranks.shape[1]), int(self.ranks.shape[2])

    @property
    def widths(self) -> tuple[int, int]:
        """Dimensions of a key and of a value."""
        return int(self.keys.mean.shape[-1]), int(self.values.mean.shape[-1])

    def storage(self, *, tokens: int = 1, bits: int = 16) -> Storage:
        """Return what a cache of so many tokens takes; bases and means, once a model, are apart."""
        keys, values = (int(one.sum()) for one in self.ranks)
        return cache_storage(keys, values, tokens=tokens, bits=bits)

    def dense_storage(self, *, tokens: int = 1, bits: int = 16) -> Storage:
        """Return what the same cache takes with all dimensions."""
        heads = self.ranks[0].size
        return cache_storage(*(heads * d for d in self.widths), tokens=tokens, bits=bits)

    def basis_storage(self, *, bits: int = 32) -> Storage:
        """Return what bases and means take, once for a model."""
        parts = []
        for side, ranks, d in zip(_SIDES, self.ranks, self.widths, strict=True):
            numbers = 2 * int(ranks.sum()) * d + ranks.size * d
            parts.append(Part(f"{side} bases", numbers, bits))
        return Storage(tuple(parts))

    @property
    def kept(self) -> float:
        """Bytes of the cache over those with all dimensions."""
        return self.storage().kept(self.dense_storage())

    def with_ranks(self, ranks: Any) -> CachePlan:
        """Return the plan with other ranks (2, layers, heads).

        Raises
        ------
        InvalidArgumentError
            Ranks below 1, or above those that the bases have.
        """
        made = np.asarray(ranks, np.int64)
        most = np.array([self.keys.rank, self.values.rank])[:, None, None]
        if made.shape != self.ranks.shape or (made < 1).any() or (made > most).any():
            raise InvalidArgumentError(
                f"[CachePlan.with_ranks] ranks must be {self.ranks.shape} from 1 to "
                f"{most.ravel().tolist()}, got shape {made.shape}"
                + (f" from {made.min()} to {made.max()}" if made.size else "")
            )
        return replace(self, ranks=made)

    def cut(self, kept: float) -> CachePlan:
        """Return the plan with the same rank for all heads, within ``kept`` of the bytes.

        Raises
        ------
        InvalidArgumentError
            Not even one dimension fits.
        """
        kept = _checks.real("CachePlan.cut", "kept", kept, low=0.0, high=1.0)
        ranks = [int(kept * d + 1e-9) for d in self.widths]
        if min(ranks) < 1:
            raise InvalidArgumentError(
                f"[CachePlan.cut] kept must leave one of {min(self.widths)} dimensions, got {kept}"
            )
        return self.with_ranks(np.ones_like(self.ranks) * np.array(ranks)[:, None, None])

    def errors(self, found: CacheMoments, norm: str = "states") -> tuple[Floats, Floats]:
        """Return the errors (layers, heads, d + 1) of keys and of values at every rank.

        Parameters
        ----------
        found : CacheMoments
            Of the same model.
        norm : {"states", "attention", "loss"}
            Mean squared error of the states; of the scores that queries give for keys, and of the
            states for values; or the increase of the loss a token that the moments of gradients
            predict to second order.
        """
        _checks.choice("CachePlan.errors", "norm", norm, ("states", "attention", "loss"))
        if (self.keys.rank, self.values.rank) != self.widths or found.shape != self.shape:
            raise InvalidArgumentError(
                "[CachePlan.errors] found must be of the model of this plan, which must have all "
                f"dimensions, got {found.shape} heads for {self.shape}, and "
                f"{(self.keys.rank, self.values.rank)} of {self.widths} dimensions"
            )
        made = []
        for basis, side in ((self.keys, "keys"), (self.values, "values")):
            states, weights = _norm(found, norm, side)
            made.append(
                (0.5 if norm == "loss" else 1.0) * basis_errors(_flat(basis), states, weights)
            )
        return made[0].reshape(*self.shape, -1), made[1].reshape(*self.shape, -1)

    def save(self, path: str | os.PathLike[str], *, base: Model | None = None) -> Path:
        """Write bases, means and ranks as a safetensors file, whole or not at all.

        Columns above the ranks are left out. ``base`` is named by hash. Rows of ``<side>.down`` and
        ``<side>.up`` are the kept coordinates, head by head, layer by layer; float32.
        """
        entries = []
        for number, (side, basis) in enumerate(zip(_SIDES, (self.keys, self.values), strict=True)):
            ranks = self.ranks[number]
            used = np.arange(basis.rank) < ranks[..., None]
            arrays = {
                "down": basis.down[used], "up": basis.up.swapaxes(-1, -2)[used],
                "mean": basis.mean, "tails": basis.tails,
            }  # fmt: skip
            entries.append(Entry.of(f"{side}.ranks", ranks.astype(np.int32)))
            entries += [
                Entry.of(f"{side}.{part}", np.ascontiguousarray(value, np.float32))
                for part, value in arrays.items()
            ]
        metadata = {"format": "pt", "schema": _SCHEMA, "method": self.method}
        if base is not None:
            metadata |= {"base": base.name, "base_hash": base.fingerprint}
        where = Path(path)
        write_safetensors(where, entries, metadata)
        return where

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Model | None = None) -> CachePlan:
        """Read what `save` wrote; with a model, check that it is the one.

        Raises
        ------
        FileNotFoundError, FileFormatError
            There is no such file, or it is damaged or something else.
        InvalidArgumentError
            The model is another one.
        """
        where = Path(path)
        header = read_header("CachePlan.load", where)
        notes = header.metadata
        try:
            if notes["schema"] != _SCHEMA:
                raise ValueError(f"the schema {notes['schema']!r}")
            content = where.read_bytes()
            arrays = {
                name: np.frombuffer(
                    content[one.begin : one.end], {"F32": np.float32, "I32": np.int32}[one.dtype]
                ).reshape(one.shape)
                for name, one in header.tensors.items()
            }
            ranks = np.stack([arrays[f"{side}.ranks"] for side in _SIDES]).astype(np.int64)
            keys, values = (_padded(arrays, side, ranks[i]) for i, side in enumerate(_SIDES))
        except (KeyError, ValueError) as error:
            raise FileFormatError(
                f"[CachePlan.load] {str(where)!r} must be a plan of the schema {_SCHEMA!r}, got: "
                f"{error}"
            ) from error
        if model is not None and notes.get("base_hash", model.fingerprint) != model.fingerprint:
            raise InvalidArgumentError(
                f"[CachePlan.load] model must be the one of the plan, {notes['base']!r} with the "
                f"hash {notes['base_hash'][:12]}..., got {model.name!r} with "
                f"{model.fingerprint[:12]}..."
            )
        return cls(notes["method"], keys, values, ranks)


def plan_cache(found: CacheMoments, method: str = "pca") -> CachePlan:
    """Return bases of all heads of a model, with all their dimensions.

    Parameters
    ----------
    found : CacheMoments
        By `calibrate_cache`.
    method : {"channels", "pca", "score-aware", "loss-aware"}
        The channels themselves, by falling power, of keys times that of the queries there (pruning,
        to compare with); principal components about zero; keys in the coordinates that keep the
        scores of the queries, and values as before; or both in those that keep the loss, as the
        moments of gradients and of the states that are felt predict it.

    Returns
    -------
    CachePlan
        Exact; ``cut`` it, or give it ranks.

    Raises
    ------
    InvalidArgumentError
        Another method, no tokens, or no gradients where they are needed.
    """
    _checks.choice("plan_cache", "method", method, CACHE_METHODS)
    if method == "channels":
        keys, values = (shaped(_channels(found, side), found.shape) for side in _SIDES)
        return full_plan(method, keys, values)
    layers, heads = found.shape
    names = [f"layer {i} head {j}" for i in range(layers) for j in range(heads)]
    bases = []
    for side in _SIDES:
        states, weights = _norm(found, _NORMS[method], side)
        # What all keys share changes no softmax, and felt means are near what attention reads. The
        # plain mean of values is not: the value of a token that much is read of is often near zero.
        centred = method == "loss-aware" or (method, side) == ("score-aware", "keys")
        basis = cache_basis(states, weights, centred=centred, names=names)
        bases.append(shaped(basis, found.shape))
    return full_plan(method, *bases)


def power(found: CacheMoments, norm: str) -> Floats:
    """Return the size (2, layers, heads) of keys and of values in a norm of `CachePlan.errors`."""
    made = []
    for side in _SIDES:
        states, weights = _norm(found, norm, side)
        directions = [None] * len(states) if weights is None else weights
        made += [
            np.trace(
                one.second_moment() if by is None else one.second_moment() @ by.second_moment()
            )
            for one, by in zip(states, directions, strict=True)
        ]
    return np.array(made).reshape(2, *found.shape)


def _norm(found: CacheMoments, norm: str, side: str) -> tuple[list[Moments], list[Moments] | None]:
    """Return the states whose errors count in a norm, and what weights their directions."""
    if norm == "loss":
        return found.flat(f"felt_{side}"), found.flat(f"{side[:-1]}_gradients")
    looked = found.flat("queries") if (norm, side) == ("attention", "keys") else None
    return found.flat(side), looked


def _channels(found: CacheMoments, side: str) -> CacheBasis:
    """Return coordinates that are the channels, those that matter first."""
    states = found.flat(side)
    power = np.stack([np.diag(head.second_moment()) for head in states])
    if side == "keys":
        power = power * np.stack([np.diag(head.second_moment()) for head in found.flat("queries")])
    order = np.argsort(-power, axis=1, kind="stable")
    axes = np.eye(power.shape[1])[:, order].swapaxes(0, 1)
    return orthogonal_basis(np.ascontiguousarray(axes), states)


def full_plan(method: str, keys: CacheBasis, values: CacheBasis) -> CachePlan:
    """Return the plan of these bases (layers, heads, ...) with all dimensions."""
    most = np.array([keys.rank, values.rank])[:, None, None]
    return CachePlan(method, keys, values, most * np.ones((2, *keys.mean.shape[:2]), np.int64))


def shaped(basis: CacheBasis, shape: tuple[int, int]) -> CacheBasis:
    """Return a stack of bases of all heads as (layers, heads, ...)."""
    return CacheBasis(*(part.reshape(*shape, *part.shape[1:]) for part in _parts(basis)))


def _flat(basis: CacheBasis) -> CacheBasis:
    return CacheBasis(*(part.reshape(-1, *part.shape[2:]) for part in _parts(basis)))


def _parts(basis: CacheBasis) -> tuple[Floats, ...]:
    return basis.down, basis.up, basis.mean, basis.tails


def _padded(arrays: Mapping[str, Any], side: str, ranks: NDArray[np.int64]) -> CacheBasis:
    """Return a stack whose heads have zeros above their ranks."""
    mean = arrays[f"{side}.mean"].astype(np.float64)
    used = np.arange(int(ranks.max())) < ranks[..., None]
    stacks = []
    for part in ("down", "up"):
        stack = np.zeros((*used.shape, mean.shape[-1]))
        stack[used] = arrays[f"{side}.{part}"]
        stacks.append(stack)
    down, up = stacks
    return CacheBasis(down, up.swapaxes(-1, -2), mean, arrays[f"{side}.tails"].astype(np.float64))
