"""A model of the Llama family in other orthogonal bases, with the same outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from subspan import _arrays, _checks
from subspan.activations import Model
from subspan.compression._inputs import Floats
from subspan.compression._turns import hadamard, high_of
from subspan.compression.storage import Storage, quantized_storage
from subspan.errors import FileFormatError, InvalidArgumentError, UnsupportedError

__all__ = [
    "Frame",
    "Place",
    "Precision",
    "Rotation",
    "check_rotation",
    "frame_of",
    "outer_weights",
    "rotate_residual",
    "turned",
]

_READERS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
_WRITERS = (("self_attn.o_proj", "heads"), ("mlp.down_proj", "down"))


@dataclass(frozen=True)
class Rotation:
    """Orthogonal bases, as columns, for everything that a Llama rounds; None leaves it as it is.

    Attributes
    ----------
    residual : ndarray (d, d), optional
        Of the residual stream: folded into the weights that read and write it.
    values : ndarray (layers, kv heads, head, head), optional
        Of the values of each head: folded into the weights before and after.
    keys : ndarray (layers, head, head), optional
        Of the keys after rotary embedding, for all heads of a layer: applied when they are cached.
    down : ndarray (layers, block, block), optional
        Of each block of inputs of the last matrix of an MLP: applied when it runs.
    """

    residual: Floats | None = None
    values: Floats | None = None
    keys: Floats | None = None
    down: Floats | None = None

    def stored(self) -> Rotation:
        """Return the rotation that a file holds: what is applied at run time, in float16."""
        return replace(self.from_tensors(self.tensors()), values=self.values)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors of a file.

        Permutations are int32 indices and Hadamard matrices signs of their rows (bool), all others
        float16 matrices, or float32 for the residual stream. The bases of values are not among
        them: they live in the weights.
        """
        found = {}
        for name, dtype in (("residual", np.float32), ("keys", np.float16), ("down", np.float16)):
            x = getattr(self, name)
            if x is not None:
                found[name] = _compact(x, dtype)
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Any]) -> Rotation:
        """Return the rotation of tensors of a file."""
        return cls(**{name: _whole(_arrays.to_numpy(x)) for name, x in tensors.items()})


def _compact(x: Floats, dtype: Any) -> np.ndarray:
    order = x.argmax(axis=-2)
    if (np.take_along_axis(x, order[..., None, :], axis=-2) == 1).all():
        indices: np.ndarray = order.astype(np.int32)
        return indices
    even = hadamard(x.shape[-1])
    if even is not None:
        signs = np.sign(x[..., 0] * even[:, 0])
        if np.allclose(_signed(signs, even), x, rtol=0, atol=1e-12):
            positive: np.ndarray = signs > 0
            return positive
    made: np.ndarray = x.astype(dtype)
    return made


def _whole(x: np.ndarray) -> Floats:
    if x.dtype == np.int32:
        order: Floats = np.eye(x.shape[-1])[x].swapaxes(-1, -2)
        return order
    if x.dtype == np.bool_:
        even = hadamard(x.shape[-1])
        if even is None:
            raise FileFormatError(
                f"[Rotation] signs must be those of a Hadamard matrix, got {x.shape[-1]}"
            )
        return _signed(np.where(x, 1.0, -1.0), even)
    return x.astype(np.float64)


def _signed(signs: np.ndarray, even: Floats) -> Floats:
    made: Floats = signs[..., None] * even / np.sqrt(len(even))
    return made


@dataclass(frozen=True)
class Precision:
    """How many bits numbers get in a rotated model, and which numbers are rounded at all.

    Attributes
    ----------
    bits, high_bits : int
        Of most coordinates, and of the last ones of every basis.
    high_fraction : float
        Share of these last ones; 0 for the same bits everywhere.
    parts : tuple of str
        Of "weights", "activations" (inputs of matrices) and "cache" (keys and values).
    """

    bits: int = 4
    high_bits: int = 8
    high_fraction: float = 0.125
    parts: tuple[str, ...] = ("weights", "activations", "cache")

    @property
    def widths(self) -> tuple[int, int]:
        """Bits of a low and of a high coordinate."""
        return self.bits, self.high_bits

    def high(self, d: int) -> int:
        """Return how many of d coordinates are high."""
        return high_of(d, self.high_fraction) if self.high_fraction else 0

    def row_storage(self, blocks: int, width: int, *, together: bool = False) -> Storage:
        """Return what one row of ``blocks * width`` numbers takes at run time.

        Scales have 16 bits and zeros as many as their numbers; low and high coordinates have their
        own, for each block or for all ``together``.
        """
        high = self.high(width)
        made = Storage(())
        for count, bits in ((blocks * (width - high), self.bits), (blocks * high, self.high_bits)):
            if count:
                group = count if together else count // blocks
                made += quantized_storage(count, bits=bits, group=group, zero_bits=bits)
        return made


