"""Logarithms of sums of kernels and their gradients for torch, both tile by tile in the core."""

from __future__ import annotations

import functools
import math
from typing import Any

from subspan import _arrays, _core
from subspan._ops._kernel_gradients import Kernel, Widths, in_widths

__all__ = ["logs", "logsumexp"]


def logs(
    x: Any, y: Any, v: Any, widths: Widths, how: Kernel, *, parts: bool = False
) -> tuple[Any, Any]:
    """Return log(K v) [batch, n, e] and, if asked for, what it is made of, [batch, n, 2 e]."""
    shape, e = tuple(map(int, x.shape[:2])), int(v.shape[2])
    out = _arrays.empty_like_on(x, (*shape, e))
    of_out = _arrays.empty_like_on(x, (*shape, 2 * e), "float64") if parts else None
    kernel = (how.name, how.alpha, how.ranges)
    _core.kernel_logsumexp(x, y, v, widths, out, of_out, *kernel, _arrays.stream_of(x))
    return out, of_out


def logsumexp(tensors: tuple[Any, Any, Any], bandwidth: Any, widths: Widths, how: Kernel) -> Any:
    """Return log(K v) with gradients; bandwidth is None where it wants none."""
    return _function().apply(*tensors, bandwidth, widths, how)


def _sums(
    points: tuple[Any, Any],
    terms: tuple[Any, Any],
    widths: Widths,
    how: Kernel,
    *,
    slopes: bool,
    exchanged: bool,
) -> Any:
    """Return the sums of 2^(a + b) p q K [batch, n], or the gradients in x of their total.

    exchanged: whether x is the y of the sums, and is to be rounded as there.
    """
    x, y = points
    shape = tuple(map(int, x.shape)) if slopes else (*map(int, x.shape[:2]), 1)
    out = _arrays.empty_like_on(x, shape)
    sums, of_x = (None, out) if slopes else (out, None)
    kernel, stream = (how.name, how.alpha, how.ranges), _arrays.stream_of(x)
    arrays = (x, y, *terms, widths, sums, of_x)
    _core.kernel_logsumexp_backward(*arrays, exchanged, *kernel, stream)
    return out if slopes else out[..., 0]


@functools.cache
def _function() -> Any:
    """Return the autograd function; made once, where torch is there.

    The gradient in a pair is its share of the sum, 2^(log2 K_ij + log2 v_j - greatest_i) / mass_i,
    by the same steps as in the sum: an exponent of thousands has few digits, but the same ones.
    """
    import torch
    from torch.autograd.function import once_differentiable

    class KernelLogSum(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            x, y, v, bandwidth, widths, how = inputs
            arrays = (x.detach(), y.detach(), v.detach())
            out, parts = logs(*arrays, widths, how, parts=True)
            ctx.widths, ctx.how = widths, how
            ctx.save_for_backward(x, y, v, bandwidth, parts)
            return out

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
            *tensors, bandwidth, parts = ctx.saved_tensors
            x, y, v = (a.detach() for a in tensors)
            needs_x, needs_y, needs_v, needs_b = ctx.needs_input_grad[:4]
            widths, how, other = ctx.widths, ctx.how, ctx.how.exchanged
            wants_x, wants_y = needs_x or needs_b, needs_y or (needs_b and not how.of_products)
            of_x, of_y, of_v = (torch.zeros_like(a) for a in (x, y, v))
            e = int(v.shape[2])
            for k in range(e):
                greatest, mass = parts[..., k], parts[..., e + k]
                some = mass != 0  # what has no sum has no gradient
                share = torch.where(some, g[..., k] / mass, 0)
                of_rows = torch.stack([torch.where(some, -greatest, -math.inf), share], 2)
                weight = v[..., k].double().log2()
                of_columns = torch.stack([weight, torch.ones_like(weight)], 2)
                if wants_x:
                    terms = (of_rows, of_columns)
                    of_x += _sums((x, y), terms, widths, how, slopes=True, exchanged=False)
                if wants_y:
                    terms = (of_columns, of_rows)
                    of_y += _sums((y, x), terms, widths, other, slopes=True, exchanged=True)
                if needs_v:
                    nothing = torch.zeros_like(weight)  # but a factor of 1
                    terms = (torch.stack([nothing, nothing + 1], 2), of_rows)
                    of_v[..., k] = _sums((y, x), terms, widths, other, slopes=False, exchanged=True)
            of_b = None
            if needs_b:
                of_b = in_widths((x, y), (of_x, of_y), widths, how)
                of_b = (of_b if bandwidth.ndim else of_b.sum()).to(bandwidth.dtype)
            return (
                of_x if needs_x else None,
                of_y if needs_y else None,
                of_v if needs_v else None,
                of_b,
                None,
                None,
            )

    return KernelLogSum
