"""What an autoencoder must have: arrays that fit, and what its architecture selects by."""

from typing import Any

from subspan._arrays import dtype_name, library_of, require_array, require_same
from subspan._checks import integer, ndim, real
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["ARRAYS", "BY_BATCH", "FLOATS", "GATED", "check_arrays", "check_selection"]

# Their training selects from a whole batch; for inference they have thresholds.
BY_BATCH = ("batch_topk", "matryoshka", "mutual_choice")
FLOATS = ("float16", "bfloat16", "float32", "float64")
GATED = ("r_mag", "b_mag", "b_gate")
ARRAYS = ("w_dec", "w_enc", "b_dec", "b_enc", "threshold", *GATED)


def check_arrays(sae: Any) -> None:
    """Raise unless all arrays fit w_dec."""
    present = {name: getattr(sae, name) for name in ARRAYS}
    if not library_of(sae.threshold):
        present["threshold"] = None
    for name in ("w_dec", "w_enc", "b_dec"):
        require_array("Autoencoder", name, present[name])
    require_same("Autoencoder", **present)
    ndim("Autoencoder", "w_dec", sae.w_dec, 2)
    if sae.dtype not in FLOATS:
        raise DtypeError(
            f"[Autoencoder] w_dec must be one of {', '.join(FLOATS)}, got {sae.dtype}. "
            "Convert it first"
        )
    n, d = (int(extent) for extent in sae.w_dec.shape)
    shapes = {"w_enc": (d, n), "w_dec": (n, d), "b_dec": (d,)}
    for name, x in present.items():
        if x is None:
            continue
        wanted = shapes.get(name, (n,))
        if tuple(x.shape) != wanted:
            raise InvalidArgumentError(
                f"[Autoencoder] {name} must have shape {wanted}, as w_dec has {(n, d)}, got "
                f"{tuple(x.shape)}"
            )
        if dtype_name(x) != sae.dtype:
            raise DtypeError(
                f"[Autoencoder] {name} must be {sae.dtype} like w_dec, got {dtype_name(x)}. "
                "Convert it first"
            )


def check_selection(sae: Any) -> None:
    """Raise unless the architecture has what it selects by; numbers become int and float."""
    kind = sae.architecture
    if kind in {"topk", "matching_pursuit"}:
        _need(sae, "k")
        high = sae.n_latents if kind == "topk" else None
        object.__setattr__(sae, "k", integer("Autoencoder", "k", sae.k, low=1, high=high))
    elif sae.k is not None:
        real("Autoencoder", "k", sae.k, low=0, high=sae.n_latents)
    if kind in {"jumprelu", "feature_choice"}:
        _need(sae, "threshold")
    if kind in BY_BATCH and sae.threshold is None:
        _need(sae, "k", " or threshold")
    if sae.threshold is not None and not library_of(sae.threshold):
        object.__setattr__(sae, "threshold", real("Autoencoder", "threshold", sae.threshold))
    if kind == "gated":
        for name in GATED:
            _need(sae, name)
    if kind in {"gated", "matching_pursuit"} and sae.b_enc is not None:
        raise InvalidArgumentError(
            f"[Autoencoder] b_enc must be None for {kind!r}, which does not use it, got an array"
        )


def _need(sae: Any, name: str, further: str = "") -> None:
    if getattr(sae, name) is None:
        raise InvalidArgumentError(
            f"[Autoencoder] {name}{further} must be given for {sae.architecture!r}, got None"
        )
