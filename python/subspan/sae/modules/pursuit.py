"""Matching pursuit: the encoder is the decoder, used once for every latent of the code."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subspan import SparseCode, topk_encode
from subspan._checks import integer
from subspan.sae.modules._arithmetic import add_bias, inverse_variance, squared_error
from subspan.sae.modules.base import SAE, Code

__all__ = ["MatchingPursuitSAE"]


class MatchingPursuitSAE(SAE):
    """Latents found one after the other, each the best for what the ones before it left.

    ``r_0 = x - b_dec``; k times ``j = argmax r · w_dec_j``, ``c = r · w_dec_j``, ``r -= c w_dec_j``

    ``L = s mean(r_k^2)``; s the inverse of the variance of a sample. Where no product is positive
    the pursuit ends. Gradients go through the coefficients c, not through the choices. Rows of
    w_dec must have norm 1 in every step: call `normalize_decoder_` after the optimiser's.

    Parameters
    ----------
    width, n_latents : int
    k : int
        Number of steps; may be changed for inference.
    **common
        Options of `SAE`.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range.

    Notes
    -----
    2 k d n flops for each row: k times a TopK encoder. The backward pass goes through the steps in
    reverse, with memory for one, and makes one gradient of the dictionary. w_enc is not used, and
    has no gradient. Costa et al. 2025, `arXiv:2506.03093 <https://arxiv.org/abs/2506.03093>`_.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import MatchingPursuitSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = MatchingPursuitSAE(16, 64, k=4).initialize(x)
    >>> sae.encode(x).values.shape
    torch.Size([256, 4])
    """

    architecture: ClassVar[str] = "matching_pursuit"
    _encoder: ClassVar[tuple[str, ...]] = ()

    def __init__(self, width: int, n_latents: int, *, k: int, **common: Any) -> None:
        super().__init__(width, n_latents, **common)
        self.k = integer(type(self).__name__, "k", k, low=1)
        self.register_buffer("loss_scale", torch.ones((), dtype=torch.float64))

    def extra_repr(self) -> str:
        """Return what torch shows of this module."""
        return f"{super().extra_repr()}, k={self.k}"

    def _start(self, x: Tensor) -> None:
        self.loss_scale.fill_(inverse_variance(x))

    def _pursued(self, x: Tensor) -> tuple[Tensor, SparseCode]:
        """Return what the pursuit leaves of x (..., d), and its code."""
        rows = x.reshape(-1, self.width)
        if self.pre_bias:
            rows = add_bias(rows, -self.b_dec)
        rest, values, indices = _Pursuit.apply(rows, self.w_dec, self.k, self.precision)
        shape = (*x.shape[:-1], self.k)
        return rest, SparseCode(values.reshape(shape), indices.reshape(shape))

    def _code(self, x: Tensor) -> Code:
        return self._pursued(x)[1]

    def _terms(
        self,
        x: Tensor,
        dead: Tensor | None,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[dict[str, Tensor], Tensor, Code]:
        rest, code = self._pursued(x)
        estimate = x - rest
        error, _ = squared_error(rest, torch.zeros_like(rest))
        terms = {"reconstruction": error * (float(self.loss_scale) / x.numel())}
        return terms, estimate, code

    def _exported(self) -> dict[str, Any]:
        return {"k": self.k}


class _Pursuit(torch.autograd.Function):  # type: ignore[misc]
    """What k steps leave of x (rows, d), their coefficients and choices (rows, k)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w_dec: Tensor, k: int, precision: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        rest = x.detach().clone()
        encoder = w_dec.detach().t()
        values, indices = x.new_empty((len(x), k)), torch.empty((len(x), k), dtype=torch.int64)
        for step in range(k):
            best = topk_encode(rest, encoder, k=1, precision=precision)
            values[:, step], indices[:, step] = best.values[:, 0], best.indices[:, 0]
            rest -= best.values * w_dec.detach().index_select(0, indices[:, step])
        ctx.save_for_backward(rest, w_dec, values, indices)
        ctx.mark_non_differentiable(indices)
        return rest, values, indices

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, of_rest: Tensor, of_values: Tensor, _: Any
    ) -> tuple[Tensor, Tensor, None, None]:
        """Undo the steps from the last: with r' = r - c w and c = r w, r and its gradient."""
        rest, w_dec, values, indices = ctx.saved_tensors
        rest, of_rest = rest.clone(), of_rest.clone()
        of_dictionary = torch.zeros_like(w_dec)
        for step in reversed(range(values.shape[1])):
            c, rows = values[:, step : step + 1], w_dec.index_select(0, indices[:, step])
            of_c = of_values[:, step : step + 1] - (of_rest * rows).sum(-1, keepdim=True)
            of_c = of_c.masked_fill(c <= 0, 0)  # where the pursuit has ended
            rest += c * rows
            of_dictionary.index_add_(0, indices[:, step], of_c * rest - c * of_rest)
            of_rest += of_c * rows
        return of_rest, of_dictionary, None, None
