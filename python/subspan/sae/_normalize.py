"""What is done to every row before it is encoded, and undone afterwards."""

import sys
from typing import Any

import numpy as np

from subspan._arrays import library_of

__all__ = ["NORMALIZE", "normalized", "statistics"]

NORMALIZE = ("none", "constant_norm_rescale", "layer_norm")
_EPS = 1e-5  # of layer_norm: added to the standard deviation


def statistics(x: Any, normalize: str) -> tuple[Any, Any]:
    """Return what is added to every row of x̂ (..., d) in the end, and multiplied with before."""
    if normalize == "none":
        return 0.0, 1.0
    torch = sys.modules["torch"] if library_of(x) == "torch" else None
    axis: dict[str, Any] = {"dim": -1, "keepdim": True} if torch else {"axis": -1, "keepdims": True}
    if normalize == "layer_norm":
        deviation = x.std(**axis) if torch else x.std(**axis, ddof=1)  # torch divides by d - 1
        return x.mean(**axis), deviation
    norm: Any = torch.linalg.vector_norm if torch else np.linalg.norm
    size = norm(x, **axis) / x.shape[-1] ** 0.5
    return 0.0, size + (size == 0)  # a row of zeros stays one


def normalized(x: Any, normalize: str, undo: tuple[Any, Any]) -> Any:
    """Return the rows of x for the encoder, by their `statistics`.

    As in SAELens and OpenAI's code the small number is for the way in only.
    """
    if normalize == "none":
        return x
    return (x - undo[0]) / (undo[1] + _EPS if normalize == "layer_norm" else undo[1])
