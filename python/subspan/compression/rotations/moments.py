"""What a Llama rounds at run time: second moments of every place, and bases made of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from subspan import _checks
from subspan.activations import Model, TokenBatch
from subspan.compression._archive import arrays_of, write_arrays
from subspan.compression._inputs import Floats
from subspan.compression._turns import BASES, basis, high_of
from subspan.compression.layers import evaluating, inputs_of
from subspan.compression.rotations.basis import Frame, Rotation, frame_of
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["RotationMoments", "calibrate_rotation", "on_cached"]


@dataclass(frozen=True)
class RotationMoments:
    """Sums over tokens of outer products, float64; by `calibrate_rotation`."""

    residual: Floats
    """(d, d) of what attention and MLPs read, after the norms without gains; over all layers."""
    values: Floats
    """(layers, kv heads, head, head)"""
    keys: Floats
    """(layers, head, head) after rotary embedding, over all heads of a layer."""
    down: Floats
    """(layers, block, block) of inputs of the last matrix of each MLP, over its blocks."""
    n_tokens: int

    def rotation(
        self, scheme: str = "resq", *, high_fraction: float = 0.125, seed: int = 0
    ) -> Rotation:
        """Return the bases of a scheme.

        Parameters
        ----------
        scheme : {"resq", "pca", "outliers", "hadamard", "none"}
            "resq": `mixed_basis` everywhere. "pca": without its turns. "outliers": the coordinates
            as they are, the loudest last. "hadamard": turned at random. "none": as it is.
        high_fraction : float in (0, 1)
            Share of the coordinates, the last ones, that are to get more bits.
        seed : int
            Of the turns.

        Returns
        -------
        Rotation
            In float64; ``stored()`` is what a file will hold.

        Raises
        ------
        InvalidArgumentError
            An argument is wrong.
        """
        function = "RotationMoments.rotation"
        _checks.choice(function, "scheme", scheme, tuple(BASES))
        share = _checks.real(function, "high_fraction", high_fraction, low=0.0, high=1.0)
        rng = np.random.default_rng(_checks.integer(function, "seed", seed, low=0))
        if scheme == "none":
            return Rotation()

        def bases(grams: Floats) -> Floats:
            d = grams.shape[-1]
            flat = grams.reshape(-1, d, d)
            made = [basis(scheme, one, high_of(d, share), rng) for one in flat]
            return np.stack(made).reshape(grams.shape)

        return Rotation(*map(bases, (self.residual, self.values, self.keys, self.down)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to an ``.npz`` file, whole or not at all."""
        write_arrays(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RotationMoments:
        """Read what `save` wrote.

        Raises
        ------
        FileFormatError
            The file is damaged or something else.
        """
        with arrays_of("RotationMoments.load", path, "whole moments") as arrays:
            return cls(**arrays | {"n_tokens": int(arrays["n_tokens"])})


def calibrate_rotation(
    model: Model,
    batches: Sequence[TokenBatch],
    *,
    block: int = 256,
    progress: Callable[[int, int], object] | None = None,
) -> RotationMoments:
    """Run a model over tokens and collect the second moments of everything that is rounded.

    Parameters
    ----------
    model : Model
        Of the Llama family; it is left as it is.
    batches : TokenStream or sequence of TokenBatch
        Calibration tokens; padding does not enter.
    block : int
        Inputs of the last matrix of an MLP that are turned together; the largest divisor of their
        number up to this is taken.
    progress : callable, optional
        Called as ``progress(done, total)`` in batches.

    Returns
    -------
    RotationMoments
        Their ``rotation`` gives the bases.

    Raises
    ------
    InvalidArgumentError
        No tokens; NaN or infinity (the place and the layer are named).
    UnsupportedError
        The model is built in another way.

    Notes
    -----
    One forward pass and the products of its states; products of a window in float32, sums in
    float64.
    """
    function = "calibrate_rotation"
    if not len(batches):
        raise InvalidArgumentError(f"[{function}] batches must hold calibration tokens, got none")
    size = _checks.integer(function, "block", block, low=2)
    frame = frame_of(function, model)
    size = max(one for one in range(1, size + 1) if frame.inner % one == 0)
    if size < 2:
        raise InvalidArgumentError(
            f"[{function}] block must be at least a divisor of {frame.inner} inputs, got {block}"
        )
    import torch

    collector = _Collector(frame, size, model.width)
    with collector.hooked(), evaluating(model.hf), torch.no_grad():
        for number, batch in enumerate(batches):
            inputs, collector.mask = inputs_of(model, batch)
            model.hf(**inputs)
            collector.tokens += len(batch)
            if progress is not None:
                progress(number + 1, len(batches))
    return collector.finish()


def on_cached(attention: Any, change: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """Have attention read ``change(keys, values)`` where it would cache them; return the hook.

    Shapes are (windows, kv heads, tokens, head), keys after rotary embedding. What is changed is
    also what a cache gets, if there is one.
    """

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs["past_key_values"] = _Changing(kwargs.get("past_key_values"), change)
        return args, kwargs

    return attention.register_forward_pre_hook(hook, with_kwargs=True)


class _Changing:
    """Stands before a cache, or where there is none."""

    def __init__(self, cache: Any, change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        self._cache, self._change = cache, change

    def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        """Change what comes, and hand it to the cache."""
        keys, values = self._change(keys, values)
        if self._cache is None:
            return keys, values
        return self._cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class _Collector:
    """The hooks of one run and the sums so far."""

    def __init__(self, frame: Frame, block: int, width: int) -> None:
        layers, kv, head = len(frame.attentions), frame.kv_heads, frame.head
        self.frame, self.mask, self.tokens = frame, None, 0
        self.residual = np.zeros((width, width))
        self.values = np.zeros((layers, kv, head, head))
        self.keys = np.zeros((layers, head, head))
        self.down = np.zeros((layers, block, block))
        self.cached = 0

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Have the model show what it computes."""
        with contextlib.ExitStack() as undo:
            for layer, attention in enumerate(self.frame.attentions):
                handle = on_cached(attention, self._on_cached(layer))
                undo.callback(handle.remove)
            for number, norm in enumerate(self.frame.norms[:-1]):
                handle = norm.register_forward_hook(self._on_norm(number // 2))
                undo.callback(handle.remove)
            for place in self.frame.places:
                if place.reads == "down":
                    handle = place.linear.register_forward_pre_hook(self._on_down(place.layer))
                    undo.callback(handle.remove)
            yield

    def _on_norm(self, layer: int) -> Callable[..., None]:
        def hook(norm: Any, args: tuple[Any, ...], _: Any) -> None:
            import torch

            gain = norm.weight
            norm.weight = torch.nn.Parameter(torch.ones_like(gain), requires_grad=False)
            try:
                rows = norm.forward(args[0])  # without the hooks
            finally:
                norm.weight = gain
            self.residual += self._gram("the residual stream", layer, rows[self.mask])

        return hook

    def _on_down(self, layer: int) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            rows = args[0][self.mask].reshape(-1, self.down.shape[-1])
            self.down[layer] += self._gram("inputs of down_proj", layer, rows)

        return hook

    def _on_cached(self, layer: int) -> Callable[[Any, Any], tuple[Any, Any]]:
        def see(keys: Any, values: Any) -> tuple[Any, Any]:
            heads = [x.transpose(0, 1)[:, self.mask] for x in (keys, values)]
            head = self.frame.head
            self.keys[layer] += self._gram("keys", layer, heads[0].reshape(-1, head))
            self.values[layer] += self._gram("values", layer, heads[1])
            self.cached += 1
            return keys, values

        return see

    @staticmethod
    def _gram(what: str, layer: int, rows: Any) -> Floats:
        rows = rows.detach().float()
        found: Floats = (rows.mT @ rows).double().cpu().numpy()
        if not np.isfinite(found).all():
            raise InvalidArgumentError(
                f"[calibrate_rotation] {what} of layer {layer} must be finite, got NaN or infinity"
            )
        return found

    def finish(self) -> RotationMoments:
        """Return the sums, if every layer was seen."""
        if not self.cached or self.cached % len(self.frame.attentions):
            raise UnsupportedError(
                "[calibrate_rotation] model must hand keys and values of every layer to its cache, "
                f"got {self.cached} of {len(self.frame.attentions)}"
            )
        return RotationMoments(self.residual, self.values, self.keys, self.down, self.tokens)
