"""BatchTopK with more asked of the dictionary: nested prefixes, or directions kept apart."""

from __future__ import annotations

from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subspan import RaggedCode, sparse_decode
from subspan._checks import integer, real
from subspan.errors import InvalidArgumentError
from subspan.sae.modules._arithmetic import beside, column_sums, total
from subspan.sae.modules._crowding import Crowding
from subspan.sae.modules.base import Code
from subspan.sae.modules.selection import BatchTopKSAE

__all__ = ["MatryoshkaSAE", "OrthogonalSAE"]


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK whose first latents must do without the later ones, group by group.

    ``L = s / (G + 1) (mean((b_dec - x)^2) + sum_g mean((x̂_g - x)^2)) + aux_coefficient AuxK``

    x̂_g is made of the latents of the first g groups, from one selection; s, AuxK and the threshold
    are those of `BatchTopKSAE`, AuxK of the whole reconstruction.

    Parameters
    ----------
    width, n_latents : int
    k : int or float
        Average number of latents for each row.
    group_sizes : sequence of int, optional
        Latents of each group, with the sum n; by default the shares 1/16, 1/16, 1/8, 1/4, 1/2.
    bias_term : bool
        Whether the error of b_dec alone counts; without it the sum is divided by G.
    **options
        As of `BatchTopKSAE`.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range, or the sizes have another sum.

    Notes
    -----
    Codes ascend in each row, so groups are pieces of it: decoding costs what it does without
    groups, errors G d for each row. Memory: 3 G rows d. Bussmann et al. 2025, `arXiv:2503.17547
    <https://arxiv.org/abs/2503.17547>`_.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import MatryoshkaSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = MatryoshkaSAE(16, 64, k=4, group_sizes=(16, 48)).initialize(x)
    >>> sae.group_sizes, sorted(sae.loss(x).terms)
    ((16, 48), ['reconstruction'])
    """

    architecture: ClassVar[str] = "matryoshka"

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        k: float,
        group_sizes: tuple[int, ...] | None = None,
        bias_term: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(width, n_latents, k=k, **options)
        n, name = self.n_latents, type(self).__name__
        if group_sizes is None:
            ends = [n * share // 16 for share in (1, 2, 4, 8, 16)]
            group_sizes = tuple(b - a for a, b in zip([0, *ends], ends, strict=False) if b > a)
        self.group_sizes = tuple(integer(name, "group_sizes", s, low=1) for s in group_sizes)
        if sum(self.group_sizes) != n:
            raise InvalidArgumentError(
                f"[{name}] group_sizes must have the sum n_latents = {n}, got {self.group_sizes} "
                f"with {sum(self.group_sizes)}"
            )
        self.bias_term = bool(bias_term)

    def _errors(
        self,
        x: Tensor,
        code: Any,
        w_dec: Tensor,
        step: int,  # noqa: ARG002
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        offsets = _pieces(code, self.group_sizes)
        parts = sparse_decode(code.values, code.indices, w_dec, offsets=offsets)
        groups = len(self.group_sizes)
        parts = parts.reshape(len(x), groups, self.width)
        error, rest = _PrefixErrors.apply(parts, self.b_dec, x, self.bias_term)
        weight = float(self.loss_scale) / (x.numel() * (groups + self.bias_term))
        return {"reconstruction": error * weight}, x - rest, rest

    def _exported(self) -> dict[str, Any]:
        return super()._exported() | {"group_sizes": self.group_sizes}


def _pieces(code: RaggedCode, sizes: tuple[int, ...]) -> Tensor:
    """Return offsets (rows * groups + 1,) of the pieces of a code whose rows ascend."""
    ends = torch.tensor(list(accumulate(sizes)))
    groups, rows = len(sizes), len(code.offsets) - 1
    group = torch.searchsorted(ends, code.indices, right=True)
    row = torch.arange(rows).repeat_interleave(code.offsets.diff())
    counts = torch.bincount(row * groups + group, minlength=rows * groups)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


class _PrefixErrors(torch.autograd.Function):  # type: ignore[misc]
    """Sum of squares of what b_dec and the first parts leave of x, over all numbers of parts."""

    @staticmethod
    def forward(
        ctx: Any, parts: Tensor, b_dec: Tensor, x: Tensor, bias_term: bool
    ) -> tuple[Tensor, Tensor]:
        rests = [x - b_dec]
        for part in parts.unbind(1):
            rests.append(rests[-1] - part)
        ctx.bias_term = bias_term
        ctx.set_materialize_grads(False)  # no zeros for the last rest, which has none
        ctx.save_for_backward(*rests)
        ctx.mark_non_differentiable(rests[-1])
        counted = rests if bias_term else rests[1:]
        return torch.stack([total(rest * rest) for rest in counted]).sum(), rests[-1]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_error: Tensor | None, _: Any) -> tuple[Any, ...]:
        if of_error is None:
            return None, None, None, None
        first, *rests = ctx.saved_tensors
        of_parts = first.new_empty((len(first), len(rests), first.shape[1]))
        below = torch.zeros_like(first)  # the gradient of a part: all rests that it is taken from
        for group in reversed(range(len(rests))):
            below += rests[group]
            torch.mul(below, of_error * -2, out=of_parts[:, group])
        if ctx.bias_term:
            below += first
        return of_parts, column_sums(below) * (of_error * -2), None, None


class OrthogonalSAE(BatchTopKSAE):
    """BatchTopK with a penalty for directions that are alike.

    ``L = L_BatchTopK + orthogonality mean_i (max_j cos(w_dec_i, w_dec_j))^2``

    j runs over the other latents of the random part of at most chunk_size latents that i is in, new
    for every step, so a step costs less than all pairs.

    Parameters
    ----------
    width, n_latents : int
    k : int or float
        Average number of latents for each row.
    orthogonality : float
        Weight of the penalty.
    every : int
        Steps from one with the penalty to the next, where it counts so many times.
    chunk_size : int
        Most latents of a part, at least 2.
    **options
        As of `BatchTopKSAE`.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range.

    Notes
    -----
    2 chunk_size n d flops, as many as encoding chunk_size rows; no cosines but the largest of each
    row are stored. The gradient touches a row and its nearest. It exports as "batch_topk".
    Korznikov et al. 2025, `arXiv:2509.22033 <https://arxiv.org/abs/2509.22033>`_.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import OrthogonalSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = OrthogonalSAE(16, 64, k=4).initialize(x)
    >>> sorted(sae.loss(x, step=0).terms), sorted(sae.loss(x, step=1).terms)
    (['orthogonality', 'reconstruction'], ['reconstruction'])
    """

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        k: float,
        orthogonality: float = 0.25,
        every: int = 5,
        chunk_size: int = 8192,
        **options: Any,
    ) -> None:
        super().__init__(width, n_latents, k=k, **options)
        name = type(self).__name__
        self.orthogonality = real(name, "orthogonality", orthogonality, low=0.0)
        self.every = integer(name, "every", every, low=1)
        self.chunk_size = integer(name, "chunk_size", chunk_size, low=2)

    def _errors(
        self, x: Tensor, code: Code, w_dec: Tensor, step: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        if step % self.every or self.orthogonality == 0 or self.n_latents < 2:
            return super()._errors(x, code, w_dec, step)
        seed = self.seed * 1_000_003 + step
        crowding = Crowding(self.n_latents, self.chunk_size, seed, self.precision)
        w_dec, penalty = beside(w_dec, crowding)
        terms, estimate, rest = super()._errors(x, code, w_dec, step)
        return (
            terms | {"orthogonality": penalty * (self.orthogonality * self.every)},
            estimate,
            rest,
        )
