"""Architectures that a penalty makes sparse: JumpReLU, gates, and the plain rectifier."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subspan import RaggedCode, sparse_decode, threshold_encode
from subspan._checks import choice, real
from subspan.sae._fields import GATED
from subspan.sae._select import gated_encode
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.modules._arithmetic import beside, row_blocks, squared_error, total
from subspan.sae.modules.base import SAE, Code
from subspan.sae.training.parallel import mean_over_ranks

__all__ = ["GatedSAE", "JumpReLUSAE", "PenalizedSAE", "ReLUSAE"]


class PenalizedSAE(SAE):
    """A reconstruction error for each row, and a penalty of its code.

    ``L = mean_rows |x - x̂|^2 + sparsity_scale sparsity penalty``
    """

    _input_norm: ClassVar[str] = "one"

    def __init__(self, width: int, n_latents: int, *, sparsity: float, **common: Any) -> None:
        super().__init__(width, n_latents, **common)
        self.sparsity = real(type(self).__name__, "sparsity", sparsity, low=0.0)
        self.sparsity_scale = 1.0  # for a schedule

    @property
    def _weight(self) -> float:
        return self.sparsity * self.sparsity_scale


class ReLUSAE(PenalizedSAE):
    """All positive latents, and a penalty of their size.

    ``L = mean_rows(|x - x̂|^2 + sparsity sum_i f_i |w_dec_i|)``, ``f = max(z, 0)``

    The penalty is that of the update of April 2024: it does not change if a row of w_dec grows and
    its column of w_enc shrinks, so norms are free.

    Parameters
    ----------
    width, n_latents : int
    sparsity : float
        Weight of the penalty, for inputs of root mean squared norm sqrt(d), which `initialize` sees
        to.
    **common
        Options of `SAE`. b_dec is not subtracted from x by default.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range.

    Notes
    -----
    Codes are dense at the start, about half of batch times n with 30 bytes each: begin with small
    batches or a larger penalty. Conerly et al., Transformer Circuits Thread, April 2024.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import ReLUSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = ReLUSAE(16, 64, sparsity=5.0).initialize(x)
    >>> sorted(sae.loss(x).terms)
    ['l1', 'reconstruction']
    """

    architecture: ClassVar[str] = "relu"
    _unit_norm: ClassVar[bool] = False
    _pre_bias: ClassVar[bool] = False
    _input_norm: ClassVar[str] = "sqrt_width"
    _start_norm: ClassVar[float] = 0.1

    def __init__(self, width: int, n_latents: int, *, sparsity: float = 5.0, **common: Any) -> None:
        super().__init__(width, n_latents, sparsity=sparsity, **common)

    def _code(self, x: Tensor) -> Code:
        return threshold_encode(x, self.w_enc, self.b_enc, threshold=0.0, b_pre=self._b_pre)

    def _terms(
        self,
        x: Tensor,
        dead: Tensor | None,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[dict[str, Tensor], Tensor, Code]:
        code = self._code(x)
        w_dec, norms = beside(self.w_dec, _Norms())
        estimate = self._decoded(code, w_dec)
        error, _ = squared_error(estimate, x)
        size = total(code.values * norms.index_select(0, code.indices))
        terms = {"reconstruction": error / len(x), "l1": size * (self._weight / len(x))}
        return terms, estimate, code


class _Norms:
    """The norms of the rows of a matrix."""

    def of(self, w: Tensor) -> Tensor:
        return torch.linalg.vector_norm(w, dim=-1)

    def add_(self, of_w: Tensor, gradient: Tensor, w: Tensor) -> None:
        norms = self.of(w)
        factors = gradient / (norms + (norms == 0))
        for block in row_blocks(w):
            of_w[block] += w[block] * factors[block, None]


class JumpReLUSAE(PenalizedSAE):
    """Latents that exceed a threshold of their own, which is learnt.

    ``L = mean_rows(|x - x̂|^2 + sparsity |f|_0)``, ``f = z H(z - threshold)``; with l0_target the
    penalty is ``sparsity (mean |f|_0 / l0_target - 1)^2``.

    A step has no gradient; that of the threshold is estimated from the entries within half a
    bandwidth of it, ``-(threshold / bandwidth) K((z - threshold) / bandwidth) dL/df`` from the
    reconstruction and ``-(1 / bandwidth) K(...)`` from the number of latents, K the indicator of
    (-1/2, 1/2). These entries are encoded too and stand in the code as zeros.

    Parameters
    ----------
    width, n_latents : int
    sparsity : float
        Weight of the penalty.
    l0_target : float, optional
        Number of latents for each row to aim at.
    bandwidth : float
        Width of the window, on the scale of the inputs: `initialize` brings them to a root mean
        squared norm of 1.
    threshold : float
        Where all thresholds start, > 0.
    threshold_space : {"log", "linear"}
        Whether the parameter is the logarithm, which keeps thresholds positive and scales their
        steps, or the threshold itself. The two learn differently.
    **common
        Options of `SAE`. b_dec is not subtracted from x by default.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range.

    Notes
    -----
    Codes are dense at the start, about half of batch times n with 30 bytes each: begin with small
    batches or higher thresholds. Rajamanoharan et al. 2024, `arXiv:2407.14435
    <https://arxiv.org/abs/2407.14435>`_, whose constants are the defaults.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import JumpReLUSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = JumpReLUSAE(16, 64, sparsity=1e-3).initialize(x)
    >>> loss = sae.loss(x)
    >>> loss.total.backward()
    >>> sae.log_threshold.grad.shape
    torch.Size([64])
    """

    architecture: ClassVar[str] = "jumprelu"
    _pre_bias: ClassVar[bool] = False

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        sparsity: float = 1e-3,
        l0_target: float | None = None,
        bandwidth: float = 0.001,
        threshold: float = 0.001,
        threshold_space: str = "log",
        **common: Any,
    ) -> None:
        super().__init__(width, n_latents, sparsity=sparsity, **common)
        name = type(self).__name__
        self.bandwidth = real(name, "bandwidth", bandwidth, low=1e-12)
        start = real(name, "threshold", threshold, low=1e-12)
        self.threshold_space = choice(name, "threshold_space", threshold_space, ("log", "linear"))
        self.l0_target = None
        if l0_target is not None:
            self.l0_target = real(name, "l0_target", l0_target, low=1e-9, high=self.n_latents)
        bars = self.w_dec.new_full((self.n_latents,), start)
        if self.threshold_space == "log":
            self.log_threshold = torch.nn.Parameter(bars.log())
        else:
            self.linear_threshold = torch.nn.Parameter(bars)

    @property
    def threshold(self) -> Tensor:
        """The thresholds (n,), with their gradient."""
        if self.threshold_space == "log":
            return self.log_threshold.exp()
        return self.linear_threshold

    def _code(self, x: Tensor) -> Code:
        bars = self.threshold.detach().clamp(min=0)
        return threshold_encode(x, self.w_enc, self.b_enc, threshold=bars, b_pre=self._b_pre)

    def _terms(
        self,
        x: Tensor,
        dead: Tensor | None,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[dict[str, Tensor], Tensor, Code]:
        bars = self.threshold
        seen = threshold_encode(
            x, self.w_enc, self.b_enc, threshold=bars.detach() - self.bandwidth / 2,
            b_pre=self._b_pre,
        )  # fmt: skip
        at = bars.index_select(0, seen.indices)
        values, active = _Jump.apply(seen.values, at, self.bandwidth)
        code = RaggedCode(values, seen.indices, seen.offsets)
        estimate = self._decoded(code, self.w_dec)
        error, _ = squared_error(estimate, x)
        l0 = mean_over_ranks(total(active) / len(x))
        penalty = l0 if self.l0_target is None else (l0 / self.l0_target - 1).square()
        terms = {"reconstruction": error / len(x), "l0": penalty * self._weight}
        return terms, estimate, code

    def _exported(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def _restore(self, autoencoder: Autoencoder) -> None:
        bars = torch.as_tensor(autoencoder.threshold, dtype=self.dtype)
        if self.threshold_space == "log":
            self.log_threshold.copy_(bars.clamp(min=torch.finfo(self.dtype).tiny).log())
        else:
            self.linear_threshold.copy_(bars.expand_as(self.linear_threshold))


class _Jump(torch.autograd.Function):  # type: ignore[misc]
    """z where it exceeds the threshold, and whether it does, as numbers."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, bars: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        active = z > bars
        ctx.bandwidth = bandwidth
        ctx.save_for_backward(z, bars)
        return z.masked_fill(~active, 0), active.to(z.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_values: Tensor, of_active: Tensor) -> tuple[Tensor, Tensor, None]:
        z, bars = ctx.saved_tensors
        near = ((z - bars).abs() < ctx.bandwidth / 2).to(z.dtype) * (-1 / ctx.bandwidth)
        of_bars = near * (bars * of_values + of_active)
        return of_values.masked_fill(z <= bars, 0), of_bars, None


