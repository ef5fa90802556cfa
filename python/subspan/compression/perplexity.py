"""How well a causal language model predicts a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp
from typing import Any, NamedTuple

from subspan.activations import Model, TokenBatch
from subspan.compression.layers import evaluating, inputs_of
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["Perplexity", "perplexity"]


class Perplexity(NamedTuple):
    """Mean cross-entropy of next tokens, and how many there were."""

    nats: float
    """Mean -log p(next token | those before it in the window)."""
    n_predictions: int

    @property
    def value(self) -> float:
        """``exp(nats)``; infinity where that overflows."""
        return exp(self.nats) if self.nats < 700 else float("inf")


def perplexity(
    model: Model,
    batches: Sequence[TokenBatch],
    *,
    cache: Callable[[], Any] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Perplexity:
    """Return the perplexity of a causal language model on tokens, window by window.

    Parameters
    ----------
    model : Model
        With an output head; it is run as it is, without dropout.
    batches : TokenStream or sequence of TokenBatch
        Windows of tokens; the first token of a window is not predicted.
    cache : callable, optional
        Returns an empty cache for each batch, such as a `CompressedCache`; attention reads keys and
        values from it.
    progress : callable, optional
        Called as ``progress(done, total)`` in batches.

    Returns
    -------
    Perplexity
        Sums in float64.

    Raises
    ------
    InvalidArgumentError
        No window has two tokens.
    UnsupportedError
        The model is no causal language model with a head.

    Notes
    -----
    Memory: the logits of a batch, and those of a window twice.
    """
    import torch

    if model.kind != "causal" or model.hf.get_output_embeddings() is None:
        raise UnsupportedError(
            "[perplexity] model must be a causal language model with an output head, got "
            f"{type(model.hf).__name__}. Load it with AutoModelForCausalLM"
        )
    total, count = 0.0, 0
    with evaluating(model.hf), torch.no_grad():
        for number, batch in enumerate(batches):
            inputs, mask = inputs_of(model, batch)
            if cache is not None:
                inputs |= {"use_cache": True, "past_key_values": cache()}
            logits = model.hf(**inputs).logits
            for row, length in zip(range(len(mask)), batch.lengths.tolist(), strict=True):
                wide = torch.promote_types(logits.dtype, torch.float32)
                logp = torch.log_softmax(logits[row, : length - 1].to(wide), dim=-1)
                wanted = inputs["input_ids"][row, 1:length]
                total -= float(logp.gather(1, wanted[:, None]).double().sum())
                count += length - 1
            if progress is not None:
                progress(number + 1, len(batches))
    if not count:
        raise InvalidArgumentError(
            "[perplexity] batches must have windows of two tokens or more, got none"
        )
    return Perplexity(total / count, count)
