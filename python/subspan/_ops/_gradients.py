"""Gradients of decompositions and solves for torch: reverse rules made of torch's own operations.

A rule takes the factors [batch, ...] and the gradients of a loss in them (None where the loss does
not depend on a factor), and returns the gradient in the matrices. As it is made of torch's
operations, second derivatives come with it.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

from subspan import _arrays, _checks
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = [
    "Gaps",
    "cholesky_rule",
    "detached",
    "differentiable",
    "eigh_rule",
    "multiplied",
    "qr_rule",
    "solved",
    "svd_rule",
    "wanted",
]

Rule = Callable[[tuple[Any, ...], tuple[Any, ...]], Any]


def detached(a: Any) -> Any:
    """Return ``a`` itself, and without its history if it is a tensor that requires a gradient."""
    return a.detach() if wanted(a) else a


def differentiable(a: Any, rule: Rule, make: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """Return ``make()``; its tensors have gradients by ``rule`` if ``a`` requires one."""
    return tuple(_function().apply(a, rule, make)) if wanted(a) else make()


def wanted(a: Any) -> bool:
    """Whether ``a`` is a tensor that requires a gradient, and gradients are on."""
    if _arrays.library_of(a) != "torch":
        return False
    return bool(a.requires_grad and sys.modules["torch"].is_grad_enabled())


@functools.cache
def _function() -> Any:
    """Return the autograd function; made once, where torch is there."""
    import torch

    class Decomposition(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(_a: Any, _rule: Rule, make: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
            return tuple(make())

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            ctx.shape, ctx.rule = inputs[0].shape, inputs[1]
            ctx.save_for_backward(*output)
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *of_factors: Any) -> tuple[Any, None, None]:
            if all(gradient is None for gradient in of_factors):
                return None, None, None
            return ctx.rule(ctx.saved_tensors, of_factors).reshape(ctx.shape), None, None

    return Decomposition


class Gaps:
    """How a rule divides by differences of singular values or eigenvalues.

    A basis turns the faster under a change of the matrix the closer two values are, so its gradient
    has their difference as a denominator.
    """

    def __init__(self, function: str, gap_eps: float, subspace: bool) -> None:
        self.function = function
        self.eps = _checks.real(function, "gap_eps", gap_eps, low=0.0, high=1.0)
        if not isinstance(subspace, bool):
            raise DtypeError(
                f"[{function}] subspace must be a bool, got {type(subspace).__name__} {subspace!r}"
            )
        self.subspace = subspace

    def over(self, x: Any, gap: Any, scale: Any, size: Any) -> Any:
        """Return x / gap, entry by entry.

        ``scale`` [batch, 1, 1] is the largest value, against which a gap is small; ``size`` [batch,
        1, 1] the norm of the gradients, against which x is.
        """
        scale = scale.masked_fill(scale == 0, 1.0)
        gap = gap / scale
        if self.subspace:
            close = gap.abs() <= _close(gap)
            self._refuse(close & (x.abs() > _close(x) * size))
            x = x.masked_fill(close, 0.0)
        if self.eps > 0:
            return x / scale * gap / (gap * gap + self.eps)
        nothing = (gap == 0) & (x == 0)  # a diagonal, or a loss that does not see the basis
        return (x / scale / gap.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)

    def check_values(self, of_values: Any, gap: Any, scale: Any, size: Any) -> None:
        """Raise if a loss tells values of one cluster apart, and with them the vectors."""
        if not self.subspace or of_values is None:
            return
        close = gap.abs() <= _close(gap) * scale
        size = size / scale.masked_fill(scale == 0, 1.0) + _norm(of_values[..., None])
        difference = (of_values[..., :, None] - of_values[..., None, :]).abs()
        self._refuse(close & (difference > _close(gap) * size))

    def _refuse(self, wrong: Any) -> None:
        if not bool(wrong.any()):
            return
        raise InvalidArgumentError(
            f"[{self.function}] loss must not depend on the basis inside a cluster of equal values "
            f"with subspace=True, got one that does in matrix {int(wrong.nonzero()[0][0])} of "
            f"{wrong.shape[0]}. Use what all bases share, such as projectors, or gap_eps instead"
        )


def _close(x: Any) -> float:
    """Relative difference below which values are of one cluster, and gradients are none."""
    return math.sqrt(sys.modules["torch"].finfo(x.dtype).eps)


def _norm(x: Any) -> Any:
    """Frobenius norm of every matrix, [batch, 1, 1]; a constant for second derivatives."""
    x = x.detach()
    return (x * x).sum(dim=(-2, -1), keepdim=True).sqrt()


def _antisymmetric(x: Any) -> Any:
    return x - x.mT


def svd_rule(gaps: Gaps) -> Rule:
    r"""Return the rule of the thin SVD.

    With P = U^T dU, Q = V^T dV (d: gradient in), a = (P - P^T) + (Q - Q^T) and b = (P - P^T) -
    (Q - Q^T), the gradient is U M V^T plus what lies outside of the spans,

        M_ij = a_ij / 2 (s_j - s_i) + b_ij / 2 (s_j + s_i),   M_ii = ds_i.

    Only a sees the gaps: b, of losses in U V^T, stays well-defined where values are equal.
    """

    def rule(factors: tuple[Any, ...], gradients: tuple[Any, ...]) -> Any:
        (u, s, vh), (of_u, of_s, of_vh) = factors, gradients
        diagonal = None if of_s is None else of_s.diag_embed()
        if of_u is None and of_vh is None:
            return u @ diagonal @ vh
        if s.shape[-1] == 0:
            return u @ vh
        of_u = u.new_zeros(u.shape) if of_u is None else of_u
        of_vh = vh.new_zeros(vh.shape) if of_vh is None else of_vh
        size, scale = _norm(of_u) + _norm(of_vh), s.detach()[:, :1, None]
        turn_u, turn_v = u.mT @ of_u, vh @ of_vh.mT
        p, q = _antisymmetric(turn_u), _antisymmetric(turn_v)
        gap, total = s[:, None, :] - s[:, :, None], s[:, None, :] + s[:, :, None]
        gaps.check_values(of_s, gap, scale, size)
        middle = gaps.over(p + q, gap, scale, size) + gaps.over(p - q, total, scale, size)
        middle = middle / 2 if diagonal is None else middle / 2 + diagonal
        result = u @ middle @ vh
        if u.shape[-2] > s.shape[-1]:
            result = result + gaps.over(of_u - u @ turn_u, s[:, None, :], scale, size) @ vh
        if vh.shape[-1] > s.shape[-1]:
            result = result + u @ gaps.over(of_vh - turn_v.mT @ vh, s[:, :, None], scale, size)
        return result

    return rule


def eigh_rule(gaps: Gaps) -> Rule:
    """Return the rule of eigh: V M V^T, M_ij = (V^T dV - dV^T V)_ij / 2 (l_j - l_i), M_ii = dl_i.

    Of the matrices that are symmetric; M is, and so is the gradient.
    """

    def rule(factors: tuple[Any, ...], gradients: tuple[Any, ...]) -> Any:
        (values, vectors), (of_values, of_vectors) = factors, gradients
        middle = None if of_values is None else of_values.diag_embed()
        if of_vectors is not None and values.shape[-1] > 0:
            gap = values[:, None, :] - values[:, :, None]
            scale = values.detach().abs().amax(dim=-1)[:, None, None]
            size = _norm(of_vectors)
            gaps.check_values(of_values, gap, scale, size)
            turn = gaps.over(_antisymmetric(vectors.mT @ of_vectors), gap, scale, size) / 2
            middle = turn if middle is None else turn + middle
        return vectors if middle is None else vectors @ middle @ vectors.mT

    return rule


def qr_rule(factors: tuple[Any, ...], gradients: tuple[Any, ...]) -> Any:
    """Rule of the thin QR: (dQ + Q C) R^-T, C the symmetric matrix below R dR^T - dQ^T Q.

    A wide matrix [A1 A2] is A1 = Q R1 of the square rule, and R2 = Q^T A2, whose gradient goes to
    A2 and to Q.
    """
    torch = sys.modules["torch"]
    (q, r), (of_q, of_r) = factors, gradients
    of_q = q.new_zeros(q.shape) if of_q is None else of_q
    of_r = r.new_zeros(r.shape) if of_r is None else of_r
    k = q.shape[-1]
    left, right, of_right = r[..., :k], r[..., k:], of_r[..., k:]
    of_q = of_q + q @ right @ of_right.mT
    below = (left @ of_r[..., :k].mT - of_q.mT @ q).tril()
    symmetric = below + below.tril(-1).mT
    of_left = torch.linalg.solve_triangular(left.mT, of_q + q @ symmetric, upper=False, left=False)
    return torch.cat([of_left, q @ of_right], dim=-1)


def cholesky_rule(factors: tuple[Any, ...], gradients: tuple[Any, ...]) -> Any:
    """Rule of Cholesky: L^-T P L^-1, made symmetric; P the lower triangle of L^T dL, half diagonal.

    Of the matrices that are symmetric, as that of eigh.
    """
    solve = sys.modules["torch"].linalg.solve_triangular
    (factor,), (of_factor,) = factors, gradients
    turn = (factor.mT @ of_factor).tril()
    turn = turn - turn.diagonal(dim1=-2, dim2=-1).diag_embed() / 2
    result = solve(factor, solve(factor.mT, turn, upper=True), upper=False, left=False)
    return (result + result.mT) / 2


def solved(a: Any, b: Any, how: tuple[bool, bool, bool], make: Callable[[], Any]) -> Any:
    """Return ``make()``, the solution of triangular systems, with gradients if a or b want them.

    ``how``: lower, transposed, unit_diagonal. With A X = B, dB = A^-T dX and dA = -dB X^T, of which
    the triangle that is read counts.
    """
    return _substitution().apply(a, b, how, make) if wanted(a) or wanted(b) else make()


@functools.cache
def _substitution() -> Any:
    import torch

    class Substitution(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(_a: Any, _b: Any, _how: Any, make: Callable[[], Any]) -> Any:
            return make()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.how = inputs[2]
            ctx.save_for_backward(inputs[0], output)

        @staticmethod
        def backward(ctx: Any, of_x: Any) -> tuple[Any, Any, None, None]:
            (a, x), (lower, transposed, unit) = ctx.saved_tensors, ctx.how
            of_b = torch.linalg.solve_triangular(
                a if transposed else a.mT, of_x, upper=lower != transposed, unitriangular=unit
            )
            of_a = -x @ of_b.mT if transposed else -of_b @ x.mT
            of_a = of_a.tril(-int(unit)) if lower else of_a.triu(int(unit))
            return of_a, of_b, None, None

    return Substitution


def multiplied(x: Any, y: Any, make: Callable[[], Any]) -> Any:
    """Return ``make()``, x^T y (of x itself where y is None), with gradients if x or y want them.

    dX = Y dZ^T and dY = X dZ.
    """
    if not (wanted(x) or (y is not None and wanted(y))):
        return make()
    return _products().apply(x, x if y is None else y, make)


@functools.cache
def _products() -> Any:
    import torch

    class Products(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(_x: Any, _y: Any, make: Callable[[], Any]) -> Any:
            return make()

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Any) -> None:
            ctx.save_for_backward(inputs[0], inputs[1])

        @staticmethod
        def backward(ctx: Any, of_z: Any) -> tuple[Any, Any, None]:
            x, y = ctx.saved_tensors
            return (
                (y @ of_z.mT).sum_to_size(x.shape),
                (x @ of_z).sum_to_size(y.shape),
                None,
            )

    return Products
