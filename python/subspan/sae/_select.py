"""Selections that are made of several steps: gates, and pursuit; for arrays of any library."""

import sys
from typing import Any

import numpy as np

from subspan import RaggedCode, SparseCode, sparse_decode, threshold_encode, topk_encode
from subspan._arrays import library_of

__all__ = ["gate_threshold", "gated_encode", "namespace", "pursue"]


def namespace(x: Any) -> Any:
    """Return the module whose functions take ``x``."""
    return sys.modules.get(library_of(x), np) if library_of(x) in {"torch", "cupy"} else np


def gate_threshold(r_mag: Any, b_mag: Any, b_gate: Any) -> Any:
    """Return the threshold (n,) of the shared product above which a gated latent is active.

    With u the product of rows and encoder, the gate is open where u + b_gate > 0 and the magnitude
    is positive where u exp(r_mag) + b_mag > 0: both hold above the larger of two numbers.
    """
    xp = namespace(b_gate)
    return xp.maximum(-b_gate, -b_mag * xp.exp(-r_mag))


def gated_encode(
    x: Any, w_enc: Any, b_pre: Any = None, *, r_mag: Any, b_mag: Any, b_gate: Any
) -> RaggedCode:
    """Return the code of gated latents, u exp(r_mag) + b_mag where the gate is open."""
    bars = gate_threshold(r_mag, b_mag, b_gate)
    if library_of(bars) == "torch":
        bars = bars.detach()
    code = threshold_encode(x, w_enc, threshold=bars, b_pre=b_pre)
    xp = namespace(code.values)
    sizes, biases = (_taken(v, code.indices) for v in (xp.exp(r_mag), b_mag))
    values = code.values * sizes + biases
    # Just above the threshold rounding may leave less than zero.
    return code._replace(values=xp.where(values > 0, values, xp.zeros_like(values)))


def _taken(x: Any, indices: Any) -> Any:
    """Return x[indices]; of torch with a gradient that adds in order."""
    return x.index_select(0, indices) if library_of(x) == "torch" else x[indices]


def pursue(
    x: Any, w_dec: Any, b_pre: Any, k: int, *, tolerance: float = 0.0, no_repeats: bool = False
) -> SparseCode:
    """Return the code of matching pursuit: k times the best row of w_dec for what is left of x.

    Where no row of w_dec has a positive product with the rest, the pursuit of a row ends: further
    values are zero. So it does once the rest is shorter than ``tolerance``, and with ``no_repeats``
    after a step that took a latent for the second time.
    """
    rest = x if b_pre is None else x - b_pre
    steps: list[SparseCode] = []
    ended: Any = None
    for _ in range(k):
        step = topk_encode(rest, w_dec.T, k=1, precision="certified")
        if ended is not None:
            step = step._replace(values=step.values * ~ended)
        rest = rest - sparse_decode(*step, w_dec)
        now = step.values < 0  # nowhere
        if tolerance > 0:
            now |= ((rest * rest).sum(-1) < tolerance**2)[..., None]
        if no_repeats:
            for before in steps:
                now |= before.indices == step.indices
        ended = now if ended is None else ended | now
        steps.append(step)
    join = namespace(x).cat if library_of(x) == "torch" else namespace(x).concatenate
    return SparseCode(*(join(parts, -1) for parts in zip(*steps, strict=True)))
