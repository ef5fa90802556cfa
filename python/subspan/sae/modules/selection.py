"""Architectures that choose a number of latents: TopK for each row, BatchTopK from the batch."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from subspan import threshold_encode, topk_encode
from subspan._checks import integer, real
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.modules._arithmetic import inverse_variance, squared_error
from subspan.sae.modules._auxiliary import Dictionary, dead_error
from subspan.sae.modules.base import SAE, Code
from subspan.sae.training.parallel import any_over_ranks, batch_topk_encode, least_positive

__all__ = ["BatchTopKSAE", "SelectionSAE", "TopKSAE"]


class SelectionSAE(SAE):
    """A number k of latents, the error of what they reconstruct, and the error of dead ones.

    ``L = s mean((x̂ - x)^2) + aux_coefficient AuxK``, s the inverse of the variance of a sample.

    AuxK is the normalised error ``|e - ê|^2 / |e - mean(e)|^2`` of what the k_aux largest dead
    latents make of ``e = x - x̂``, with e as it is: live latents learn nothing from it, and neither
    e nor ê has b_dec in it. Where e does not vary it is zero.

    Attributes
    ----------
    spares_active : bool
        Whether those of the dead that are active in the batch at hand count as live, which only
        the loss can know in time. A `Trainer` sets it.
    """

    spares_active: bool | None = False

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        k: float,
        aux_coefficient: float = 1 / 32,
        k_aux: int | None = None,
        **common: Any,
    ) -> None:
        super().__init__(width, n_latents, **common)
        name = type(self).__name__
        self.k = self._checked_k(name, k)
        self.aux_coefficient = real(name, "aux_coefficient", aux_coefficient, low=0.0)
        half = 1 << max(0, (self.width // 2).bit_length() - 1)
        wanted = min(half, self.n_latents) if k_aux is None else k_aux
        self.k_aux = integer(name, "k_aux", wanted, low=1, high=self.n_latents)
        self.register_buffer("loss_scale", torch.ones((), dtype=torch.float64))

    def extra_repr(self) -> str:
        """Return what torch shows of this module."""
        return f"{super().extra_repr()}, k={self.k}"

    def _checked_k(self, function: str, k: Any) -> Any:
        return integer(function, "k", k, low=1, high=self.n_latents)

    def _start(self, x: Tensor) -> None:
        self.loss_scale.fill_(inverse_variance(x))

    @abstractmethod
    def _select(self, x: Tensor, w_enc: Tensor) -> Code:
        """Return the code of prepared rows by the rule of training."""

    def _code(self, x: Tensor) -> Code:
        return self._select(x, self.w_enc)

    def _revived(self, dead: Tensor | None) -> Tensor | None:
        """Return the indices of the latents of the auxiliary loss, None without one."""
        if dead is None or self.aux_coefficient == 0:
            return None
        found = dead.nonzero()[:, 0]
        return found if len(found) > 0 else None

    def _terms(
        self, x: Tensor, dead: Tensor | None, step: int
    ) -> tuple[dict[str, Tensor], Tensor, Code]:
        chosen = self._revived(dead)
        parts = Dictionary.of(self, chosen)
        code = self._select(x, parts.w_enc)
        terms, estimate, rest = self._errors(x, code, parts.w_dec, step)
        if chosen is not None and self.spares_active:
            parts = parts.without(any_over_ranks(self.fired(code))[chosen])
        if parts.dead is not None:
            error = dead_error(x, rest, parts.dead, self.k_aux, self._b_pre)
            terms["auxk"] = error * self.aux_coefficient
        return terms, estimate, code

    def _errors(
        self,
        x: Tensor,
        code: Code,
        w_dec: Tensor,
        step: int,  # noqa: ARG002
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the terms of the reconstruction, x̂ and x - x̂."""
        estimate = self._decoded(code, w_dec)
        error, rest = squared_error(estimate, x)
        return {"reconstruction": error * (float(self.loss_scale) / x.numel())}, estimate, rest


