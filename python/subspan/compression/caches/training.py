"""Orthogonal bases of a cache, trained so that predictions stay (MatryoshkaKV)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, isfinite, pi
from typing import Any, NamedTuple

import numpy as np

from subspan import _checks
from subspan.activations import Model, TokenBatch
from subspan.compression.caches.basis import orthogonal_basis
from subspan.compression.caches.moments import CacheMoments, check_attention
from subspan.compression.caches.plan import CachePlan, full_plan, plan_cache, shaped
from subspan.compression.layers import evaluating, frozen, inputs_of
from subspan.errors import InvalidArgumentError

__all__ = ["TrainedCache", "train_cache"]


class TrainedCache(NamedTuple):
    """What `train_cache` returns."""

    plan: CachePlan
    """With all dimensions."""
    losses: list[float]
    """Of every step, each at ranks of its own."""


def train_cache(
    model: Model,
    batches: Sequence[TokenBatch],
    found: CacheMoments,
    *,
    steps: int = 200,
    rate: float = 1e-3,
    levels: int = 8,
    distill: float = 0.25,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> TrainedCache:
    r"""Turn the principal components of every head so that the model predicts as it did.

    .. math:: \min_U\; \lambda\, \mathrm{KL}(p \,\|\, p_U) + (1 - \lambda)\, \mathrm{CE}(p_U),
              \qquad x' = U_r U_r^T x

    The ranks r of every head of keys and of values are drawn anew in each step, so that the leading
    columns of U are good at every number of them. U is a Cayley transform of a skew matrix times
    the principal components, and stays orthogonal. Weights of the model are not changed.

    Parameters
    ----------
    model : Model
        As for `calibrate_cache`; left as it was found.
    batches : TokenStream or sequence of TokenBatch
        Training tokens; read in a random order, again and again.
    found : CacheMoments
        Of the model, for the start.
    steps : int
        Batches read.
    rate : float > 0
        Of Adam; it rises over the first tenth of the steps (at most 100) and falls along a cosine.
    levels : int
        Ranks are drawn from so many equal steps up to d.
    distill : float in [0, 1]
        :math:`\lambda`; the rest is the cross-entropy of the text itself.
    seed : int
        Of the ranks and of the order.
    progress : callable, optional
        Called as ``progress(done, total)`` in steps.

    Returns
    -------
    TrainedCache
        A plan of the method "trained", with all dimensions: at that rank it is exact, whatever U.

    Raises
    ------
    InvalidArgumentError
        No window of two tokens, moments of another model, a loss that is not finite.
    UnsupportedError
        As `calibrate_cache`.

    Notes
    -----
    Each step is two passes forward, of the model as it is and of the projected one, and one back.

    References
    ----------
    B. Lin et al.: MatryoshkaKV, `arXiv:2410.14731 <https://arxiv.org/abs/2410.14731>`_; the weights
    0.25 and 0.75, eighths of d, rate 1e-3 and 100 steps of rising are those of its public code,
    which also subtracts a mean; bases here are about zero.
    """
    function = "train_cache"
    for name, value in (("steps", steps), ("levels", levels)):
        _checks.integer(function, name, value, low=1)
    _checks.integer(function, "seed", seed, low=0)
    rate = _checks.real(function, "rate", rate, low=0.0)
    distill = _checks.real(function, "distill", distill, low=0.0, high=1.0)
    check_attention(function, model)
    if found.shape[0] != model.n_layers:
        raise InvalidArgumentError(
            f"[{function}] found must be of this model of {model.n_layers} layers, got moments of "
            f"{found.shape[0]}"
        )
    useful = [batch for batch in batches if max(batch.lengths.tolist(), default=0) > 1]
    if not useful:
        raise InvalidArgumentError(
            f"[{function}] batches must have windows of two tokens or more, got none"
        )
    import torch

    from subspan.compression.caches.compressed import ProjectingCache

    rng = np.random.default_rng(seed)
    start = plan_cache(found, "pca")
    sides = [_Side(basis, model) for basis in (start.keys, start.values)]
    adam = torch.optim.Adam([side.free for side in sides], lr=rate)
    rise = min(100, -(-steps // 10))
    losses = []
    order: list[int] = []
    with evaluating(model.hf), frozen(model.hf):
        for step in range(steps):
            order = order or rng.permutation(len(useful)).tolist()
            inputs, mask = inputs_of(model, useful[order.pop()])
            fall = 0.5 * (1 + cos(pi * max(0, step - rise) / max(1, steps - rise)))
            adam.param_groups[0]["lr"] = rate * min((step + 1) / rise, fall)
            projections = [side.projections(side.drawn(rng, levels)) for side in sides]

            def see(layer: int, *states: Any, now: list[Any] = projections) -> list[Any]:
                return [
                    side.shown(layer, x, p) for side, x, p in zip(sides, states, now, strict=True)
                ]

            cache = ProjectingCache(model.n_layers, see)
            adam.zero_grad()
            loss = _loss(model, inputs, mask, cache, distill)
            value = loss.detach().item()
            if not isfinite(value):
                raise InvalidArgumentError(
                    f"[{function}] rate must keep the loss finite, got {value} in step "
                    f"{step}. Lower the rate"
                )
            loss.backward()
            adam.step()
            losses.append(value)
            if progress is not None:
                progress(step + 1, steps)
    bases = [
        shaped(orthogonal_basis(side.axes(), found.flat(kind)), found.shape)
        for side, kind in zip(sides, ("keys", "values"), strict=True)
    ]
    return TrainedCache(full_plan("trained", *bases), losses)


class _Side:
    """The bases of all keys, or of all values: what is free, and what follows from it."""

    def __init__(self, basis: Any, model: Model) -> None:
        import torch

        home = {"device": model.device, "dtype": next(model.hf.parameters()).dtype}
        self.start, self.home = torch.from_numpy(np.array(basis.up)), home
        self.narrow = self.start.to(device=model.device, dtype=torch.float32)
        self.free = torch.zeros_like(self.narrow, requires_grad=True)

    def drawn(self, rng: np.random.Generator, levels: int) -> Any:
        """Return a mask (layers, heads, d) of random ranks."""
        import torch

        layers, heads, d, _ = self.start.shape
        known = np.unique(np.maximum(1, np.arange(1, levels + 1) * d // levels))
        ranks = rng.choice(known, size=(layers, heads))
        return torch.from_numpy(np.arange(d) < ranks[..., None]).to(self.narrow.device)

    def projections(self, mask: Any) -> Any:
        """Return U_r U_r^T (layers, heads, d, d)."""
        axes = self.narrow @ _cayley(self.free)
        return ((axes * mask[..., None, :]) @ axes.mT).to(**self.home)

    def shown(self, layer: int, x: Any, projections: Any) -> Any:
        """Return what is left of states (windows, heads, tokens, d)."""
        return x @ projections[layer]

    def axes(self) -> Any:
        """Return U (layers * heads, d, d), in float64."""
        found = self.start @ _cayley(self.free.detach().cpu().double())
        return found.reshape(-1, *found.shape[-2:]).numpy()


def _cayley(free: Any) -> Any:
    """Return the orthogonal matrices ``(I + A)^-1 (I - A)`` of ``A = X - X^T``."""
    import torch

    skew = free - free.mT
    eye = torch.eye(free.shape[-1], dtype=free.dtype, device=free.device).expand_as(free)
    return torch.linalg.solve(eye + skew, eye - skew)


def _loss(model: Model, inputs: dict[str, Any], mask: Any, cache: Any, distill: float) -> Any:
    """Return the mean over predictions of distillation and cross-entropy."""
    import torch

    with torch.no_grad():
        teacher = _log_probabilities(model.hf(**inputs).logits, mask)
    student = inputs | {"use_cache": True, "past_key_values": cache}
    logp = _log_probabilities(model.hf(**student).logits, mask)
    wanted = inputs["input_ids"][:, 1:][mask[:, 1:]]
    entropy = -logp.gather(1, wanted[:, None]).mean()
    apart = (teacher.exp() * (teacher - logp)).sum(dim=-1).mean()
    return distill * apart + (1 - distill) * entropy


def _log_probabilities(logits: Any, mask: Any) -> Any:
    """Return those (predictions, words) of the tokens that a next one follows."""
    import torch

    rows = logits[:, :-1][mask[:, 1:]]
    return torch.log_softmax(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