class Place(NamedTuple):
    """A linear layer of a block, and what it reads and writes."""

    name: str
    kind: str
    layer: int
    linear: Any
    reads: str
    """"residual", "heads" or "down"."""
    writes: str
    """"residual", "values", or nothing that is turned."""
    norm: Any = None
    """The norm before it, whose gain it takes over."""


class Frame(NamedTuple):
    """The parts of a Llama that a change of basis meets."""

    places: list[Place]
    norms: list[Any]
    attentions: list[Any]
    heads: int
    kv_heads: int
    head: int
    """Dimensions of a head."""
    inner: int
    """Width of an MLP."""


def rotate_residual(model: Model, rotation: Any) -> None:
    r"""Write the residual stream in the basis of the columns of an orthogonal matrix, in place.

    .. math:: h' = U^T h, \quad W_{read}' = W_{read} \,\mathrm{diag}(g)\, U, \quad
              W_{write}' = U^T W_{write}

    The gains g of the norms go into the weights that read them first: without them, a
    root-mean-square norm commutes with rotations, so that the outputs stay what they were.

    Parameters
    ----------
    model : Model
        Of the Llama family: pre-norm blocks with root-mean-square norms. Changed in place; tied
        embeddings are untied, as the gain of the last norm goes into the output head alone.
    rotation : array (d, d)
        U, e.g. ``MixedBasis.rotation`` of moments of the residual stream.

    Raises
    ------
    UnsupportedError
        The model is built in another way.
    InvalidArgumentError
        Not of the width of the model, or not orthogonal to 1e-6.

    Notes
    -----
    Products in float64, rounded once to the dtype of the weights.

    References
    ----------
    U. Saxena et al.: ResQ, `arXiv:2412.14363 <https://arxiv.org/abs/2412.14363>`_; S. Ashkboos et
    al.: SliceGPT, ICLR 2024, `arXiv:2401.15024 <https://arxiv.org/abs/2401.15024>`_, section 3
    (the invariance).
    """
    import torch

    u = _orthogonal(rotation, model.width)
    frame = frame_of("rotate_residual", model)
    whole = Rotation(residual=u)
    hf = model.hf
    with torch.no_grad():
        for part, weight in outer_weights(model, whole):
            part.weight = torch.nn.Parameter(weight, requires_grad=part.weight.requires_grad)
        hf.config.tie_word_embeddings = False
        for place in frame.places:
            weight, bias = turned(frame, place, whole)
            place.linear.weight.copy_(weight)
            if bias is not None:
                place.linear.bias.copy_(bias)
        for norm in frame.norms:
            norm.weight.fill_(1.0)


def check_rotation(function: str, frame: Frame, rotation: Rotation) -> None:
    """Refuse bases of another model, and those that are not orthogonal to what 16 bits allow."""
    layers, head, width = len(frame.attentions), frame.head, len(frame.norms[0].weight)
    block = 0 if rotation.down is None else int(rotation.down.shape[-1])
    fits = block and frame.inner % block == 0
    wanted = {
        "residual": (width, width),
        "values": (layers, frame.kv_heads, head, head),
        "keys": (layers, head, head),
        "down": (layers, block, block) if fits else (layers, frame.inner, frame.inner),
    }
    for name, shape in wanted.items():
        x = getattr(rotation, name)
        if x is None:
            continue
        if x.shape != shape:
            raise InvalidArgumentError(f"[{function}] {name} must be {shape}, got {x.shape}")
        away = np.abs(x.swapaxes(-1, -2) @ x - np.eye(shape[-1])).max()
        if not away <= 5e-3:
            raise InvalidArgumentError(
                f"[{function}] {name} must be orthogonal to 5e-3, got {away:.1e} off"
            )


def outer_weights(model: Model, rotation: Rotation) -> Iterator[tuple[Any, Any]]:
    """Yield the embedding and the output head, each with its weight in the basis of the stream."""
    hf = model.hf
    gain = hf.base_model.norm.weight.detach().double()
    for part, scale in ((hf.get_input_embeddings(), 1.0), (hf.get_output_embeddings(), gain)):
        old = part.weight.detach()
        yield part, _times(old.double() * scale, rotation.residual).to(old.dtype)