class TopKSAE(SelectionSAE):
    """The k largest latents of every row, rectified.

    ``L = s mean((x̂ - x)^2) + aux_coefficient AuxK`` as in `SelectionSAE`

    Parameters
    ----------
    width, n_latents : int
    k : int
        Latents for each row, 1..n.
    aux_coefficient : float
        Weight of the loss that revives dead latents.
    k_aux : int, optional
        Dead latents for each row of it; by default the power of two at or below d / 2. If fewer are
        dead, all of them.
    **common
        Options of `SAE`.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range.

    Notes
    -----
    A step costs 2 d n flops for each row and, in gradients, two passes over n d; AuxK 2 d flops for
    each row and dead latent and no further pass. Gao et al. 2024, `arXiv:2406.04093
    <https://arxiv.org/abs/2406.04093>`_, whose constants are the defaults.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import TopKSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = TopKSAE(16, 64, k=4).initialize(x)
    >>> loss = sae.loss(x)
    >>> loss.total.backward()
    >>> loss.code.values.shape, sorted(loss.terms)
    (torch.Size([256, 4]), ['reconstruction'])
    """

    architecture: ClassVar[str] = "topk"

    def _select(self, x: Tensor, w_enc: Tensor) -> Code:
        return topk_encode(
            x, w_enc, self.b_enc, k=self.k, b_pre=self._b_pre, precision=self.precision
        )

    def _exported(self) -> dict[str, Any]:
        return {"k": self.k}


class BatchTopKSAE(SelectionSAE):
    """The largest latents of a batch, k for each row on average; for inference a threshold.

    ``L = s mean((x̂ - x)^2) + aux_coefficient AuxK`` as in `SelectionSAE`

    After ``eval()`` a latent is active where it exceeds ``threshold``, the mean over batches of the
    smallest value that training selected; before the first `update_threshold_`, the batch decides.

    Parameters
    ----------
    width, n_latents : int
    k : int or float
        Average number of latents for each row, 0 < k <= n.
    aux_coefficient, k_aux
        As in `TopKSAE`.
    threshold_rate : float
        Weight of a batch in the running mean, in (0, 1]; early means weigh all batches alike.
    **common
        Options of `SAE`.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range.

    Notes
    -----
    Costs as `TopKSAE`. Bussmann et al. 2024, `arXiv:2412.06410 <https://arxiv.org/abs/2412.06410>`_,
    whose auxiliary loss is the mean of squares where this is the normalised error, which does not
    depend on the scale of the data.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import BatchTopKSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = BatchTopKSAE(16, 64, k=4).initialize(x)
    >>> code = sae.loss(x).code
    >>> len(code.values)
    1024
    >>> sae.update_threshold_(code)
    >>> len(sae.eval().encode(x).values)
    1023
    """

    architecture: ClassVar[str] = "batch_topk"

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        k: float,
        threshold_rate: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(width, n_latents, k=k, **options)
        name = type(self).__name__
        self.threshold_rate = real(name, "threshold_rate", threshold_rate, low=1e-9, high=1.0)
        self.register_buffer("threshold", torch.zeros((), dtype=torch.float64))
        self.register_buffer("threshold_batches", torch.zeros((), dtype=torch.int64))

    def _checked_k(self, function: str, k: Any) -> Any:
        if isinstance(k, int):
            return integer(function, "k", k, low=1, high=self.n_latents)
        return real(function, "k", k, low=1e-9, high=self.n_latents)

    def _select(self, x: Tensor, w_enc: Tensor) -> Code:
        return batch_topk_encode(x, w_enc, self.b_enc, k=self.k, b_pre=self._b_pre)

    def _code(self, x: Tensor) -> Code:
        if self.training or self.threshold_batches == 0:
            return self._select(x, self.w_enc)
        return threshold_encode(
            x, self.w_enc, self.b_enc, threshold=float(self.threshold), b_pre=self._b_pre
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update_threshold_(self, code: Any) -> None:
        """Take the smallest positive value of a training batch into the mean for inference.

        Parameters
        ----------
        code : RaggedCode
            Of a batch in training mode.
        """
        least = least_positive(code.values)
        if math.isinf(least):
            return
        self.threshold_batches += 1
        rate = max(self.threshold_rate, 1.0 / int(self.threshold_batches))
        self.threshold += (least - self.threshold) * rate

    def _exported(self) -> dict[str, Any]:
        known = self.threshold_batches > 0
        return {"k": self.k, "threshold": float(self.threshold) if known else None}

    def _restore(self, autoencoder: Autoencoder) -> None:
        if autoencoder.threshold is not None:
            self.threshold.fill_(float(autoencoder.threshold))
            self.threshold_batches.fill_(int(1 / self.threshold_rate))
