"""What the dictionary says of itself: tokens that latents promote, and latents that are alike."""

from typing import Any, NamedTuple

import numpy as np

from subspan import knn, topk_encode
from subspan.activations import Model

__all__ = ["Effects", "Neighbours", "logit_effects", "neighbours"]


class Effects(NamedTuple):
    """Tokens whose logits a latent raises and lowers most; ``(n, k)``, strongest first."""

    promoted: np.ndarray
    promoted_by: np.ndarray
    suppressed: np.ndarray
    suppressed_by: np.ndarray
    treatment: str
    """How the final norm was treated, in words."""


class Neighbours(NamedTuple):
    """Latents with the highest cosine of their decoder rows, ``(n, k)``, highest first."""

    indices: np.ndarray
    cosine: np.ndarray


def neighbours(w_dec: np.ndarray, k: int) -> Neighbours:
    """Return the k nearest other latents by the cosine of the decoder rows; exact."""
    k = min(k, len(w_dec) - 1)
    if k < 1:
        return Neighbours(np.zeros((len(w_dec), 0), np.int64), np.zeros((len(w_dec), 0)))
    found = knn(w_dec, k=k, metric="cosine")
    return Neighbours(found.indices, 1 - found.distances)


def logit_effects(model: Model, w_dec: np.ndarray, k: int) -> Effects | None:
    """Return the tokens whose logits one unit of each latent raises and lowers most.

    ``effect = (γ * w) @ W_U`` with w the latent's decoder row, γ the weight of the final norm and
    W_U the unembedding; under a LayerNorm, w less its mean. What the norm divides by depends on
    the token, is positive, and is left out, as are biases: none of them changes the order. Later
    blocks that read the latent are not in it. None where the model has no head of that width.

    The effects on all tokens are not stored: they pass through `topk_encode` tile by tile.
    """
    head = model.hf.get_output_embeddings() if model.kind == "causal" else None
    if head is None or int(head.weight.shape[1]) != w_dec.shape[1]:
        return None
    unembedding = head.weight.detach().float().cpu().numpy().T
    rows = np.ascontiguousarray(w_dec, np.float32)
    norm = final_norm(model)
    treatment = "The model has no final norm."
    if norm is not None:
        rows, treatment = _through(norm, rows)
    k = min(k, unembedding.shape[1])
    up = topk_encode(rows, unembedding, k=k, activation="identity")
    down = topk_encode(-rows, unembedding, k=k, activation="identity")
    return Effects(up.indices, up.values, down.indices, -down.values, treatment)


def _through(norm: Any, rows: np.ndarray) -> tuple[np.ndarray, str]:
    """Return decoder rows after the part of the norm that is linear, and what that is.

    The norm is asked, not its class: of x and -x, its bias cancels, and whether adding a constant
    changes anything says whether it centres.
    """
    import torch

    x = torch.ones(rows.shape[1])
    x[1::2] = -1.0
    like = next(norm.parameters(), x)
    with torch.no_grad():
        at = [norm(v.to(like)).float().cpu().numpy() for v in (x, -x, x + 8)]
    probe = x.numpy()
    centres = np.allclose(at[0], at[2], rtol=1e-2, atol=1e-3 * np.abs(at[0]).max())
    if centres:
        rows, probe = rows - rows.mean(axis=1, keepdims=True), probe - probe.mean()
    gain = (at[0] - at[1]) / 2 / (probe / np.sqrt((probe**2).mean()))
    words = "The final norm counts with its weight" + (" and its centring" if centres else "")
    return rows * gain, f"{words}; what it divides by is left out."


def final_norm(model: Model) -> Any:
    """Return the norm between the last block and the head, or None.

    It is the last norm among the modules beside the list of blocks, where every architecture that
    keeps its blocks in one list has it.
    """
    if not model.blocks:
        return None
    parent = model.blocks[0].name.rpartition(".")[0].rpartition(".")[0]
    beside = model.hf.get_submodule(parent) if parent else model.hf
    named = [
        module
        for name, module in beside.named_children()
        if "norm" in type(module).__name__.lower() and "embed" not in name.lower()
    ]
    return named[-1] if named else None