def turned(frame: Frame, place: Place, rotation: Rotation) -> tuple[Any, Any]:
    """Return weight (m, n) and bias of a layer between turned bases, float64 of torch.

    The gain of the norm before it is in the weight, and the input of a last matrix of an MLP is to
    be turned when it runs.
    """
    old, bias = place.linear.weight.detach().double(), place.linear.bias
    bias = None if bias is None else bias.detach().double()
    layer, values = place.layer, rotation.values
    if place.reads == "residual":
        old = _times(old * place.norm.weight.detach().double(), rotation.residual)
    elif place.reads == "heads" and values is not None:  # query heads of a group share its values
        old = _by_block(old, np.repeat(values[layer], frame.heads // frame.kv_heads, axis=0))
    elif place.reads == "down" and rotation.down is not None:
        old = _by_block(old, rotation.down[layer][None])
    both = old if bias is None else _joined(old, bias)
    if place.writes == "residual":
        both = _times(both.T, rotation.residual).T
    elif place.writes == "values" and values is not None:
        both = _by_block(both.T, values[layer]).T
    return (both, None) if bias is None else (both[:, :-1], both[:, -1])


def _times(x: Any, basis: Floats | None) -> Any:
    import torch

    return x if basis is None else x @ torch.as_tensor(basis, device=x.device)


def _by_block(x: Any, bases: Floats) -> Any:
    """Return rows (m, blocks * width) times a basis for each block; one may do for all."""
    import torch

    turn = torch.as_tensor(bases, device=x.device)
    cut = x.reshape(len(x), -1, turn.shape[-1])
    turn = turn.expand(cut.shape[1], -1, -1)
    return torch.einsum("mbi,bij->mbj", cut, turn).reshape(x.shape)


def _joined(weight: Any, bias: Any) -> Any:
    import torch

    return torch.cat([weight, bias[:, None]], dim=1)


def _orthogonal(rotation: Any, width: int) -> np.ndarray:
    _arrays.require_array("rotate_residual", "rotation", rotation)
    _checks.ndim("rotate_residual", "rotation", rotation, 2)
    u = np.asarray(_arrays.to_numpy(rotation), np.float64)
    if u.shape != (width, width):
        raise InvalidArgumentError(
            f"[rotate_residual] rotation must be ({width}, {width}), got {u.shape}"
        )
    away = np.abs(u.T @ u - np.eye(width)).max()
    if not away <= 1e-6:
        raise InvalidArgumentError(
            f"[rotate_residual] rotation must be orthogonal to 1e-6, got {away:.1e} off"
        )
    return u


def frame_of(function: str, model: Model) -> Frame:
    """Return the parts that a change of basis meets, or refuse the model."""
    hf = model.hf
    names = {id(module): name for name, module in hf.named_modules()}
    places, norms, attentions = [], [], []
    try:
        for number, block in enumerate(model.blocks):
            own = dict(block.module.named_children())
            if set(own) != {"self_attn", "mlp", *(name for name, _ in _READERS)}:
                raise AttributeError("blocks have other parts")
            attentions.append(own["self_attn"])
            wanted = [(kind, "residual", own[norm]) for norm, kinds in _READERS for kind in kinds]
            wanted += [(kind, reads, None) for kind, reads in _WRITERS]
            norms += [_gain_only(own[norm]) for norm, _ in _READERS]
            for kind, reads, norm in wanted:
                linear = block.module.get_submodule(kind)
                writes = "residual" if norm is None else "values" * kind.endswith("v_proj")
                places.append(Place(names[id(linear)], kind, number, linear, reads, writes, norm))
        norms.append(_gain_only(hf.base_model.norm))
        plain = [place.linear for place in places] + [hf.get_output_embeddings()]
        if not model.blocks or any(type(one).__name__ != "Linear" for one in plain):
            raise AttributeError("layers are not plain linear ones")
        head = int(attentions[0].head_dim)
    except AttributeError as error:
        raise UnsupportedError(
            f"[{function}] model must be built like Llama, with pre-norm blocks and "
            f"root-mean-square norms, got {type(hf).__name__} ({error})"
        ) from error
    query, _, value, *_ = places
    return Frame(
        places, norms, attentions, query.linear.out_features // head,
        value.linear.out_features // head, head, places[6].linear.in_features,
    )  # fmt: skip


def _gain_only(norm: Any) -> Any:
    if "RMSNorm" not in type(norm).__name__ or "Gemma" in type(norm).__name__:
        raise AttributeError(f"a norm is {type(norm).__name__}")  # Gemma's gain is 1 + weight
    return norm
