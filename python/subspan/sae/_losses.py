"""Cross-entropy and KL divergence of a language model's predictions, in chunks of the vocabulary.

The logits of a batch are the largest array of an evaluation (tokens times vocabulary). Kept are
the states before the output head; the head is applied to a few rows at a time.
"""

from collections.abc import Mapping
from typing import Any

from subspan.activations import Model, TokenBatch
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["Head", "Losses"]

_ELEMENTS = 1 << 23  # logits made at a time, for each way the model is run: 32 MiB in float32


class Head:
    """The last step of a causal language model, from states to logits.

    Most models are a body and a linear head. Whether this one is, is tried on a few tokens; what
    scales or bends its logits afterwards is then run whole, and its states are its logits.
    """

    def __init__(self, model: Model) -> None:
        head = model.hf.get_output_embeddings() if model.kind == "causal" else None
        if head is None:
            raise UnsupportedError(
                "[evaluate] model must be a causal language model with an output head, got "
                f"{type(model.hf).__name__}. Load it with AutoModelForCausalLM"
            )
        self.model, self._head = model, head
        self.is_linear = self._agrees()

    def _agrees(self) -> bool:
        import torch

        hf = self.model.hf
        ids = torch.arange(min(8, hf.get_input_embeddings().weight.shape[0]))[None]
        inputs = {"input_ids": ids.to(self.model.device), "use_cache": False}
        with torch.no_grad():
            whole = hf(**inputs).logits
            parts = self._head(hf.base_model(**inputs)[0])
        same = whole.shape == parts.shape
        return same and bool(torch.allclose(whole, parts, rtol=1e-4, atol=1e-4))

    def states(self, inputs: Mapping[str, Any]) -> Any:
        """Return (batch, tokens, ·): what `logits` takes."""
        import torch

        with torch.no_grad():
            if self.is_linear:
                return self.model.hf.base_model(**inputs, use_cache=False)[0]
            return self.model.hf(**inputs, use_cache=False).logits

    def logits(self, states: Any) -> Any:
        """Return the logits (rows, vocabulary) of rows of states."""
        return self._head(states) if self.is_linear else states


class Losses:
    """Mean next-token cross-entropy of each way to run a model, and KL from the first way."""

    def __init__(self) -> None:
        self.n = 0
        self._entropy: dict[str, float] = {}
        self._kl: dict[str, float] = {}

    def update(self, head: Head, ways: Mapping[str, Any], tokens: TokenBatch) -> None:
        """Add a batch; ``ways`` maps a name to states (batch, tokens, ·), the first is the clean.

        Token t + 1 of a window is predicted at t. Padding is not read.
        """
        import torch

        ids, mask = map(torch.from_numpy, tokens.padded())
        rows = (mask[:, :-1] & mask[:, 1:]).nonzero()
        if not len(rows):
            return
        targets = ids[rows[:, 0], rows[:, 1] + 1]
        first = next(iter(ways.values()))
        rows, targets = rows.to(first.device), targets.to(first.device)
        vocabulary = int(self._vocabulary(head, first))
        step = max(1, _ELEMENTS // vocabulary)
        with torch.no_grad():
            for start in range(0, len(rows), step):
                here, wanted = rows[start : start + step], targets[start : start + step]
                clean = None
                for name, states in ways.items():
                    logits = head.logits(states[here[:, 0], here[:, 1]])
                    wide = torch.promote_types(logits.dtype, torch.float32)
                    logp = torch.log_softmax(logits.to(wide), dim=-1)
                    chosen = -logp.gather(1, wanted[:, None]).double().sum()
                    self._entropy[name] = self._entropy.get(name, 0.0) + float(chosen)
                    if clean is None:
                        clean = logp
                        continue
                    # p log p is 0 where p is: a logit of -inf, as some heads give
                    terms = torch.where(clean.isneginf(), 0.0, clean.exp() * (clean - logp))
                    self._kl[name] = self._kl.get(name, 0.0) + float(terms.double().sum())
        self.n += len(rows)

    @staticmethod
    def _vocabulary(head: Head, states: Any) -> int:
        if not head.is_linear:
            return int(states.shape[-1])
        return int(head.model.hf.get_output_embeddings().weight.shape[0])

    def cross_entropy(self) -> dict[str, float]:
        """Return the mean cross-entropy of every way, in nats per token."""
        if not self.n:
            raise InvalidArgumentError(
                "[evaluate] texts must have windows of two tokens or more, got none"
            )
        return {name: total / self.n for name, total in self._entropy.items()}

    def kl(self) -> dict[str, float]:
        """Return the mean KL(clean || way) of every other way, in nats per token."""
        return {name: max(total, 0.0) / self.n for name, total in self._kl.items()}  # rounding
