"""How close each direction is to its nearest, in random parts, and the gradient of that."""

from __future__ import annotations

import torch
from torch import Tensor

from subspan import sparse_decode, topk_encode
from subspan.sae.modules._arithmetic import row_blocks, total

__all__ = ["Crowding"]


class Crowding:
    """Mean over parts of the mean over rows of the square of the largest cosine with another row.

    Parts are a random permutation of n rows, cut into the fewest pieces of at most size rows whose
    lengths differ by one at most.
    """

    def __init__(self, n: int, size: int, seed: int, precision: str = "certified") -> None:
        self.precision = precision
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        # A part of one row has no pair.
        self.parts = order.tensor_split(max(1, min(-(-n // size), n // 2)))

    def of(self, w: Tensor) -> Tensor:
        """Return the penalty () of the rows of w (n, d)."""
        self.nearest = torch.empty(len(w), dtype=torch.int64)
        self.cosines = w.new_empty(len(w))
        self.weights = w.new_empty(len(w))
        for part in self.parts:
            rows = self._unit(w[part])
            best = topk_encode(rows, rows.t(), k=2, activation="identity", precision=self.precision)
            own = best.indices[:, 0] == torch.arange(len(part))
            other = torch.where(own, best.indices[:, 1], best.indices[:, 0])
            self.nearest[part] = part[other]
            self.cosines[part] = torch.where(own, best.values[:, 1], best.values[:, 0])
            self.weights[part] = 1.0 / (len(part) * len(self.parts))
        return total(self.weights * self.cosines * self.cosines)

    def add_(self, of_w: Tensor, gradient: Tensor, w: Tensor) -> None:
        """Add the gradient, of every row and of its nearest.

        With c = cos(a, b), dc/da = (b/|b| - c a/|a|) / |a|: a sparse matrix times the unit rows.
        """
        n = len(w)
        rows, factors = torch.arange(n), self.weights * self.cosines * (gradient * 2)
        own = factors * -self.cosines
        to = torch.cat([rows, rows, self.nearest, self.nearest])
        order = torch.argsort(to, stable=True)
        values = torch.cat([factors, own, factors, own])[order]
        indices = torch.cat([self.nearest, rows, rows, self.nearest])[order]
        counts = torch.bincount(to, minlength=n).cumsum(0)
        offsets = torch.cat([counts.new_zeros(1), counts])
        unit = self._unit(w)
        turned = sparse_decode(values, indices, unit, offsets=offsets)
        for block in row_blocks(w):
            norms = torch.linalg.vector_norm(w[block], dim=-1, keepdim=True)
            of_w[block] += turned[block] / (norms + (norms == 0))

    @staticmethod
    def _unit(w: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        return w / (norms + (norms == 0))
