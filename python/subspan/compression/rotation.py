"""A model whose residual stream is written in another orthogonal basis, with the same outputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from subspan import _arrays, _checks
from subspan.activations import Model
from subspan.errors import InvalidArgumentError, UnsupportedError

__all__ = ["rotate_residual"]

_READERS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
_WRITERS = ("self_attn.o_proj", "mlp.down_proj")


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
    parts = _parts(model)
    turn = torch.from_numpy(np.array(u))
    hf = model.hf
    with torch.no_grad():
        embedding, head = hf.get_input_embeddings(), hf.get_output_embeddings()
        if head.weight is embedding.weight:
            head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
            hf.config.tie_word_embeddings = False
        embedding.weight.copy_(embedding.weight.double() @ turn.to(embedding.weight.device))
        for norm, readers in parts["read"]:
            gain = norm.weight.double()
            for linear in readers:
                home = turn.to(linear.weight.device)
                linear.weight.copy_((linear.weight.double() * gain) @ home)
            norm.weight.fill_(1.0)
        for linear in parts["write"]:
            home = turn.to(linear.weight.device)
            linear.weight.copy_(home.T @ linear.weight.double())
            if linear.bias is not None:
                linear.bias.copy_(linear.bias.double() @ home)


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


def _parts(model: Model) -> dict[str, Any]:
    """Return norms with the layers that read them, and the layers that write the stream."""
    hf = model.hf
    try:
        read, write = [], []
        for block in model.blocks:
            own = dict(block.module.named_children())
            if set(own) != {"self_attn", "mlp", *(name for name, _ in _READERS)}:
                raise AttributeError("blocks have other parts")
            for name, readers in _READERS:
                linears = [block.module.get_submodule(reader) for reader in readers]
                read.append((_gain_only(own[name]), linears))
            write += [block.module.get_submodule(name) for name in _WRITERS]
        read.append((_gain_only(hf.base_model.norm), [hf.get_output_embeddings()]))
        every = [linear for _, linears in read for linear in linears] + write
        if not model.blocks or any(type(one).__name__ != "Linear" for one in every):
            raise AttributeError("layers are not plain linear ones")
    except AttributeError as error:
        raise UnsupportedError(
            "[rotate_residual] model must be built like Llama, with pre-norm blocks and "
            f"root-mean-square norms, got {type(hf).__name__} ({error})"
        ) from error
    return {"read": read, "write": write}


def _gain_only(norm: Any) -> Any:
    if "RMSNorm" not in type(norm).__name__ or "Gemma" in type(norm).__name__:
        raise AttributeError(f"a norm is {type(norm).__name__}")  # Gemma's gain is 1 + weight
    return norm
