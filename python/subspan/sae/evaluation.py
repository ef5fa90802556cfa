"""What a language model loses when an autoencoder stands in for its activations."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from subspan import RaggedCode, _checks
from subspan.activations import (
    Model,
    OutlierRule,
    Site,
    TokenBatch,
    capture,
    load_model,
    resume_at,
    splice,
)
from subspan.errors import InvalidArgumentError
from subspan.sae._adapter import Coder
from subspan.sae._losses import Head, Losses
from subspan.sae.cards._source import batches_of
from subspan.sae.metrics import CodeStatistics, kl_recovered, loss_recovered

__all__ = ["Evaluation", "evaluate"]

_ABLATIONS = ("zero", "mean")
_OF_CODES = ("n_latents", "l0", "l1", "dead_fraction", "dead_window", "fires_above")


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a model with an autoencoder spliced in, and how well it reconstructs."""

    site: str
    """Where it was spliced in."""
    n_tokens: int
    """Tokens that the model read."""
    n_excluded: int
    """Of them, tokens that kept their own activations in every run."""
    n_predictions: int
    """Next tokens predicted, over which the means are."""
    cross_entropy: dict[str, float]
    """Nats per token of ``clean``, ``spliced``, and each ablation (``zero``, ``mean``)."""
    kl: dict[str, float]
    """KL(clean || run) in nats per token of ``spliced``, and each ablation."""
    reconstruction: dict[str, float]
    """Measures of `metrics.CodeMetrics` over the tokens that are not excluded; those of codes (L0,
    L1, dead latents) only for an `Autoencoder`."""

    def ce_recovered(self, ablation: str = "zero") -> float:
        """Return (CE_ablated - CE_spliced) / (CE_ablated - CE_clean); 1 is no loss at all."""
        entropy = self.cross_entropy
        ablated = self._of(entropy, ablation)
        return loss_recovered(entropy["clean"], entropy["spliced"], ablated)

    def kl_score(self, ablation: str = "zero") -> float:
        """Return (KL_ablated - KL_spliced) / KL_ablated; 1 is no divergence at all."""
        return kl_recovered(self.kl["spliced"], self._of(self.kl, ablation))

    def _of(self, values: dict[str, float], ablation: str) -> float:
        known = [name for name in values if name in _ABLATIONS]
        return values[_checks.choice("Evaluation", "ablation", ablation, known)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON, scores of every ablation included.

        What is not defined (0 / 0) is None.
        """
        known = [name for name in self.kl if name in _ABLATIONS]
        scores = {
            "ce_increase": self.cross_entropy["spliced"] - self.cross_entropy["clean"],
            "ce_recovered": {name: self.ce_recovered(name) for name in known},
            "kl_score": {name: self.kl_score(name) for name in known},
        }
        plain: dict[str, Any] = defined(asdict(self) | scores)
        return plain


def evaluate(
    sae: Any,
    model: Any,
    texts: Any,
    *,
    site: str | Site,
    tokens: int | None = 8192,
    window: int | None = None,
    batch_size: int = 4,
    exclude: OutlierRule | None = OutlierRule(),  # noqa: B008 - frozen
    ablations: Sequence[str] = _ABLATIONS,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    r"""Run a model with the reconstruction in the place of its activations and measure the loss.

    ``CE recovered = (CE_ablated - CE_spliced) / (CE_ablated - CE_clean)``,
    ``KL score = (KL_ablated - KL_spliced) / KL_ablated``.

    Parameters
    ----------
    sae : Autoencoder, SAE, or any object with ``reconstruct(x)``
        x has shape (rows, width).
    model : str, Path, Model or Hugging Face module
        A causal language model; what is no `Model` goes through `activations.load_model`.
    texts : str, Path, iterable of them, TokenStream or sequence of TokenBatch
        A ``str`` is a text, a ``Path`` a file.
    site : str or Site
        Where the autoencoder stands in: "layer.15/resid", "layer.03/mlp", ..., as in
        `activations.splice`.
    tokens : int, optional
        Stop after so many; None reads everything. Only for texts.
    window, batch_size : int
        Tokens of a window (512, or the context length if that is shorter), and windows of a batch.
        Only for texts.
    exclude : OutlierRule, optional
        Tokens that the rule calls outliers, or drops, keep their own activations in every run,
        the ablations included, and take no part in the reconstruction metrics. The reference norm
        is the median of the first batch. None: all tokens are replaced.
    ablations : sequence of {"zero", "mean"}
        What stands in for an autoencoder that explains nothing: zero, or the mean activation of
        these very tokens.
    progress : callable, optional
        Called as ``progress("evaluation", done, total)`` in batches.

    Returns
    -------
    Evaluation
        With the type of every ablation named.

    Raises
    ------
    InvalidArgumentError
        The site does not exist, the autoencoder has another width, or returns another shape, NaN
        or infinity.
    UnsupportedError
        The model has no output head.

    Notes
    -----
    Each batch runs 2 + len(ablations) times, all but the first time from the layer of the site on
    (if one trial gives the very bits of the whole model), after one pass up to the site for the
    mean. An identity autoencoder gives the clean loss bit for bit. Memory: the states before the
    output head of every run of one batch, and 32 MiB of logits for each; for models that do more
    than a matrix product after their last state (a cap on logits, for instance) the logits of a
    batch.

    The definitions are those in common use, e.g. Karvonen et al. 2025, SAEBench,
    `arXiv:2503.09532 <https://arxiv.org/abs/2503.09532>`_.

    Examples
    --------
    >>> import numpy as np, transformers
    >>> from subspan.activations import TokenBatch, load_model
    >>> from subspan.sae import evaluate
    >>> config = transformers.GPT2Config(
    ...     n_embd=8, n_layer=2, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0)
    >>> model = load_model(transformers.GPT2LMHeadModel(config))
    >>> place, zeros = np.arange(8), np.zeros(8, np.int64)
    >>> tokens = TokenBatch(
    ...     index=0, ids=place, pieces=tuple("abcdefgh"), shared=zeros, document=zeros,
    ...     position=place, window_position=place, special=zeros > 0, lengths=np.array([8]))
    >>> class Identity:
    ...     def reconstruct(self, x):
    ...         return x
    >>> found = evaluate(Identity(), model, [tokens], site="layer.01/resid")
    >>> found.cross_entropy["spliced"] == found.cross_entropy["clean"], found.kl["spliced"]
    (True, 0.0)
    """
    for name in ablations:
        _checks.choice("evaluate", "ablations", name, _ABLATIONS)
    coder = Coder("evaluate", sae)
    opened = load_model(model)
    head = Head(opened)
    stream = batches_of(opened, texts, tokens=tokens, window=window, batch_size=batch_size)
    runs = _Runs(opened, head, coder, site, exclude)
    runs.survey(stream)
    for number, batch in enumerate(stream):
        runs.add(batch, ablations)
        if progress is not None:
            progress("evaluation", number + 1, len(stream))
    return runs.result()


class _Runs:
    """One model, one site, one autoencoder: the ways to run a batch, and what they add up to."""

    def __init__(
        self, model: Model, head: Head, coder: Coder, site: str | Site, rule: OutlierRule | None
    ) -> None:
        self.model, self.head, self.coder, self.rule = model, head, coder, rule
        with splice(model, site, lambda _: None) as found:
            self.site = found
        # What runs again can begin at this block, if the first batch shows that it may.
        self.first = min(found.layer, len(model.blocks) - 1)
        self.resumes: bool | None = None if self.first > 0 else False
        self.losses = Losses()
        self.stats = CodeStatistics(coder.sae.n_latents if coder.encodes else 1)
        self.reference: float | None = None
        self.mean: Any = None
        self.n_tokens = self.n_excluded = 0

    def survey(self, stream: Any) -> None:
        """Find the reference norm of the outlier rule, and the mean of the tokens it keeps."""
        total, count = 0.0, 0
        for batch in capture(self.model, stream, sites=[self.site]):
            assert batch.tokens is not None
            x = batch.arrays[self.site]
            kept = x[self._kept(np.linalg.norm(x, axis=1), batch.tokens)]
            total, count = total + kept.sum(axis=0, dtype=np.float64), count + len(kept)
        if not count:
            raise InvalidArgumentError(
                "[evaluate] texts must have tokens that the rule of outliers keeps, got none"
            )
        self.mean = total / count

    def _kept(self, norms: np.ndarray, tokens: TokenBatch) -> np.ndarray:
        if self.rule is None:
            return np.ones(len(norms), bool)
        first = tokens.first_in_window
        if self.reference is None:
            self.reference = self.rule.reference(norms, first)
        return self.rule.classify(norms, first, self.reference).ordinary

    def add(self, tokens: TokenBatch, ablations: Sequence[str]) -> None:
        """Run one batch in every way."""
        import torch

        ids, mask = tokens.padded()
        device = self.model.device
        inputs = {
            "input_ids": torch.from_numpy(ids).to(device),
            "attention_mask": torch.from_numpy(mask).to(device=device, dtype=torch.int64),
        }
        seen: list[Any] = []
        entering: list[Any] = []
        with splice(self.model, self.site, seen.append):
            if self.resumes is False:
                ways = {"clean": self.head.states(inputs)}
            else:
                with splice(self.model, Site(self.first, "resid"), entering.append):
                    ways = {"clean": self.head.states(inputs)}
        if self.resumes is None:
            self.resumes = self._same_from(entering[0], inputs, ways["clean"])
        x = seen[0].detach()
        flat = x.reshape(-1, x.shape[-1])
        real = torch.from_numpy(mask.reshape(-1).nonzero()[0]).to(flat.device)
        rows = flat[real].to(torch.promote_types(x.dtype, torch.float32))
        kept = self._kept(rows.norm(dim=1).cpu().double().numpy(), tokens)
        chosen = real[torch.from_numpy(kept).to(real.device)]
        rows = rows[torch.from_numpy(kept).to(rows.device)]
        for name, made in self._stand_ins(rows, ablations):
            new = flat.clone()
            new[chosen] = made.to(device=flat.device, dtype=flat.dtype)
            again = self._from_site(entering)
            with again, splice(self.model, self.site, partial(_instead, new.reshape(x.shape))):
                ways[name] = self.head.states(inputs)
        self.losses.update(self.head, ways, tokens)
        self.n_tokens += len(kept)
        self.n_excluded += len(kept) - int(kept.sum())

    def _from_site(self, entering: list[Any]) -> contextlib.AbstractContextManager[None]:
        if self.resumes:
            return resume_at(self.model, self.first, entering[0])
        return contextlib.nullcontext()

    def _same_from(self, entering: Any, inputs: Any, whole: Any) -> bool:
        """Say whether a pass that begins at the block of the site gives the bits of a whole one."""
        import torch

        try:
            with resume_at(self.model, self.first, entering):
                return bool(torch.equal(self.head.states(inputs), whole))
        except (InvalidArgumentError, LookupError, TypeError):  # layers that return no tensor
            return False

    def _stand_ins(self, rows: Any, ablations: Sequence[str]) -> Iterable[tuple[str, Any]]:
        import torch

        code: Any = RaggedCode(
            np.zeros(0), np.zeros(0, np.int64), np.zeros(len(rows) + 1, np.int64)
        )
        if self.coder.encodes:
            code = self.coder.encode(rows)
            made = self.coder.decode(rows, code)
        else:
            made = self.coder.reconstruct(rows)
        self.stats.update(rows.cpu().numpy(), code, made)
        yield "spliced", torch.from_numpy(made)
        if "zero" in ablations:
            yield "zero", torch.zeros_like(rows)
        if "mean" in ablations:
            yield "mean", torch.from_numpy(self.mean).expand(rows.shape)

    def result(self) -> Evaluation:
        """Return the means."""
        found = self.stats.results().scalars()
        of_codes = () if self.coder.encodes else _OF_CODES
        reconstruction = {name: value for name, value in found.items() if name not in of_codes}
        return Evaluation(
            site=self.site.key,
            n_tokens=self.n_tokens,
            n_excluded=self.n_excluded,
            n_predictions=self.losses.n,
            cross_entropy=self.losses.cross_entropy(),
            kl=self.losses.kl(),
            reconstruction=reconstruction,
        )


def _instead(new: Any, _: Any) -> Any:
    return new


def defined(value: Any) -> Any:
    """Return plain values, nested or not, with None for NaN, which JSON has not."""
    if isinstance(value, dict):
        return {name: defined(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value
