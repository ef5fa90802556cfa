"""A model with its weights changed by a known amount: what a comparison should then find."""

import copy
from math import ceil
from typing import Any

import numpy as np

from subspan import _checks, eigh
from subspan.activations import Model

__all__ = ["perturbed"]


def perturbed(model: Model, *, noise: float = 0.0, keep: float = 1.0, seed: int = 0) -> Model:
    r"""Return a copy of a model whose weight matrices are truncated, then noisy.

    .. math:: W' = W V_r V_r^T + \text{noise} \cdot \mathrm{rms}(W) \, G, \qquad
              r = \lceil \text{keep} \cdot \min(m, n) \rceil

    with the leading right singular vectors :math:`V_r` of W (m x n) and a standard normal G.

    Parameters
    ----------
    model : Model
        From `load_model`; left as it is.
    noise : float >= 0
        Standard deviation of the noise, as a part of the root mean square of each matrix.
    keep : float in (0, 1]
        Part of the singular values of each matrix that stay; the largest do.
    seed : int
        Of the noise.

    Returns
    -------
    Model
        With a name that says what was done. Vectors (norms, biases) stay; a tied weight is
        changed once. Weights of three axes are stacks of matrices.

    Raises
    ------
    InvalidArgumentError
        An option out of range.

    Notes
    -----
    A second copy of the weights. Truncation: an eigenproblem of min(m, n) for each matrix.
    """
    import torch

    level = _checks.real("perturbed", "noise", noise, low=0.0)
    part = _checks.real("perturbed", "keep", keep, low=0.0, high=1.0)
    rng = np.random.default_rng(_checks.integer("perturbed", "seed", seed, low=0))
    hf = copy.deepcopy(model.hf)
    for parameter in hf.parameters():
        if parameter.ndim not in (2, 3):
            continue
        stored = parameter.detach().to(device="cpu", dtype=torch.float32).numpy()
        stack = stored if stored.ndim == 3 else stored[None]
        changed = np.stack([_changed(matrix, level, part, rng) for matrix in stack])
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(changed.reshape(stored.shape)))
    done = [f"noise {level:g}"] * (level > 0) + [f"rank cut to {part:g}"] * (part < 1)
    name = f"{model.name} with {' and '.join(done)}" if done else model.name
    return Model(hf, model.tokenizer, name=name)


def _changed(w: np.ndarray, noise: float, keep: float, rng: np.random.Generator) -> np.ndarray:
    made: Any = w
    if keep < 1.0:
        tall = w.shape[0] >= w.shape[1]
        square = (w.T @ w if tall else w @ w.T).astype(np.float64)
        kept = eigh(square).vectors[:, -max(1, ceil(keep * min(w.shape))) :].astype(np.float32)
        made = (w @ kept) @ kept.T if tall else kept @ (kept.T @ w)
    if noise > 0.0:
        rms = float(np.sqrt(np.mean(np.square(w), dtype=np.float64)))
        made = made + np.float32(noise * rms) * rng.standard_normal(w.shape, np.float32)
    return np.ascontiguousarray(made, np.float32)
