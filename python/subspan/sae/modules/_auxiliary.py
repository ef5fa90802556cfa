"""The auxiliary loss of dead latents, at the cost of the dead ones alone."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from subspan import sparse_decode, threshold_encode, topk_encode
from subspan.sae.modules._arithmetic import beside, normalized_error

__all__ = ["DeadLatents", "Dictionary", "dead_error"]


class _Weights(Protocol):
    w_enc: Tensor
    w_dec: Tensor
    b_enc: Tensor


class DeadLatents(NamedTuple):
    """The weights of dead latents alone."""

    w_enc: Tensor  # (d, dead)
    w_dec: Tensor  # (dead, d)
    b_enc: Tensor  # (dead,)


class Dictionary(NamedTuple):
    """The weights to go on with, and those of dead latents beside them."""

    w_enc: Tensor
    w_dec: Tensor
    dead: DeadLatents | None

    @classmethod
    def of(cls, weights: _Weights, dead: Tensor | None) -> Dictionary:
        """Return the weights of a module, with those of the latents of indices dead if any."""
        if dead is None:
            return cls(weights.w_enc, weights.w_dec, None)
        rows = _Rows(dead)
        encoder, some_encoder = beside(weights.w_enc.t(), rows)
        decoder, some_decoder = beside(weights.w_dec, rows)
        biases = weights.b_enc.index_select(0, dead)
        return cls(encoder.t(), decoder, DeadLatents(some_encoder.t(), some_decoder, biases))

    def without(self, active: Tensor) -> Dictionary:
        """Return the same, less those of the dead that are active after all."""
        if self.dead is None or not bool(active.any()):
            return self
        left = (~active).nonzero()[:, 0]
        if len(left) == 0:
            return self._replace(dead=None)
        w_enc, w_dec, b_enc = self.dead
        return self._replace(dead=DeadLatents(w_enc[:, left], w_dec[left], b_enc[left]))


class _Rows:
    """Some rows of a matrix."""

    def __init__(self, indices: Tensor) -> None:
        self.indices = indices

    def of(self, w: Tensor) -> Tensor:
        return w.index_select(0, self.indices)

    def add_(self, of_w: Tensor, gradient: Tensor, w: Tensor) -> None:  # noqa: ARG002
        of_w[self.indices] += gradient  # no index is there twice


def dead_error(x: Tensor, rest: Tensor, dead: DeadLatents, k: int, b_pre: Tensor | None) -> Tensor:
    """Return the normalised error of what dead latents make of ``rest``, the error of x."""
    if dead.w_enc.shape[1] <= k:  # all of them: those that are positive, without a selection
        some = threshold_encode(x, dead.w_enc, dead.b_enc, threshold=0.0, b_pre=b_pre)
        made = sparse_decode(some.values, some.indices, dead.w_dec, offsets=some.offsets)
    else:
        best = topk_encode(x, dead.w_enc, dead.b_enc, k=k, b_pre=b_pre)
        made = sparse_decode(*best, dead.w_dec)
    return normalized_error(made, rest)
