"""Sums and errors of torch tensors whose bits do not depend on the number of threads.

torch splits the sum of all of a large tensor among its threads, and so sums in another order for
another number of them. Sums of rows, and of parts that one thread works through, do not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subspan import sparse_decode
from subspan.sae.training.parallel import over_ranks, rank_count

__all__ = [
    "Aside",
    "add_bias",
    "beside",
    "column_sums",
    "inverse_variance",
    "normalized_error",
    "row_blocks",
    "squared_error",
    "total",
]


_SERIAL = 1 << 14  # entries that one thread sums: half of torch's own limit
_BLOCK = 1 << 18  # entries of a block of rows that stays in a cache


def total(x: Tensor) -> Tensor:
    """Return the sum of all entries of x (..., d), or of x (n,)."""
    parts = x.sum(-1).reshape(-1) if x.dim() > 1 else x
    if parts.shape[0] <= _SERIAL:
        return parts.sum()
    return torch.stack([part.sum() for part in parts.split(_SERIAL)]).sum()


def column_sums(x: Tensor) -> Tensor:
    """Return the sum (d,) of the rows of x (rows, d), without a gradient."""
    ones = x.new_ones((1, x.shape[0]))
    return sparse_decode(ones, torch.arange(x.shape[0])[None], x.detach())[0]


def row_blocks(x: Tensor) -> Iterator[slice]:
    """Yield slices of rows of x (n, d) that stay in a cache."""
    rows = max(1, _BLOCK // max(1, x.shape[1]))
    for start in range(0, x.shape[0], rows):
        yield slice(start, start + rows)


def inverse_variance(x: Tensor) -> float:
    """Return one over the mean square of the rows x less their mean; 1 if they do not vary."""
    wide = x.detach().double()
    centred = wide - column_sums(wide) / len(wide)
    size = float(total(centred * centred))
    return x.numel() / size if size > _rounding(wide) else 1.0


def _rounding(x: Tensor) -> float:
    """Return what |x - mean|^2 may be of rows x that are all alike: the mean is rounded."""
    return float((16 * torch.finfo(x.dtype).eps) ** 2 * total(x * x))


def squared_error(estimate: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of squares of ``x - estimate``, which has a gradient, and the difference."""
    return tuple(_SquaredError.apply(estimate, x))


class _SquaredError(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, estimate: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rest = x - estimate
        ctx.set_materialize_grads(False)  # no zeros for the difference, which has none
        ctx.save_for_backward(rest)
        ctx.mark_non_differentiable(rest)
        return total(rest * rest), rest

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_error: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
        (rest,) = ctx.saved_tensors
        return None if of_error is None else rest * (of_error * -2), None


def normalized_error(estimate: Tensor, x: Tensor) -> Tensor:
    """Return |x - estimate|^2 over |x - mean|^2, of all rows; zero where the rows are all alike."""
    variation = x - over_ranks(column_sums(x)) / (x.shape[0] * rank_count())
    size = over_ranks(total(variation * variation))
    rounding = 16 * torch.finfo(x.dtype).eps  # of the mean
    if not size > rounding**2 * over_ranks(total(x * x)):
        return estimate.new_zeros(())
    return squared_error(estimate, x)[0] / (size / rank_count())  # gradients will be averaged


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """Return ``x + bias`` for rows x and bias (d,)."""
    return _AddBias.apply(x, bias)


class _AddBias(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(_ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_sum: Tensor) -> tuple[Tensor | None, Tensor | None]:
        wants_x, wants_bias = ctx.needs_input_grad
        return of_sum if wants_x else None, column_sums(of_sum) if wants_bias else None


class Aside(Protocol):
    """Something small that is made of the rows of a matrix, and its gradient."""

    def of(self, w: Tensor) -> Tensor:
        """Return what is made of w (n, d)."""

    def add_(self, of_w: Tensor, gradient: Tensor, w: Tensor) -> None:
        """Add to of_w (n, d) what the gradient of the result means for w."""


def beside(w: Tensor, aside: Aside) -> tuple[Tensor, Tensor]:
    """Return w (n, d) to go on with, and what is made of it beside.

    Autograd would make a gradient of the size of w for each of the two and add them. Here the
    second is added to the first in place, where it is not zero: the gradient of w that arrives is
    memory of this graph, as what comes back is used by the primitives alone.
    """
    return tuple(_Beside.apply(w, aside))


class _Beside(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, w: Tensor, aside: Aside) -> tuple[Tensor, Tensor]:
        ctx.aside = aside
        ctx.save_for_backward(w)
        ctx.set_materialize_grads(False)
        return w.view_as(w), aside.of(w.detach())

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_w: Tensor | None, of_result: Tensor | None) -> tuple[Any, None]:
        (w,) = ctx.saved_tensors
        if of_result is None:
            return of_w, None
        if of_w is None:
            of_w = torch.zeros_like(w)
        ctx.aside.add_(of_w, of_result, w.detach())
        return of_w, None