class GatedSAE(PenalizedSAE):
    """Latents behind gates: whether a latent is active, and how much, are learnt apart.

    ``f = 1[u + b_gate > 0] max(u exp(r_mag) + b_mag, 0)``, ``u = (x - b_dec) @ w_enc``

    ``L = mean_rows(|x - x̂(f)|^2 + sparsity |p|_1 + |x - x̂(p)|^2)``, ``p = max(u + b_gate, 0)``,
    the decoder of the last term frozen. It and the penalty are what the gates learn from.

    Parameters
    ----------
    width, n_latents : int
    sparsity : float
        Weight of the penalty.
    **common
        Options of `SAE`.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range.

    Notes
    -----
    Codes are dense at the start, about half of batch times n with 60 bytes each: begin with small
    batches. Rajamanoharan et al. 2024, `arXiv:2404.16014 <https://arxiv.org/abs/2404.16014>`_.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import GatedSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = GatedSAE(16, 64, sparsity=0.01).initialize(x)
    >>> sorted(sae.loss(x).terms)
    ['auxiliary', 'l1', 'reconstruction']
    """

    architecture: ClassVar[str] = "gated"
    _encoder: ClassVar[tuple[str, ...]] = ("w_enc",)

    def __init__(
        self, width: int, n_latents: int, *, sparsity: float = 0.01, **common: Any
    ) -> None:
        super().__init__(width, n_latents, sparsity=sparsity, **common)
        for name in GATED:
            zeros = self.w_dec.new_zeros(self.n_latents)
            self.register_parameter(name, torch.nn.Parameter(zeros))

    def _start(self, x: Tensor) -> None:  # noqa: ARG002
        for name in GATED:
            getattr(self, name).zero_()

    def _code(self, x: Tensor) -> Code:
        return gated_encode(x, self.w_enc, self._b_pre, **self._exported())

    def _terms(
        self,
        x: Tensor,
        dead: Tensor | None,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[dict[str, Tensor], Tensor, Code]:
        shared = threshold_encode(
            x, self.w_enc, threshold=-self.b_gate.detach(), b_pre=self._b_pre
        )  # fmt: skip
        at = shared.indices
        gates = (shared.values + self.b_gate.index_select(0, at)).relu()
        sizes = self.r_mag.exp().index_select(0, at)
        magnitudes = (shared.values * sizes + self.b_mag.index_select(0, at)).relu()
        code = RaggedCode(magnitudes, at, shared.offsets)
        estimate = self._decoded(code, self.w_dec)
        of_gates = sparse_decode(
            gates, at, self.w_dec.detach(), self.b_dec.detach(), offsets=shared.offsets
        )
        terms = {
            "reconstruction": squared_error(estimate, x)[0] / len(x),
            "l1": total(gates) * (self._weight / len(x)),
            "auxiliary": squared_error(of_gates, x)[0] / len(x),
        }
        return terms, estimate, code

    def _exported(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in GATED}

    def _restore(self, autoencoder: Autoencoder) -> None:
        for name in GATED:
            getattr(self, name).copy_(getattr(autoencoder, name))
