"""Several processes that train one autoencoder together, by torch.distributed.

Each holds all of the weights and an equal share of every batch. What they agree on are sums: of
gradients, of the statistics of a batch, and which entries a batch keeps. So the result is that of
one process with the joined batch, up to rounding.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, distributed

import subspan
from subspan import RaggedCode
from subspan.errors import InvalidArgumentError

__all__ = [
    "Ranks",
    "any_over_ranks",
    "batch_topk_encode",
    "least_positive",
    "mean_over_ranks",
    "over_ranks",
    "rank_count",
]

# Those that share the batch that a loss is made of just now.
_GROUP: ContextVar[Any] = ContextVar("group", default=None)


class Ranks:
    """The processes of a group, or this one alone.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.size = 1 if group is None else distributed.get_world_size(group)
        self.rank = 0 if group is None else distributed.get_rank(group)

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Let the functions below see the batches of all processes."""
        token = _GROUP.set(self.group if self.size > 1 else None)
        try:
            yield
        finally:
            _GROUP.reset(token)

    def check_batch(self, batch_size: int) -> None:
        """Raise unless a batch can be shared."""
        if batch_size % self.size:
            raise InvalidArgumentError(
                f"[train] batch_size must be a multiple of the number of processes, {self.size}, "
                f"got {batch_size}"
            )

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's rows of a batch."""
        rows = batch.shape[0] // self.size
        return batch[self.rank * rows : (self.rank + 1) * rows]

    def copy_from_first(self, module: Any) -> None:
        """Give all processes the weights and buffers of the first."""
        if self.size == 1:
            return
        first = distributed.get_global_rank(self.group, 0)
        for x in module.state_dict().values():
            distributed.broadcast(_without_gaps(x), first, group=self.group)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def average_gradients(self, module: Any) -> None:
        """Replace all gradients by their means over the processes."""
        if self.size == 1:
            return
        for p in module.parameters():
            if p.grad is not None:
                whole = _without_gaps(p.grad)
                distributed.all_reduce(whole, group=self.group)
                whole /= self.size

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return the sums over the processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums, group=self.group)
        return [float(x) for x in sums]

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the means over the processes."""
        return [x / self.size for x in self.sum(values)]


def rank_count() -> int:
    """Return how many processes share the present batch."""
    group = _GROUP.get()
    return 1 if group is None else distributed.get_world_size(group)


def over_ranks(x: Tensor) -> Tensor:
    """Return the sum of x, which has no gradient, over the processes that share the batch."""
    group = _GROUP.get()
    if group is None:
        return x
    total = x.detach().clone()
    distributed.all_reduce(total, group=group)
    return total


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean of x over the processes; its gradient is that of this process's part."""
    return x if _GROUP.get() is None else x + (over_ranks(x) / rank_count() - x).detach()


def any_over_ranks(flags: Tensor) -> Tensor:
    """Return which flags are set in any of the processes that share the batch."""
    return flags if _GROUP.get() is None else over_ranks(flags.to(torch.int32)) > 0


def least_positive(values: Tensor) -> float:
    """Return the smallest positive value of the batch; infinity where there is none."""
    positive = values.detach()[values > 0]
    least = float(positive.min()) if len(positive) else math.inf
    group = _GROUP.get()
    if group is not None:
        shared = torch.tensor(least, dtype=torch.float64)
        distributed.all_reduce(shared, distributed.ReduceOp.MIN, group=group)
        least = float(shared)
    return least


def batch_topk_encode(
    x: Tensor, w_enc: Tensor, b_enc: Tensor | None = None, *, k: float, b_pre: Tensor | None = None
) -> RaggedCode:
    """Return this process's part of `subspan.batch_topk_encode` of the whole batch.

    Every process first keeps as many entries as the whole batch may have, at least all that can be
    among them; then all of them hear of each other's values.
    """
    group = _GROUP.get()
    if group is None:
        return subspan.batch_topk_encode(x, w_enc, b_enc, k=k, b_pre=b_pre)
    size, n, rows = distributed.get_world_size(group), int(w_enc.shape[1]), int(x.shape[0])
    count = int(k * rows * size)
    code = subspan.batch_topk_encode(x, w_enc, b_enc, k=min(k * size, n), b_pre=b_pre)
    kept = _largest(code.values.detach(), min(count, n * rows * size), group)
    if bool(kept.all()):
        return code
    of_rows = torch.arange(rows).repeat_interleave(code.offsets.diff())[kept]
    counts = torch.bincount(of_rows, minlength=rows)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return RaggedCode(code.values[kept], code.indices[kept], offsets)


def _largest(values: Tensor, count: int, group: Any) -> Tensor:
    """Return which values are among the count largest of all processes; of equals the first."""
    size, rank = distributed.get_world_size(group), distributed.get_rank(group)
    lengths = torch.zeros(size, dtype=torch.int64)
    lengths[rank] = len(values)
    distributed.all_reduce(lengths, group=group)
    if int(lengths.sum()) <= count:
        return torch.ones(len(values), dtype=torch.bool)
    padded = values.new_full((int(lengths.max()),), -math.inf)
    padded[: len(values)] = values
    every = [torch.empty_like(padded) for _ in range(size)]
    distributed.all_gather(every, padded, group=group)
    least = subspan.topk(torch.cat(every), count).values[-1]
    above = [int((part > least).sum()) for part in every]
    equal = [int((part == least).sum()) for part in every]
    left = max(0, count - sum(above) - sum(equal[:rank]))
    ties = values == least
    return (values > least) | (ties & (ties.cumsum(0) <= left))


def _without_gaps(x: Tensor) -> Tensor:
    """Return a view that collectives take: a transposed matrix goes the other way round."""
    return x if x.is_contiguous() or x.dim() < 2 else x.mT
