"""Products of kernel matrices and their gradients for torch, both tile by tile in the core."""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _core
from subspan._ops._kernel_arguments import Ranges, on_device

__all__ = ["Kernel", "in_widths", "multiply", "product"]

Widths = npt.NDArray[np.float64]


class Kernel(NamedTuple):
    """A kernel as the core takes it."""

    name: str
    alpha: float = 1.0
    degree: int = 3
    offset: float = 1.0
    cutoff: float = 0.0
    ranges: Ranges | None = None

    @property
    def arguments(self) -> tuple[str, float, int, float, Ranges | None]:
        """All but the cut-off, which gradients do not have."""
        return (*self[:4], self.ranges)

    @property
    def exchanged(self) -> Kernel:
        """The same for x and y exchanged, of all pairs that are no matter of ranges."""
        return self._replace(cutoff=0.0, ranges=self.ranges and self.ranges.transposed())

    @property
    def of_products(self) -> bool:
        """Whether it is a function of products, and not of distances."""
        return self.name in {"exp_dot", "softmax", "linear", "polynomial"}


def multiply(
    x: Any, y: Any, v: Any, widths: Widths, how: Kernel, *, masses: bool = False
) -> tuple[Any, Any]:
    """Return K v [batch, n, e] and, if asked for, log(sum_j exp(P_ij)) [batch, n] in float64."""
    batch, n = int(x.shape[0]), int(x.shape[1])
    if how.name == "linear" and how.ranges is None and on_device("kernel_matvec", x):
        return _linear(x, y, v, widths), None
    out = _arrays.empty_like_on(x, (batch, n, int(v.shape[2])))
    lse = _arrays.empty_like_on(x, (batch, n), "float64") if masses else None
    _core.kernel_matvec(x, y, v, widths, out, lse, *how, _arrays.stream_of(x))
    return out, lse


def _linear(x: Any, y: Any, v: Any, widths: Widths) -> Any:
    """Return (x / b) (y^T v) by the library of the arrays, in float64."""
    wide = [a.double() if hasattr(a, "double") else a.astype("float64") for a in (x, y, v)]
    inner = (wide[1] / _beside(x, widths)).swapaxes(1, 2) @ wide[2]
    out = wide[0] @ inner
    return out.to(x.dtype) if hasattr(out, "to") else out.astype(x.dtype)


def product(tensors: tuple[Any, Any, Any], bandwidth: Any, widths: Widths, how: Kernel) -> Any:
    """Return K v of x, y and v with gradients; bandwidth is None where it wants none."""
    return _function().apply(*tensors, bandwidth, widths, how)


class _Sides(NamedTuple):
    """The arguments of K v, and the gradient g of a loss in it."""

    x: Any
    y: Any
    v: Any
    g: Any
    widths: Widths
    how: Kernel

    def in_x(self) -> Any:
        if self.how.name == "linear":  # as sums over all pairs would be, but from both ends
            ones = np.ones(int(self.v.shape[2]))
            summed, _ = multiply(self.g, self.v, self.y, ones, self.how)
            return (summed / _beside(self.x, self.widths)).to(self.x.dtype)
        out = _arrays.empty_like_on(self.x, tuple(self.x.shape))
        arrays = (self.x, self.y, self.v, self.g, self.widths, out)
        _core.kernel_matvec_backward(*arrays, *self.how.arguments, _arrays.stream_of(self.x))
        return out

    def in_y(self) -> Any:
        how = self.how.exchanged
        return self._replace(x=self.y, y=self.x, v=self.g, g=self.v, how=how).in_x()

    def in_v(self) -> Any:
        return multiply(self.y, self.x, self.g, self.widths, self.how.exchanged)[0]

    def of_softmax(self, lse: Any, out: Any) -> _Sides:
        """Return the same by exp_dot: what is subtracted is one coordinate more.

        The gradient in P_ij is exp(P_ij - lse_i) (<g_i, v_j> - <g_i, out_i>).
        """
        torch = sys.modules["torch"]
        centre = self.y.mean(1, keepdim=True)
        moved = (self.x.double() * centre / _beside(self.x, self.widths)).sum(2)
        ones = self.y.new_ones((*self.y.shape[:2], 1))
        return _Sides(
            torch.cat([self.x, (moved - lse).to(self.x.dtype)[..., None]], 2),
            torch.cat([self.y - centre, ones], 2),
            torch.cat([self.v, ones], 2),
            torch.cat([self.g, -(self.g * out).sum(2, keepdim=True)], 2),
            np.append(self.widths, 1.0),
            Kernel("exp_dot", ranges=self.how.ranges),
        )


def in_widths(
    points: tuple[Any, Any], gradients: tuple[Any, Any], widths: Widths, how: Kernel
) -> Any:
    """K sees x / b and y / b: a growth of b is one of both the other way; of products, once."""
    (x, y), (of_x, of_y) = points, gradients
    if how.of_products:
        total = (x.double() * of_x).sum((0, 1))
    else:
        centre = y.double().sum(1, keepdim=True) / max(int(y.shape[1]), 1)
        total = ((x - centre) * of_x).sum((0, 1)) + ((y - centre) * of_y).sum((0, 1))
    return -total / _beside(x, widths)


def _beside(x: Any, widths: Widths) -> Any:
    """Return the bandwidths where x is."""
    return _arrays.from_numpy(x, widths)


@functools.cache
def _function() -> Any:
    """Return the autograd function; made once, where torch is there."""
    import torch
    from torch.autograd.function import once_differentiable

    class KernelProduct(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            x, y, v, bandwidth, widths, how = inputs
            arrays = (x.detach(), y.detach(), v.detach())
            out, lse = multiply(*arrays, widths, how, masses=how.name == "softmax")
            ctx.widths, ctx.how = widths, how
            ctx.save_for_backward(x, y, v, bandwidth, *(() if lse is None else (lse, out)))
            return out

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
            x, y, v, bandwidth, *of_softmax = ctx.saved_tensors
            needs_x, needs_y, needs_v, needs_b = ctx.needs_input_grad[:4]
            given = _Sides(x.detach(), y.detach(), v.detach(), g.detach(), ctx.widths, ctx.how)
            sides = given.of_softmax(*of_softmax) if of_softmax else given
            d, e = int(x.shape[2]), int(v.shape[2])
            of_x = sides.in_x()[..., :d] if needs_x or needs_b else None
            distances = needs_b and not ctx.how.of_products
            of_y = sides.in_y()[..., :d] if needs_y or distances else None
            of_b = None
            if needs_b:
                of_b = in_widths(given[:2], (of_x, of_y), ctx.widths, ctx.how)
                of_b = (of_b if bandwidth.ndim else of_b.sum()).to(bandwidth.dtype)
            return (
                of_x if needs_x else None,
                of_y if needs_y else None,
                sides.in_v()[..., :e] if needs_v else None,
                of_b,
                None,
                None,
            )

    return KernelProduct
