"""Logarithms of sums of Gaussians over pairs, of numpy arrays or torch tensors with gradients.

Sums are `kernel_matvec`, which takes a power for each pair. Where all of a sum underflows, its
logarithm does not: it is `kernel_logsumexp`, in float64.
"""

from typing import Any

import numpy as np

from subspan import _arrays, kernel_logsumexp, kernel_matvec
from subspan.dependence._samples import constant, is_torch, wide

__all__ = ["concatenated", "log", "log_mean", "row_sums", "scaled"]

# Sums below are made by logarithms: what they lack of the smallest terms could show.
_SMALL = {"float32": 1e-30, "float64": 1e-280}


def log(a: Any) -> Any:
    """Return the logarithm, in the library of a."""
    return a.log() if is_torch(a) else np.log(a)


def concatenated(parts: list[Any], axis: int) -> Any:
    """Return arrays side by side (axis 1) or below each other (0)."""
    if not is_torch(parts[0]):
        return np.concatenate(parts, axis=axis)
    import torch

    return torch.cat(parts, dim=axis)


def scaled(*sides: tuple[Any, float]) -> Any:
    """Return samples over their bandwidths side by side, whose Gaussian is a product of theirs."""
    return concatenated([rows / width for rows, width in sides], 1)


def row_sums(x: Any, y: Any) -> Any:
    """Return sum_j exp(-|x_i - y_j|^2 / 2) for every i, in float64."""
    v = _ones(y, int(y.shape[0]))
    return wide(kernel_matvec(x, None if y is x else y, v, kernel="gaussian"))


def log_mean(x: Any, y: Any, weights: Any = None) -> Any:
    """Return log((1/n) sum_i weights_i (1/m) sum_j exp(-|x_i - y_j|^2 / 2)), weights > 0."""
    n, m = int(x.shape[0]), int(y.shape[0])
    sums = row_sums(x, y)
    total = (sums if weights is None else weights * sums).sum() / (n * m)
    size = 1.0 if weights is None else float(constant(weights).max())
    if float(constant(total)) > size * _SMALL[_arrays.dtype_name(x)]:
        return log(total)
    logs = kernel_logsumexp(wide(x), None if y is x else wide(y))
    logs = logs if weights is None else logs + log(weights)
    top = float(constant(logs).max())
    shifted = logs - top
    return log((shifted.exp() if is_torch(logs) else np.exp(shifted)).sum() / (n * m)) + top


def _ones(like: Any, n: int) -> Any:
    return like.new_ones(n) if is_torch(like) else np.ones(n, like.dtype)
