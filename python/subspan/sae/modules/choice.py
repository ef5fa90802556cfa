"""Mutual Choice and Feature Choice: budgets of pairs of a batch, and how often latents are used."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subspan import RaggedCode, threshold_encode, topk_encode
from subspan._checks import choice, real
from subspan.errors import InvalidArgumentError
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.modules._arithmetic import add_bias
from subspan.sae.modules.base import Code
from subspan.sae.modules.selection import BatchTopKSAE, SelectionSAE
from subspan.sae.training.parallel import over_ranks, rank_count

__all__ = ["FeatureChoiceSAE", "MutualChoiceSAE", "Zipf", "fit_zipf"]


class Zipf(NamedTuple):
    """A law of densities by rank: ``scale rank^-exponent``, the rank from 1."""

    exponent: float
    scale: float


def fit_zipf(density: Any) -> Zipf:
    """Fit Zipf's law to densities.

    ``log density = log scale - exponent log rank``, by least squares with weights 1 / rank, so that
    every octave of ranks counts alike; zeros do not count.

    Parameters
    ----------
    density : array (n,)
        How often each latent is active, in any order.

    Returns
    -------
    Zipf (exponent, scale)

    Raises
    ------
    InvalidArgumentError
        Fewer than two densities are positive.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae import fit_zipf
    >>> law = fit_zipf(0.2 * np.arange(1.0, 101.0) ** -0.8)
    >>> round(law.exponent, 6), round(law.scale, 6)
    (0.8, 0.2)
    """
    alive: NDArray[np.float64] = np.asarray(density, dtype=np.float64)
    alive = np.sort(alive[alive > 0])[::-1]
    if len(alive) < 2:
        raise InvalidArgumentError(
            f"[fit_zipf] density must have two positive entries or more, got {len(alive)}"
        )
    ranks = np.arange(1.0, len(alive) + 1)
    weights = 1 / ranks / (1 / ranks).sum()
    x, y = np.log(ranks), np.log(alive)
    x_mean, y_mean = (weights * x).sum(), (weights * y).sum()
    slope = (weights * (x - x_mean) * (y - y_mean)).sum() / (weights * (x - x_mean) ** 2).sum()
    return Zipf(-float(slope), float(np.exp(y_mean - slope * x_mean)))


class MutualChoiceSAE(BatchTopKSAE):
    """The largest pairs of row and latent of a batch; latents that are used too little are revived.

    ``L = s mean((x̂ - x)^2) + aux_coefficient AuxK``

    The selection is that of `BatchTopKSAE`, bit for bit. AuxK, here aux_zipf, is that of
    `SelectionSAE`, made of the dead latents and of those whose density, a running mean, is below
    zipf_slack times what Zipf's law, fitted to all, says for their rank.

    Parameters
    ----------
    width, n_latents : int
    k : int or float
        Average number of latents for each row.
    zipf_slack : float
        0: dead latents alone.
    **options
        As of `BatchTopKSAE`; threshold_rate is the rate of the densities, too.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range.

    Notes
    -----
    As `BatchTopKSAE`. Ayonrinde 2024, `arXiv:2411.02124 <https://arxiv.org/abs/2411.02124>`_; how
    the law is fitted, and the slack, are choices made here.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import MutualChoiceSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = MutualChoiceSAE(16, 64, k=4).initialize(x)
    >>> sae.update_threshold_(sae.loss(x).code)
    >>> sae.density[3] /= 100
    >>> sae.underused().nonzero().tolist(), sorted(sae.loss(x).terms)
    ([[3]], ['auxk', 'reconstruction'])
    """

    architecture: ClassVar[str] = "mutual_choice"
    spares_active = None  # who is used too little may be active now and then

    def __init__(
        self, width: int, n_latents: int, *, k: float, zipf_slack: float = 0.5, **options: Any
    ) -> None:
        super().__init__(width, n_latents, k=k, **options)
        self.zipf_slack = real(type(self).__name__, "zipf_slack", zipf_slack, low=0.0)
        self.register_buffer("density", torch.zeros(self.n_latents, dtype=torch.float64))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update_threshold_(self, code: Any) -> None:
        """Take the threshold and the densities of a training batch into their running means.

        Parameters
        ----------
        code : RaggedCode
            Of a batch in training mode.
        """
        before = int(self.threshold_batches)
        super().update_threshold_(code)
        if int(self.threshold_batches) == before:
            return
        rate = max(self.threshold_rate, 1.0 / (before + 1))
        counts = torch.bincount(code.indices[code.values > 0], minlength=self.n_latents)
        rows = (len(code.offsets) - 1) * rank_count()
        self.density += (over_ranks(counts.double()) / rows - self.density) * rate

    def underused(self) -> Tensor:
        """Return which latents are active less often than Zipf's law says for their rank.

        Returns
        -------
        bool tensor (n,)
            None of them before two latents were active.
        """
        none = torch.zeros(self.n_latents, dtype=torch.bool)
        if self.zipf_slack == 0 or int((self.density > 0).sum()) < 2:
            return none
        law = fit_zipf(self.density.numpy())
        order = torch.argsort(self.density, descending=True, stable=True)
        ranks = np.arange(1.0, self.n_latents + 1)
        bars = torch.from_numpy(self.zipf_slack * law.scale * ranks**-law.exponent)
        none[order] = self.density[order] < bars
        return none

    def _revived(self, dead: Tensor | None) -> Tensor | None:
        found = self.underused()
        return super()._revived(found if dead is None else found | dead)


class FeatureChoiceSAE(SelectionSAE):
    """For each latent its best rows of a batch, so that every latent is used.

    ``L = s mean((x̂ - x)^2)``; latent i takes the m_i rows with the largest z, sum m_i <= k rows.

    Values are z as it is, not rectified. After ``eval()`` a latent is active where z exceeds its
    threshold, the running mean of the smallest value it took in training.

    Parameters
    ----------
    width, n_latents : int
    k : int or float
        Average number of latents for each row.
    profile : {"uniform", "zipf"}
        m_i alike for all latents, or falling as ``(i + 1)^-zipf_exponent`` with at least 1.
    zipf_exponent : float
    threshold_rate : float
        Weight of a batch in the running mean, in (0, 1]; early means weigh all batches alike.
    **options
        As of `SelectionSAE`. There is no auxiliary loss by default, as no latent is dead.

    Raises
    ------
    InvalidArgumentError
        An option is out of its range; or, from the loss, the batch has fewer than n / k rows.

    Notes
    -----
    Costs as `TopKSAE`, with latents and rows in each other's place. Ayonrinde 2024,
    `arXiv:2411.02124 <https://arxiv.org/abs/2411.02124>`_; that ranks are the order of the latents,
    which are alike before training, is a choice made here.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import FeatureChoiceSAE
    >>> x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    >>> sae = FeatureChoiceSAE(16, 64, k=4).initialize(x)
    >>> sae.loss(x).code.indices.bincount().unique()
    tensor([16])
    """

    architecture: ClassVar[str] = "feature_choice"

    def __init__(
        self,
        width: int,
        n_latents: int,
        *,
        k: float,
        profile: str = "uniform",
        zipf_exponent: float = 1.0,
        threshold_rate: float = 0.01,
        aux_coefficient: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(width, n_latents, k=k, aux_coefficient=aux_coefficient, **options)
        name = type(self).__name__
        self.profile = choice(name, "profile", profile, ("uniform", "zipf"))
        self.zipf_exponent = real(name, "zipf_exponent", zipf_exponent, low=0.0, high=8.0)
        self.threshold_rate = real(name, "threshold_rate", threshold_rate, low=1e-9, high=1.0)
        self.register_buffer("threshold", torch.zeros(self.n_latents, dtype=self.dtype))
        self.register_buffer("threshold_batches", torch.zeros((), dtype=torch.int64))

    def _checked_k(self, function: str, k: Any) -> Any:
        return real(function, "k", k, low=1e-9, high=self.n_latents)

    def budgets(self, rows: int) -> NDArray[np.int64]:
        """Return how many rows of a batch each latent takes.

        Parameters
        ----------
        rows : int

        Returns
        -------
        ndarray of int64 (n,)
            1..rows, descending.

        Raises
        ------
        InvalidArgumentError
            k rows are fewer than n.
        """
        n, pairs = self.n_latents, int(self.k * rows)
        if pairs < n:
            raise InvalidArgumentError(
                f"[FeatureChoiceSAE] x must have n / k = {-(-n // self.k):.0f} rows or more, so "
                f"that every latent can take one, got {rows}. Take larger batches or k"
            )
        if self.profile == "uniform":
            return np.full(n, pairs // n)
        shape = np.arange(1.0, n + 1) ** -self.zipf_exponent

        def counts(factor: float) -> NDArray[np.int64]:
            return np.clip((factor * shape).astype(np.int64), 1, rows)

        low, high = 0.0, rows / shape[-1]
        for _ in range(64):
            middle = (low + high) / 2
            low, high = (middle, high) if counts(middle).sum() <= pairs else (low, middle)
        return counts(low)

    def _select(self, x: Tensor, w_enc: Tensor) -> RaggedCode:
        budgets = self.budgets(len(x))
        centred = add_bias(x, -self.b_dec) if self.pre_bias else x
        # Latents of one power of two are selected together: the budgets descend.
        octaves = np.frexp(budgets.astype(np.float64))[1]
        sizes = np.unique(-octaves, return_counts=True)[1].tolist()
        values, tokens, start = [], [], 0
        for part, size in zip(w_enc.t().split(sizes), sizes, strict=True):
            here = budgets[start : start + size]
            best = topk_encode(
                part, centred.t(), k=int(here[0]), activation="identity", precision=self.precision
            )
            kept = torch.arange(int(here[0])) < torch.from_numpy(here)[:, None]
            values.append(best.values[kept])
            tokens.append(best.indices[kept])
            start += size
        latents = torch.arange(self.n_latents).repeat_interleave(torch.from_numpy(budgets))
        token = torch.cat(tokens)
        order = torch.argsort(token, stable=True)  # latents ascend in every row
        counts = torch.bincount(token, minlength=len(x)).cumsum(0)
        offsets = torch.cat([counts.new_zeros(1), counts])
        found = torch.cat(values) + self.b_enc.index_select(0, latents)
        return RaggedCode(found[order], latents[order], offsets)

    def _code(self, x: Tensor) -> Code:
        if self.training or self.threshold_batches == 0:
            return self._select(x, self.w_enc)
        return threshold_encode(
            x, self.w_enc, self.b_enc, threshold=self.threshold, b_pre=self._b_pre
        )

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def update_threshold_(self, code: Any) -> None:
        """Take the smallest value of every latent into the running means for inference.

        Parameters
        ----------
        code : RaggedCode
            Of a batch in training mode.
        """
        least = torch.full_like(self.threshold, torch.inf)
        least = least.scatter_reduce(0, code.indices, code.values, "amin")
        self.threshold_batches += 1
        rate = max(self.threshold_rate, 1.0 / int(self.threshold_batches))
        seen = torch.isfinite(least)
        self.threshold[seen] += (least[seen] - self.threshold[seen]) * rate

    def _exported(self) -> dict[str, Any]:
        if self.threshold_batches == 0:
            raise InvalidArgumentError(
                "[FeatureChoiceSAE.export] thresholds must be known, got none. Call "
                "update_threshold_ with codes of training batches first"
            )
        return {"k": self.k, "threshold": self.threshold}

    def _restore(self, autoencoder: Autoencoder) -> None:
        self.threshold.copy_(torch.as_tensor(autoencoder.threshold, dtype=self.dtype))
        self.threshold_batches.fill_(int(1 / self.threshold_rate))
