"""Caches for transformers' attention that hold fewer numbers than the states have dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from subspan import _checks
from subspan.compression.caches.basis import CacheBasis
from subspan.compression.caches.plan import CachePlan
from subspan.errors import InvalidArgumentError

__all__ = ["CompressedCache", "ProjectingCache"]

_STORED = ("float16", "bfloat16", "float32", "float64")


class CompressedCache(Cache):  # type: ignore[misc]
    """A cache for Hugging Face models that stores the coordinates of a `CachePlan`.

    Keys and values are encoded when they come, after rotary embedding, and decoded when attention
    reads them: what attention sees of every token, the newest too, is what the coordinates hold.
    Expanded states live only as long as one layer's attention.

    Parameters
    ----------
    plan : CachePlan
        Bases and ranks of all heads.
    dtype : {"float16", "bfloat16", "float32", "float64"}, optional
        Of the stored numbers; by default that of the model's states.

    Examples
    --------
    ``model.hf.generate(ids, past_key_values=CompressedCache(plan, dtype="float16"))``
    """

    def __init__(self, plan: CachePlan, *, dtype: str | None = None) -> None:
        if dtype is not None:
            _checks.choice("CompressedCache", "dtype", dtype, _STORED)
        stored = None if dtype is None else getattr(torch, dtype)
        bases = (plan.keys, plan.values)
        layers = []
        for layer in range(plan.shape[0]):
            keys, values = (
                _Coder(_head_stack(basis, layer), plan.ranks[side, layer])
                for side, basis in enumerate(bases)
            )
            layers.append(_CompressedLayer(keys, values, stored))
        super().__init__(layers=layers)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the stored tensors own, measured; bases and means not among them."""
        tensors = [x for layer in self.layers for x in (layer.keys, layer.values) if x is not None]
        return sum(int(x.untyped_storage().nbytes()) for x in tensors)


class _Coder:
    """Coordinates of the heads of one layer, side by side."""

    def __init__(self, basis: CacheBasis, ranks: Any) -> None:
        self.ranks = [int(rank) for rank in ranks]
        self.width = int(basis.mean.shape[-1])
        self.parts = [
            [torch.from_numpy(np.array(x)) for x in (down[:r], up[:, :r].T, mean)]
            for down, up, mean, r in zip(
                basis.down, basis.up, basis.mean, self.ranks, strict=True
            )
        ]  # fmt: skip

    def to(self, like: Any) -> None:
        """Bring the bases to the device and dtype of states."""
        self.parts = [[x.to(device=like.device, dtype=like.dtype) for x in p] for p in self.parts]

    def encode(self, x: Any) -> Any:
        """Return (windows, tokens, sum of ranks) of states (windows, heads, tokens, d)."""
        return torch.cat(
            [(x[:, h] - mean) @ down.T for h, (down, _, mean) in enumerate(self.parts)], dim=-1
        )

    def decode(self, codes: Any) -> Any:
        """Return states (windows, heads, tokens, d)."""
        pieces = codes.split(self.ranks, dim=-1)
        return torch.stack(
            [piece @ up + mean for piece, (_, up, mean) in zip(pieces, self.parts, strict=True)],
            dim=1,
        )


class _CompressedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer: its tensors are (windows, tokens, numbers), so that all else is inherited."""

    def __init__(self, keys: _Coder, values: _Coder, stored: Any) -> None:
        super().__init__()
        self.coders, self.stored = (keys, values), stored

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        for name, coder, x in zip(
            ("keys", "values"), self.coders, (key_states, value_states), strict=True
        ):
            if (x.shape[1], x.shape[-1]) != (len(coder.ranks), coder.width):
                raise InvalidArgumentError(
                    f"[CompressedCache] plan must be of this model, got {len(coder.ranks)} heads "
                    f"of {coder.width} dimensions for {name} of {x.shape[1]} heads of {x.shape[-1]}"
                )
            coder.to(x)
        self.dtype, self.device = key_states.dtype, key_states.device
        kept = self.stored or self.dtype
        self.keys, self.values = (
            torch.empty((x.shape[0], 0, sum(coder.ranks)), dtype=kept, device=self.device)
            for coder, x in zip(self.coders, (key_states, value_states), strict=True)
        )
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_kwargs: Any) -> Any:
        """Store new states, and return all of them decoded."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.coders
        self.keys = _grown(self.keys, keys.encode(key_states))
        self.values = _grown(self.values, values.encode(value_states))
        return keys.decode(self.keys.to(self.dtype)), values.decode(self.values.to(self.dtype))

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Drop the last tokens, and their memory."""
        super().crop(*args, **kwargs)
        if self.is_initialized:
            self.keys, self.values = self.keys.clone(), self.values.clone()


def _grown(old: Any, new: Any) -> Any:
    return torch.cat([old, new.to(old.dtype)], dim=-2)


def _head_stack(basis: CacheBasis, layer: int) -> CacheBasis:
    return CacheBasis(basis.down[layer], basis.up[layer], basis.mean[layer], basis.tails[layer])


class ProjectingCache(Cache):  # type: ignore[misc]
    """Shows attention what projections leave of the states, and stores nothing; for training.

    ``see(layer, keys, values)`` returns what to show, with gradients.
    """

    def __init__(self, layers: int, see: Callable[[int, Any, Any], Sequence[Any]]) -> None:
        super().__init__(layers=[_ProjectingLayer(number, see) for number in range(layers)])


class _ProjectingLayer(DynamicLayer):  # type: ignore[misc]
    def __init__(self, number: int, see: Callable[[int, Any, Any], Sequence[Any]]) -> None:
        super().__init__()
        self.number, self.see = number, see

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_kwargs: Any) -> Any:
        keys, values = self.see(self.number, key_states, value_states)
        return keys, values
