"""Sums of two kernels over pairs, and their gradients for torch, both tile by tile in the core."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _core

__all__ = ["Kernel", "Sides", "add_up", "differentiable"]


class Kernel(NamedTuple):
    """A kernel as the core takes it."""

    name: str
    alpha: float
    widths: npt.NDArray[np.float64]


class Sides(NamedTuple):
    """x [n, d], z [r, n, q], and what they meet; y and w None: themselves."""

    x: Any
    z: Any
    y: Any = None
    w: Any = None


def add_up(sides: Sides, of_x: Kernel, of_z: Kernel) -> tuple[Any, Any, Any]:
    """Return the sums: joint [r, n], first [n], second [r, n]."""
    x, z, y, w = sides
    count, n = int(z.shape[0]), int(z.shape[1])
    joint, second = (_arrays.empty_like_on(x, (count, n), "float64") for _ in range(2))
    first = _arrays.empty_like_on(x, (n,), "float64")
    points, others = (x, z) if y is None else (y, w)
    _core.joint_kernel_sums(
        x, points, z, others, of_x.widths, of_z.widths, joint, first, second,
        of_x.name, of_z.name, of_x.alpha, of_z.alpha, _arrays.stream_of(x),
    )  # fmt: skip
    return joint, first, second


def differentiable(sides: Sides, of_x: Kernel, of_z: Kernel) -> tuple[Any, Any, Any]:
    """Return the same of tensors that want gradients."""
    joint, first, second = _function().apply(*sides, of_x, of_z)
    return joint, first, second


def _in_first(
    sides: tuple[Any, Any, Any, Any], weights: tuple[Any, Any], kernels: tuple[Kernel, Kernel]
) -> Any:
    """Return the gradient in x [n, d] of the kernel of x and y, weighed with that of z and w."""
    (x, y, z, w), (of_x, of_z) = sides, kernels
    out = _arrays.empty_like_on(x, tuple(x.shape))
    _core.joint_kernel_sums_backward(
        x, y, z, w, *weights, of_x.widths, of_z.widths, out,
        of_x.name, of_z.name, of_x.alpha, of_z.alpha, _arrays.stream_of(x),
    )  # fmt: skip
    return out


@functools.cache
def _function() -> Any:
    """Return the autograd function; made once, where torch is there."""
    import torch
    from torch.autograd.function import once_differentiable

    class JointKernelSums(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            *tensors, of_x, of_z = inputs
            ctx.kernels = of_x, of_z
            ctx.save_for_backward(*tensors)
            given = (None if a is None else a.detach() for a in tensors)
            return add_up(Sides(*given), of_x, of_z)

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, joint: Any, first: Any, second: Any) -> tuple[Any, ...]:
            x, z, y, w = (None if a is None else a.detach() for a in ctx.saved_tensors)
            # The sum of the first kernel comes in once, beside the first of the second kernels.
            firsts = torch.zeros_like(joint)
            firsts[0] = first
            of_first, of_second = (torch.stack([joint, h], 2) for h in (firsts, second))
            gradients = _of_own if y is None else _of_both
            parts = gradients(Sides(x, z, y, w), of_first, of_second, ctx.kernels)
            needed = ctx.needs_input_grad[:4]
            return (*(make() if need else None for make, need in zip(parts, needed, strict=True)),
                    None, None)  # fmt: skip

    return JointKernelSums


def _of_own(sides: Sides, of_first: Any, of_second: Any, kernels: Any) -> tuple[Any, ...]:
    """Return what makes the gradients in x and z; a pair counts from either end."""
    x, z, _, _ = sides

    def one(s: int) -> Any:
        return _in_first((x, x, z[s], z[s]), (of_first[s], of_first[s]), kernels)

    def other(s: int) -> Any:
        return _in_first((z[s], z[s], x, x), (of_second[s], of_second[s]), kernels[::-1])

    return _sum(one, len(z)), _stack(other, len(z)), _sum(one, 0), _sum(other, 0)


def _of_both(sides: Sides, of_first: Any, of_second: Any, kernels: Any) -> tuple[Any, ...]:
    """Return what makes the gradients in x, z, y and w; weights belong to the rows of x and z."""
    x, z, y, w = sides
    none = of_first.new_zeros((len(y), 2))
    turned = kernels[::-1]
    count = len(z)
    return (
        _sum(lambda s: _in_first((x, y, z[s], w[s]), (of_first[s], none), kernels), count),
        _stack(lambda s: _in_first((z[s], w[s], x, y), (of_second[s], none), turned), count),
        _sum(lambda s: _in_first((y, x, w[s], z[s]), (none, of_first[s]), kernels), count),
        _stack(lambda s: _in_first((w[s], z[s], y, x), (none, of_second[s]), turned), count),
    )


def _sum(make: Callable[[int], Any], count: int) -> Callable[[], Any]:
    return lambda: sum(make(s) for s in range(count))


def _stack(make: Callable[[int], Any], count: int) -> Callable[[], Any]:
    return lambda: sys.modules["torch"].stack([make(s) for s in range(count)])
