"""What attention caches, layer by layer and head by head: moments of keys, values and queries."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from subspan import Moments, _checks
from subspan.activations import Model, TokenBatch
from subspan.compression._archive import arrays_of, write_arrays
from subspan.compression.calibration import sampled_loss
from subspan.compression.layers import evaluating, frozen, inputs_of
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["CacheMoments", "calibrate_cache"]

_STATES = ("keys", "values", "queries")
_FELT = ("key_gradients", "value_gradients", "felt_keys", "felt_values")
_KINDS = (*_STATES, *_FELT)


class CacheMoments:
    """Moments of what an attention cache holds, and of what meets it; by `calibrate_cache`.

    Attributes
    ----------
    keys, values : list of list of Moments
        Of the states as they are cached (keys after rotary embedding), by layer and key-value head.
    queries : list of list of Moments
        Of the queries of all heads that share these keys, after rotary embedding.
    key_gradients, value_gradients : list of list of Moments
        Of the gradient of the loss with respect to the cached states; empty without gradients.
    felt_keys, felt_values : list of list of Moments
        Of the cached states, each weighted by the squared length of its gradient: few tokens, such
        as the first of a window, may be all that attention reads. Empty without gradients.
    n_tokens : int
        Tokens read.
    """

    def __init__(self, layers: int, heads: int, *, gradients: bool = False) -> None:
        self.n_tokens = 0
        kinds = _KINDS if gradients else _STATES
        for kind in _KINDS:
            count = layers if kind in kinds else 0
            setattr(self, kind, [[Moments() for _ in range(heads)] for _ in range(count)])

    keys: list[list[Moments]]
    values: list[list[Moments]]
    queries: list[list[Moments]]
    key_gradients: list[list[Moments]]
    value_gradients: list[list[Moments]]
    felt_keys: list[list[Moments]]
    felt_values: list[list[Moments]]

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, key-value heads)."""
        return len(self.keys), len(self.keys[0])

    @property
    def widths(self) -> tuple[int, int]:
        """Dimensions of a key and of a value."""
        return self.keys[0][0].n_features, self.values[0][0].n_features

    def flat(self, kind: str) -> list[Moments]:
        """Return the moments of one kind, layer by layer in one list."""
        many: list[list[Moments]] = getattr(self, kind)
        if not many:
            raise InvalidArgumentError(
                "[CacheMoments] gradients must have been collected, got none. Call "
                "calibrate_cache(..., gradients=True)"
            )
        return [head for layer in many for head in layer]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an ``.npz`` file, whole or not at all."""
        arrays: dict[str, Any] = {
            "shape": np.array(self.shape),
            "gradients": np.array(bool(self.key_gradients)),
            "n_tokens": np.array(self.n_tokens),
        }
        for kind in _KINDS:
            for i, layer in enumerate(getattr(self, kind)):
                for j, head in enumerate(layer):
                    state = head.state_dict().items()
                    arrays |= {f"{kind}/{i}/{j}/{key}": value for key, value in state}
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CacheMoments:
        """Read what `save` wrote.

        Raises
        ------
        FileFormatError
            The file is damaged or something else.
        """
        with arrays_of("CacheMoments.load", path, "whole moments of a cache") as arrays:
            layers, heads = arrays.pop("shape").tolist()
            made = cls(layers, heads, gradients=bool(arrays.pop("gradients")))
            made.n_tokens = int(arrays.pop("n_tokens"))
            states: dict[tuple[str, int, int], dict[str, Any]] = {}
            for key, value in arrays.items():
                kind, i, j, field = key.split("/")
                states.setdefault((kind, int(i), int(j)), {})[field] = value
            for (kind, layer, head), state in states.items():
                getattr(made, kind)[layer][head] = Moments.from_state_dict(state)
        return made


def calibrate_cache(
    model: Model,
    batches: Sequence[TokenBatch],
    *,
    gradients: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> CacheMoments:
    """Run a model over tokens and collect the moments of its keys, values and queries.

    Parameters
    ----------
    model : Model
        A causal language model of transformers whose layers all attend to all earlier tokens, by
        its attention interface (Llama, Mistral, Qwen and most others).
    batches : TokenStream or sequence of TokenBatch
        Calibration tokens; padding does not enter.
    gradients : bool
        Also run backward, from the cross-entropy of tokens drawn from the model's own predictions
        as in `calibrate`, and collect the gradients at the cached states.
    seed : int
        Of the tokens drawn.
    progress : callable, optional
        Called as ``progress(done, total)`` in batches.

    Returns
    -------
    CacheMoments
        Keys and queries are those after rotary embedding, as a cache holds and meets them.

    Raises
    ------
    InvalidArgumentError
        No tokens, or NaN or infinity in a state (layer and head are named).
    UnsupportedError
        No causal language model, sliding windows, or attention that cannot be reached.

    Notes
    -----
    Memory: 16 bytes d² for each head and kind. One forward pass, with gradients a backward one.
    """
    function = "calibrate_cache"
    if not len(batches):
        raise InvalidArgumentError(f"[{function}] batches must hold calibration tokens, got none")
    _checks.integer(function, "seed", seed, low=0)
    check_attention(function, model)
    import torch

    random = torch.Generator(device=model.device).manual_seed(seed)
    collector = _Collector(gradients)
    with evaluating(model.hf), frozen(model.hf), attended(model, collector.see):
        for number, batch in enumerate(batches):
            inputs, collector.mask = inputs_of(model, batch)
            with torch.set_grad_enabled(gradients):
                logits = model.hf(**inputs).logits
                if gradients:
                    sampled_loss(logits[collector.mask], random).backward()
            collector.tokens += len(batch)
            if progress is not None:
                progress(number + 1, len(batches))
    return collector.finish(model.n_layers)


def check_attention(function: str, model: Model) -> None:
    """Refuse models whose cache is not one key and one value for every earlier token."""
    if model.kind != "causal" or model.hf.get_output_embeddings() is None:
        raise UnsupportedError(
            f"[{function}] model must be a causal language model with an output head, got "
            f"{type(model.hf).__name__}. Load it with AutoModelForCausalLM"
        )
    config = model.hf.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is None and window is not None:
        kinds = {"sliding_attention"}
    if kinds != {"full_attention"}:
        raise UnsupportedError(
            f"[{function}] model must attend to all earlier tokens in every layer, got layers of "
            f"{', '.join(sorted(kinds))}"
        )


@contextlib.contextmanager
def attended(model: Model, see: Callable[[int, Any, Any, Any], tuple[Any, Any]]) -> Iterator[None]:
    """Call ``see(layer, query, key, value)`` in every attention; it returns the last two.

    Shapes are (windows, heads, tokens, dimensions), positions are in them already.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as known

    name = model.hf.config.get_text_config()._attn_implementation
    # without an entry (eager), the fused function gives the same numbers but for rounding
    plain = known[name] if name in known else known["sdpa"]
    own = {id(module) for module in model.hf.modules()}

    def attend(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if id(module) in own:
            key, value = see(int(module.layer_idx), query, key, value)
        return plain(module, query, key, value, *args, **kwargs)

    known[name] = attend
    try:
        yield
    finally:
        del known[name]


class _Collector:
    """Moments of all layers as they come by."""

    def __init__(self, gradients: bool) -> None:
        self.gradients = gradients
        self.mask: Any = None
        self.tokens = 0
        self.found: dict[str, dict[tuple[int, int], Moments]] = {kind: {} for kind in _KINDS}

    def see(self, layer: int, query: Any, key: Any, value: Any) -> tuple[Any, Any]:
        """Take the states of one layer, and have the gradients come by later."""
        heads = key.shape[1]
        if self.gradients:
            key, value = self._watched(key, layer, "key"), self._watched(value, layer, "value")
        self._update("keys", layer, key)
        self._update("values", layer, value)
        group = query.shape[1] // heads
        for member in range(group):  # query head h meets key head h // group
            self._update("queries", layer, query[:, member::group])
        return key, value

    def _watched(self, x: Any, layer: int, side: str) -> Any:
        # the weights ask for no gradients, so the first states are where the graph begins
        x = x if x.requires_grad else x.detach().requires_grad_(True)
        states = x.detach()  # not x itself: its hook would keep it alive

        def receive(grad: Any) -> None:
            self._update(f"{side}_gradients", layer, grad)
            self._update(f"felt_{side}s", layer, states, grad)

        x.register_hook(receive)
        return x

    def _update(self, kind: str, layer: int, x: Any, grad: Any = None) -> None:
        rows = x.detach().transpose(0, 1)[:, self.mask]
        weights = [None] * len(rows)
        if grad is not None:
            weights = grad.transpose(0, 1)[:, self.mask].double().square().sum(dim=-1)
        for head, (one, weight) in enumerate(zip(rows, weights, strict=True)):
            moments = self.found[kind].setdefault((layer, head), Moments())
            try:
                moments.update(one.contiguous(), weight)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(
                    f"[calibrate_cache] {kind.replace('_', ' ')} of head {head} in layer {layer} "
                    f"must be finite, got: {error}"
                ) from error

    def finish(self, layers: int) -> CacheMoments:
        """Return what was seen, if all layers were."""
        places = list(self.found["keys"])
        heads = 1 + max((head for _, head in places), default=0)
        wanted = {(i, j) for i in range(layers) for j in range(heads)}
        widths = {self.found[kind][at].n_features for kind in ("keys", "values") for at in places}
        if set(places) != wanted or len(widths) != 1:
            raise UnsupportedError(
                "[calibrate_cache] model must have attention of equal heads in every layer, by the "
                f"attention interface of transformers, got {len(places)} heads in "
                f"{len({layer for layer, _ in places})} of {layers} layers"
            )
        made = CacheMoments(layers, heads, gradients=self.gradients)
        made.n_tokens = self.tokens
        for kind, found in self.found.items():
            for (i, j), moments in found.items():
                getattr(made, kind)[i][j] = moments
        return made
