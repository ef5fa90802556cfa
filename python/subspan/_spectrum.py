"""The arithmetic behind subspan.spectrum, on spectra that are sorted and scaled to 1."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from subspan._arrays import to_numpy
from subspan._checks import choice
from subspan.errors import DtypeError, InvalidArgumentError

Kind = Literal["singular", "variance"]
KINDS = ("singular", "variance")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def read(function: str, s: Any, kind: str) -> tuple[Floats, Floats]:
    """Return (singular values, variances), descending, both scaled so that the largest is 1."""
    name = str(getattr(s, "dtype", "float64"))
    values = np.asarray(s if isinstance(s, (list, tuple, int, float)) else to_numpy(s))
    if values.dtype.kind not in "fiu":
        raise DtypeError(f"[{function}] s must be real numbers, got dtype {values.dtype}")
    if values.ndim == 0 or values.shape[-1] == 0:
        raise InvalidArgumentError(
            f"[{function}] s must have at least one value on its last axis, "
            f"got shape {values.shape}"
        )
    eps = _eps(name, values.dtype)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise InvalidArgumentError(f"[{function}] s must be finite, got NaN or infinity")
    values = -np.sort(-values, axis=-1)
    top = values[..., :1]
    # The most negative value decides; abs covers a spectrum without any positive value.
    lowest = values[..., -1]
    if np.any(lowest < -values.shape[-1] * eps * np.abs(top[..., 0])):
        raise InvalidArgumentError(
            f"[{function}] s must not be negative beyond rounding, got {lowest.min():.3g}. "
            "Singular values and eigenvalues of a covariance are >= 0"
        )
    scaled = np.divide(np.maximum(values, 0.0), top, out=np.zeros_like(values), where=top > 0)
    if choice(function, "kind", kind, KINDS) == "singular":
        return scaled, np.square(scaled)
    return np.sqrt(scaled), scaled


def _eps(name: str, dtype: np.dtype[Any]) -> float:
    """Return the rounding unit of the dtype that the spectrum came in (integers are exact)."""
    if name.endswith("bfloat16"):
        return 2.0**-7
    if name.endswith("float16"):
        return 2.0**-10
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else float(np.finfo(np.float64).eps)


def check_share(function: str, value: float) -> float:
    if not (isinstance(value, (int, float, np.floating)) and 0 < value <= 1):
        raise InvalidArgumentError(f"[{function}] share must be a float in (0, 1], got {value!r}")
    return float(value)


def ratio(a: Floats, b: Floats) -> Floats:
    """Return a / b, 0 where b is 0 (only a spectrum of zeros has a zero sum)."""
    out = np.zeros(np.broadcast_shapes(np.shape(a), np.shape(b)))
    result: Floats = np.divide(a, b, out=out, where=np.asarray(b) > 0)
    return result


def entropy_rank(p: Floats) -> Floats:
    p = ratio(p, np.sum(p, axis=-1, keepdims=True))
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    rank = np.exp(-np.sum(p * log_p, axis=-1))
    return np.where(p[..., 0] > 0, rank, 0.0)


def rankme(sigma: Floats, eps: float) -> Floats:
    p = ratio(sigma, np.sum(sigma, axis=-1, keepdims=True)) + eps
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    rank = np.exp(-np.sum(p * log_p, axis=-1))
    return np.where(sigma[..., 0] > 0, rank, 0.0)


def participation_ratio(lam: Floats) -> Floats:
    return ratio(np.square(np.sum(lam, axis=-1)), np.sum(np.square(lam), axis=-1))


def dimension(energy: Floats, share: float) -> Ints:
    r = energy.shape[-1]
    total = energy[..., -1:]
    margin = r * np.finfo(np.float64).eps
    reached = energy >= (share - margin) * total
    return np.where(total[..., 0] > 0, np.argmax(reached, axis=-1) + 1, 0).astype(np.int64)


def tail(lam: Floats, k: int) -> Floats:
    # Summed smallest first, so that a tail far below the head keeps its digits.
    return ratio(np.sum(lam[..., k:][..., ::-1], axis=-1), np.sum(lam, axis=-1))


def decay(lam: Floats, first: int, last: int) -> Floats:
    r = lam.shape[-1]
    part = lam[..., first - 1 : last]
    used = part > r * np.finfo(np.float64).eps
    x = np.broadcast_to(np.log(np.arange(first, last + 1)), part.shape)
    y = np.log(part, out=np.zeros_like(part), where=used)
    n = np.sum(used, axis=-1)
    mean_x = ratio(np.sum(x * used, axis=-1), n)[..., None]
    mean_y = ratio(np.sum(y, axis=-1), n)[..., None]
    cross = np.sum((x - mean_x) * (y - mean_y) * used, axis=-1)
    spread = np.sum(np.square(x - mean_x) * used, axis=-1)
    slope = np.divide(-cross, spread, out=np.full_like(cross, np.nan), where=n >= 2)
    result: Floats = slope + 0.0  # turns the -0.0 of a flat spectrum into 0.0
    return result
