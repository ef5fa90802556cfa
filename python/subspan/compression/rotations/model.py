"""A Llama that runs in rotated bases on rounded numbers: weights, their inputs, keys and values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from subspan.activations import Model
from subspan.compression.matrices import Integers
from subspan.compression.rotations.basis import (
    Frame,
    Place,
    Precision,
    Rotation,
    check_rotation,
    frame_of,
    outer_weights,
    turned,
)
from subspan.compression.rotations.moments import on_cached
from subspan.compression.weights import put_layer
from subspan.errors import InvalidArgumentError

__all__ = ["Meter", "block_of", "rotate_model", "rotated", "round_weights"]


class Meter(NamedTuple):
    """Something that a rotated model rounds while it runs."""

    name: str
    """Of the layer that reads it, or of the attention with ``.keys`` or ``.values``."""
    kind: str
    layer: int
    rounding: Any
    """`Rounding`, which counts its errors."""


def round_weights(
    model: Model,
    rotation: Rotation,
    precision: Precision | None = None,
    *,
    clip: bool = True,
    dtype: str = "float16",
    progress: Callable[[int, int], object] | None = None,
) -> dict[str, Integers]:
    """Return all matrices of the blocks of a Llama, in rotated bases, as integers.

    Parameters
    ----------
    model : Model
        Of the Llama family; it is left as it is.
    rotation : Rotation
        By `RotationMoments.rotation`.
    precision : Precision, optional
        Bits; which parts are rounded does not matter here.
    clip : bool
        As for `quantize`, symmetric for each row.
    dtype : {"float16", "bfloat16", "float32"}
        Of the scales.
    progress : callable, optional
        Called as ``progress(done, total)`` in matrices.

    Returns
    -------
    dict of str to Integers
        By module name, for `rotate_model` and `save`; a row has a scale for its low columns and one
        for its high ones.

    Raises
    ------
    UnsupportedError
        The model is built in another way.
    InvalidArgumentError
        The rotation is that of another model, or not orthogonal.
    """
    used = precision or Precision()
    frame = frame_of("round_weights", model)
    check_rotation("round_weights", frame, rotation)
    made = {}
    for number, place in enumerate(frame.places):
        weight, bias = turned(frame, place, rotation)
        blocks, width = block_of(frame, place.reads, rotation)
        made[place.name] = Integers.of(
            weight.cpu().numpy(), bits=used.widths, blocks=blocks, high=used.high(width),
            clip=clip, bias=None if bias is None else bias.float().cpu().numpy(), dtype=dtype,
        )  # fmt: skip
        if progress is not None:
            progress(number + 1, len(frame.places))
    return made


def rotate_model(
    model: Model,
    rotation: Rotation,
    made: Mapping[str, Integers] | None = None,
    precision: Precision | None = None,
) -> list[Meter]:
    """Have a Llama run in rotated bases, and on rounded numbers, in place.

    Parameters
    ----------
    model : Model
        Of the Llama family. Changed in place: layers of blocks become `RoundedLinear`, embedding
        and output head are untied and rotated, norms lose their gains to the weights after them.
    rotation : Rotation
        By `RotationMoments.rotation`.
    made : mapping of str to Integers, optional
        By `round_weights`; without, weights are not rounded.
    precision : Precision, optional
        Of activations and cache; without, nothing is rounded at run time, and without ``made``
        either, the outputs are what they were but for rounding of the dtype.

    Returns
    -------
    list of Meter
        What is rounded at run time, and how far off it was so far.

    Raises
    ------
    UnsupportedError
        The model is built in another way.
    InvalidArgumentError
        A matrix has another name or shape, the rotation is that of another model or not orthogonal;
        nothing was changed then.

    Notes
    -----
    Rounded numbers are simulated: they have the values that integers and scales would give, in the
    dtype of the model. Memory and time are not those of integer arithmetic. Keys are rounded as
    they are cached, in their basis, and turned back, which leaves queries as they are.
    """
    with contextlib.ExitStack() as undo:
        meters = _install(model, rotation, made or {}, precision, undo)
        undo.pop_all()
    return meters


@contextlib.contextmanager
def rotated(
    model: Model,
    rotation: Rotation,
    made: Mapping[str, Integers] | None = None,
    precision: Precision | None = None,
) -> Iterator[list[Meter]]:
    """Have a model run so for the length of a ``with`` block; see `rotate_model`."""
    with contextlib.ExitStack() as undo:
        yield _install(model, rotation, made or {}, precision, undo)


def block_of(frame: Frame, reads: str, rotation: Rotation) -> tuple[int, int]:
    """Return how many blocks an input has, and their width."""
    if reads == "heads":
        return frame.heads, frame.head
    if reads == "down":
        width = frame.inner if rotation.down is None else int(rotation.down.shape[-1])
        return frame.inner // width, width
    return 1, int(frame.norms[0].weight.shape[0])


def _install(
    model: Model, rotation: Rotation, made: Mapping[str, Integers], precision: Precision | None,
    undo: contextlib.ExitStack,
) -> list[Meter]:  # fmt: skip
    import torch

    frame = frame_of("rotate_model", model)
    check_rotation("rotate_model", frame, rotation)
    _check(frame, made)
    parts = () if precision is None else precision.parts
    meters = []
    layers = {}
    for place in frame.places:
        layer = layers[place.name] = _layer(frame, place, rotation, made.get(place.name))
        if precision is not None and "activations" in parts:
            layer.rounding = _rounding(precision, *block_of(frame, place.reads, rotation),
                                       together=place.reads != "heads")  # fmt: skip
            meters.append(Meter(place.name, place.kind, place.layer, layer.rounding))

    def change(owner: Any, name: str, value: Any) -> None:
        undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    for part, weight in outer_weights(model, rotation):
        change(part, "weight", torch.nn.Parameter(weight, requires_grad=False))
    change(model.hf.config, "tie_word_embeddings", False)
    for norm in frame.norms:
        ones = torch.ones_like(norm.weight)
        change(norm, "weight", torch.nn.Parameter(ones, requires_grad=False))
    for place in frame.places:
        undo.callback(put_layer, model, place.name, place.linear)
        put_layer(model, place.name, layers[place.name])
    if precision is not None and "cache" in parts:
        for number, attention in enumerate(frame.attentions):
            two = [_rounding(precision, 1, frame.head, together=False) for _ in range(2)]
            turn = None if rotation.keys is None else torch.from_numpy(rotation.keys[number])
            attention.cache_hook = on_cached(attention, _cached(turn, *two))
            undo.callback(attention.cache_hook.remove)
            name = frame.places[7 * number].name.rpartition(".")[0]
            meters += [
                Meter(f"{name}.{kind}", f"self_attn.{kind}", number, one)
                for kind, one in zip(("keys", "values"), two, strict=True)
            ]
    return meters


def _check(frame: Frame, made: Mapping[str, Integers]) -> None:
    shapes = {p.name: (p.linear.out_features, p.linear.in_features) for p in frame.places}
    for name, one in made.items():
        if shapes.get(name) != one.shape:
            raise InvalidArgumentError(
                f"[rotate_model] {name!r} must be a layer of shape {one.shape}, got "
                f"{shapes.get(name, 'no such layer')}"
            )


def _layer(frame: Frame, place: Place, rotation: Rotation, made: Integers | None) -> Any:
    import torch

    from subspan.compression.modules import RoundedLinear, make_layer

    old = place.linear
    if made is not None:
        layer = make_layer(made, old)
    else:
        weight, bias = turned(frame, place, rotation)
        layer = RoundedLinear(*(None if x is None else x.to(old.weight.dtype)
                                for x in (weight, bias)))  # fmt: skip
        layer.of_conv1d = False
    if place.reads == "down" and rotation.down is not None:
        layer.turn = torch.from_numpy(rotation.down[place.layer]).to(old.weight)
    return layer.train(old.training)


def _rounding(precision: Precision, blocks: int, width: int, *, together: bool) -> Any:
    from subspan.compression.modules import Rounding

    return Rounding(blocks, precision.high(width), precision.widths, together=together)


def _cached(turn: Any, round_keys: Any, round_values: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    def change(keys: Any, values: Any) -> tuple[Any, Any]:
        if turn is None:
            return round_keys(keys), round_values(values)
        basis = turn.to(keys)
        return round_keys(keys @ basis) @ basis.T, round_values(values)

    return change
