"""Logarithms of sums of Gaussians over pairs, of numpy arrays or torch tensors with gradients.

Sums are `kernel_matvec`. Where all of a sum underflows, its logarithm does not: it is made of
weights of softmax, in float64.
"""

from typing import Any

import numpy as np

from subspan import _arrays, kernel_matvec, knn
from subspan.dependence._samples import constant, is_torch, wide

__all__ = ["concatenated", "log", "log_mean", "row_sums", "scaled"]

# Sums below are made anew: what they lack of the smallest terms could show.
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
    if _arrays.dtype_name(x) == "float32":
        return log_mean(wide(x), wide(y), weights)
    logs = _log_row_sums(x, y) + (0.0 if weights is None else log(weights))
    top = float(constant(logs).max())
    shifted = logs - top
    return log((shifted.exp() if is_torch(logs) else np.exp(shifted)).sum() / (n * m)) + top


def _log_row_sums(x: Any, y: Any) -> Any:
    """Return log sum_j exp(-|x_i - y_j|^2 / 2) in float64, however far y is.

    A row of y is added whose score is that of the nearest y_j, for each x_i. All others together
    have between 1 and m times its weight.
    """
    middle = constant(y.mean(0))
    x, y = x - middle, y - middle
    near = knn(constant(x), constant(y), k=1, metric="sqeuclidean").distances[:, 0]
    squares = (x * x).sum(1)
    score = (constant(squares) - wide(near)) / 2
    left = concatenated([x, _ones(x, len(x))[:, None], score[:, None]], 1)
    of_y = -(y * y).sum(1)[:, None] / 2
    right = concatenated([y, of_y, 0.0 * of_y], 1)
    added = concatenated([0.0 * right[:1, 1:], _ones(x, 1)[:, None]], 1)
    right = concatenated([right, added], 0)
    others = _ones(x, len(right))
    others[-1] = 0.0
    apart = concatenated([others[:, None], 1.0 - others[:, None]], 1)
    weights = kernel_matvec(left, right, apart, kernel="softmax")
    return log(weights[:, 0] / weights[:, 1]) + score - squares / 2


def _ones(like: Any, n: int) -> Any:
    return like.new_ones(n) if is_torch(like) else np.ones(n, like.dtype)
