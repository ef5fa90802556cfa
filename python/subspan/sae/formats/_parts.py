"""Between the arrays of a file and an autoencoder: what every format shares."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subspan._arrays import library_of
from subspan.errors import FileFormatError, SubspanError, UnsupportedError
from subspan.sae.autoencoder import Autoencoder

__all__ = ["build", "folded", "like", "scalar_threshold", "signed", "unsupported", "with_pre_bias"]

_ARRAYS = ("w_enc", "w_dec", "b_dec", "b_enc", "threshold", "r_mag", "b_mag", "b_gate")


def build(function: str, path: Path, dtype: Any, **parts: Any) -> Autoencoder:
    """Return the autoencoder of these parts, with arrays of one dtype: None is that of w_dec."""
    wanted = parts["w_dec"].dtype if dtype is None else np.dtype(dtype)
    for name in _ARRAYS:
        if isinstance(parts.get(name), np.ndarray):
            parts[name] = parts[name].astype(wanted, copy=False)
    try:
        return Autoencoder(**parts)
    except SubspanError as error:
        raise FileFormatError(
            f"[{function}] {str(path)!r} must hold a whole autoencoder, got: {error}"
        ) from error


def signed(sae: Autoencoder) -> bool:
    """Return whether negative values may pass, which JumpReLU of other libraries never lets."""
    bars = sae.threshold
    if sae.architecture != "feature_choice" or bars is None:
        return False
    return bool((bars < 0).any()) if library_of(bars) else bool(bars < 0)


def unsupported(function: str, wanted: str, came: str) -> UnsupportedError:
    """Return the error for what a format cannot say."""
    return UnsupportedError(
        f"[{function}] autoencoder must {wanted} for this format, got {came}. "
        "Use format='subspan', which holds all"
    )


def like(sae: Autoencoder, value: float, *shape: int) -> Any:
    """Return an array of one value, of the library and dtype of the weights."""
    if sae.library == "torch":
        return sae.b_dec.new_full(shape, value)
    return np.full(shape, value, sae.b_dec.dtype)


def folded(function: str, sae: Autoencoder) -> dict[str, Any]:
    """Return the arrays with the scale folded in; codes and reconstructions stay the same.

    With s the scale ``(s x - b_dec) @ w_enc = (x - b_dec / s) @ (s w_enc)``; x̂ is divided by s.
    """
    arrays = {name: getattr(sae, name) for name in _ARRAYS}
    if sae.scale == 1:
        return arrays
    if sae.architecture == "matching_pursuit":
        raise unsupported(function, "have scale=1 for 'matching_pursuit'", f"{sae.scale}")
    return arrays | {
        "w_enc": arrays["w_enc"] * sae.scale,
        "w_dec": arrays["w_dec"] / sae.scale,
        "b_dec": arrays["b_dec"] / sae.scale,
    }


def with_pre_bias(sae: Autoencoder, arrays: Mapping[str, Any], wanted: bool) -> dict[str, Any]:
    """Return the arrays for an encoder that subtracts b_dec first, or does not.

    ``(x - b_dec) @ w_enc + b_enc = x @ w_enc + (b_enc - b_dec @ w_enc)``
    """
    out = dict(arrays)
    if wanted == sae.pre_bias:
        return out
    shift = out["b_dec"] @ out["w_enc"]
    shift = shift if wanted else -shift
    if sae.architecture == "gated":
        exp = _exp(out["r_mag"])
        return out | {"b_gate": out["b_gate"] + shift, "b_mag": out["b_mag"] + shift * exp}
    return out | {"b_enc": shift if out["b_enc"] is None else out["b_enc"] + shift}


def _exp(x: Any) -> Any:
    """Return exp of an array of numpy or torch."""
    return x.exp() if library_of(x) == "torch" else np.exp(x)


def scalar_threshold(function: str, sae: Autoencoder) -> float:
    """Return the threshold if it is one number for all latents."""
    bars = sae.threshold
    if not library_of(bars):
        return float(bars)
    if float(bars.min()) != float(bars.max()):
        raise unsupported(function, "have one threshold for all latents", "several")
    return float(bars.min())
