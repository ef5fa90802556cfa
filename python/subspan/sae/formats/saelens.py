"""The layout of SAELens: ``cfg.json`` and ``sae_weights.safetensors``; ours is the same."""

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from subspan import _checks
from subspan._arrays import library_of
from subspan.errors import FileFormatError, UnsupportedError
from subspan.sae.autoencoder import ARCHITECTURES, Autoencoder
from subspan.sae.formats._parts import build, folded, like, signed, unsupported
from subspan.sae.formats._tensors import (
    arrays_of,
    damaged,
    in_folder,
    read_json,
    read_safetensors,
    write_folder,
)

__all__ = ["load_saelens", "save_saelens"]

_CONFIG, _WEIGHTS, _SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
# Version of the layout that is written; files before 6 had one flat table.
_VERSION = "6.0.0"
_OURS = {"standard": "relu", "batchtopk": "batch_topk", "matryoshka_batchtopk": "matryoshka"}
_THEIRS = {"relu": "standard", "topk": "topk", "gated": "gated"}
_THEIRS |= {"matching_pursuit": "matching_pursuit"}
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
_OWN_PREFIX = "subspan_"
# What cfg.json says about the autoencoder itself; the rest of a flat table is metadata.
_STRUCTURE = {
    *("d_in", "d_sae", "dtype", "device", "architecture", "apply_b_dec_to_input", "metadata"),
    *("normalize_activations", "activation_fn", "activation_fn_str", "activation_fn_kwargs", "k"),
    *("rescale_acts_by_decoder_norm", "finetuning_scaling_factor", "matryoshka_widths", "subspan"),
}


def load_saelens(
    path: str | os.PathLike[str], *, scale: float | None = None, dtype: Any = None
) -> Autoencoder:
    """Return the autoencoder in a folder of SAELens.

    Read are files of SAELens 6 for inference (standard, topk, jumprelu, gated, matching_pursuit),
    its training checkpoints (batchtopk, matryoshka_batchtopk, jumprelu with log thresholds, topk
    with decoder norms in the scores) and the flat ``cfg.json`` of versions before 6.

    Parameters
    ----------
    path : path
        The folder.
    scale : float, optional
        The factor of x for ``normalize_activations: expected_average_only_in``, sqrt(d) over the
        mean norm of rows in training. None: from ``activation_scaler.json`` beside, which
        checkpoints have; finished files have it in the weights, and say "none".
    dtype : dtype, optional
        Of the numpy arrays; None: as stored, for bfloat16 float32.

    Returns
    -------
    Autoencoder
        Of numpy arrays. What SAELens saved as jumprelu stays that; what `save` wrote is what it
        was.

    Raises
    ------
    FileFormatError
        Files are missing, damaged or contradict each other.
    UnsupportedError
        The architecture or an option is none of the above.
    InvalidArgumentError
        A scale is needed, and neither given nor found.

    Notes
    -----
    ``rescale_acts_by_decoder_norm`` is folded into the weights, which changes neither codes nor
    reconstructions. Thresholds are strict, ``z > threshold``.

    The format is that of SAELens 6.54 (`github.com/decoderesearch/SAELens
    <https://github.com/decoderesearch/SAELens>`_).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae import Autoencoder
    >>> from subspan.sae.formats import load_saelens, save_saelens
    >>> w = np.eye(3, dtype=np.float32)
    >>> save_saelens(Autoencoder("topk", w, w, np.zeros(3, np.float32), k=2), "mine")
    >>> load_saelens("mine")
    Autoencoder('topk', width=3, n_latents=3, k=2, numpy float32)
    """
    function = "load_saelens"
    folder = in_folder(function, path, _CONFIG, _WEIGHTS)
    config = read_json(function, folder / _CONFIG)
    own = _own(config)
    config = _modern(function, folder, config)
    state = read_safetensors(function, folder / _WEIGHTS)
    if "log_threshold" in state:
        state["threshold"] = np.exp(state["log_threshold"].astype(np.float64))
    kind = config["architecture"]
    parts = _reader(function, folder, kind)(function, folder, config, state)
    w_dec, b_dec = arrays_of(function, folder / _WEIGHTS, state, "W_dec", "b_dec")
    parts = {"w_dec": w_dec, "b_dec": b_dec} | parts
    parts = _rescaled(parts, config, state, function, folder)
    normalize = config["normalize_activations"]
    if normalize == "expected_average_only_in":
        normalize, scale = "none", _found_scale(function, folder, scale)
    metadata = {name: value for name, value in config["metadata"].items() if name != "subspan"}
    options = {
        "architecture": _OURS.get(kind, kind),
        "pre_bias": bool(config.get("apply_b_dec_to_input", True)),
        "normalize": normalize,
        "scale": 1.0 if scale is None else _checks.real(function, "scale", scale),
        "metadata": metadata,
    }
    if (d := config.get("d_in")) is not None and tuple(w_dec.shape) != (config.get("d_sae"), d):
        raise damaged(
            function, folder, f"have W_dec of shape {(config.get('d_sae'), d)}", w_dec.shape
        )
    return build(function, folder, dtype, **options | parts | own)


def save_saelens(autoencoder: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Write an autoencoder as SAELens writes it, for inference.

    Parameters
    ----------
    autoencoder : Autoencoder
    path : path
        The folder; files of these names are replaced, and stay as they were if that fails.

    Raises
    ------
    UnsupportedError
        SAELens cannot express it: a batch architecture without a threshold, feature_choice with a
        threshold below 0, or matching pursuit with a scale or with a bias that it does not
        subtract. `save` can.
    OutputError
        The files cannot be written.

    Notes
    -----
    topk, gated, relu (there: standard), jumprelu and matching_pursuit are there what they are here.
    Batch architectures and feature_choice become jumprelu, the threshold repeated for every latent:
    their inference. A scale is folded into the weights. What SAELens does not know (k, groups, the
    architecture's own name, ``relu_first``) is in ``metadata["subspan"]``, which SAELens keeps and
    ignores, and which `load_saelens` reads again.
    """
    reason = _inexpressible(autoencoder)
    if reason:
        raise unsupported("save_saelens", *reason)
    _write(autoencoder, Path(path), _THEIRS.get(autoencoder.architecture, "jumprelu"))


def save_own(autoencoder: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Write the layout of SAELens, with an architecture of our own name where it has none."""
    kind = _THEIRS.get(autoencoder.architecture, "jumprelu")
    if _inexpressible(autoencoder):
        kind = _OWN_PREFIX + autoencoder.architecture
    _write(autoencoder, Path(path), kind)


def _inexpressible(sae: Autoencoder) -> tuple[str, str] | None:
    """Return what SAELens wants and what came, or None."""
    if sae.architecture == "matching_pursuit":
        if sae.scale != 1:
            return "have scale=1 for 'matching_pursuit'", str(sae.scale)
        if not sae.pre_bias and bool((sae.b_dec != 0).any()):
            return "subtract b_dec for 'matching_pursuit'", "pre_bias=False and a b_dec"
    elif sae.architecture not in _THEIRS and sae.threshold is None:
        return f"have a threshold for {sae.architecture!r}", "None: it selects from batches"
    elif signed(sae):
        return "have no threshold below 0", "some: negative values pass"
    return None


def _write(sae: Autoencoder, folder: Path, kind: str) -> None:
    function = "save_saelens"
    own_kind = kind.startswith(_OWN_PREFIX)
    arrays = folded(function, sae) if not own_kind else {}
    arrays = arrays or {name: getattr(sae, name) for name in ("w_enc", "w_dec", "b_dec", "b_enc")}
    n = sae.n_latents
    tensors = {"W_dec": arrays["w_dec"], "b_dec": arrays["b_dec"]}
    options: dict[str, Any] = {}
    if sae.architecture == "matching_pursuit":
        options = {"max_iterations": sae.k, "residual_threshold": sae.tolerance}
        options["stop_on_duplicate_support"] = sae.no_repeats
    else:
        tensors["W_enc"] = arrays["w_enc"]
    if kind == "gated":
        tensors |= {name: arrays[name] for name in ("r_mag", "b_mag", "b_gate")}
    elif sae.architecture != "matching_pursuit":
        b_enc = arrays["b_enc"]
        tensors["b_enc"] = like(sae, 0.0, n) if b_enc is None else b_enc
    if kind == "jumprelu" or (own_kind and sae.threshold is not None):
        bars = sae.threshold
        tensors["threshold"] = bars if library_of(bars) else like(sae, bars, n)
    if kind == "topk":
        options = {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    metadata = {"sae_lens_version": _VERSION, "sae_lens_training_version": None}
    table = {
        "d_in": sae.width,
        "d_sae": n,
        "dtype": sae.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": sae.pre_bias,
        "normalize_activations": sae.normalize,
        "reshape_activations": "none",
        "architecture": kind,
        **options,
        "metadata": metadata | sae.metadata | {"subspan": _described(sae, own_kind)},
    }
    write_folder(folder, tensors, _WEIGHTS, _CONFIG, table)


def _described(sae: Autoencoder, whole: bool) -> dict[str, Any]:
    """Return what the tensors and SAELens' own words do not say."""
    said: dict[str, Any] = {"architecture": sae.architecture, "relu_first": sae.relu_first}
    said["group_sizes"] = list(sae.group_sizes)
    if sae.architecture not in {"topk", "matching_pursuit"}:  # whose k SAELens knows
        said["k"] = sae.k
    said["one_threshold"] = sae.threshold is not None and not library_of(sae.threshold)
    return said | ({"scale": sae.scale} if whole else {})


# ---- reading -----------------------------------------------------------------------------------


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `_described` wrote, as arguments of Autoencoder."""
    metadata = config.get("metadata")
    said = metadata.get("subspan") if isinstance(metadata, Mapping) else None
    if not isinstance(said, Mapping) or said.get("architecture") not in ARCHITECTURES:
        return {}
    known = ("architecture", "relu_first", "k", "group_sizes", "scale")
    return {name: said[name] for name in known if name in said}


def _modern(function: str, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the table of version 6, from whatever version."""
    if not isinstance(config.get("metadata"), Mapping):
        flat = {_RENAMED.get(name, name): value for name, value in config.items()}
        rest = {name: value for name, value in flat.items() if name not in _STRUCTURE}
        config = {name: value for name, value in flat.items() if name in _STRUCTURE}
        config["metadata"] = rest
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    kwargs = config.get("activation_fn_kwargs") or {}
    kind = config.get("architecture", "standard")
    if activation == "topk":
        kind, config = "topk", config | {"k": kwargs.get("k", config.get("k"))}
        if kwargs.get("signed"):
            raise UnsupportedError(
                f"[{function}] {str(folder)!r} must select positive values, got signed top-k"
            )
    elif activation != "relu":
        raise UnsupportedError(
            f"[{function}] {str(folder)!r} must have the activation 'relu' or 'topk', got "
            f"{activation!r}"
        )
    normalize = config.get("normalize_activations")
    if isinstance(normalize, bool) or normalize is None:  # of the first versions
        normalize = "expected_average_only_in" if normalize else "none"
    return config | {"architecture": kind, "normalize_activations": normalize}


def _reader(function: str, folder: Path, kind: str) -> Any:
    if kind.startswith(_OWN_PREFIX) and kind.removeprefix(_OWN_PREFIX) in ARCHITECTURES:
        own = {"matching_pursuit": _pursuit, "feature_choice": _jumprelu}
        return own.get(kind.removeprefix(_OWN_PREFIX), _plain)
    readers = {
        "standard": _plain,
        "topk": _topk,
        "jumprelu": _jumprelu,
        "gated": _gated,
        "batchtopk": _batch,
        "matryoshka_batchtopk": _batch,
        "matching_pursuit": _pursuit,
    }
    if kind not in readers:
        raise UnsupportedError(
            f"[{function}] {str(folder)!r} must be of one of the architectures "
            f"{', '.join(readers)}, got {kind!r}"
        )
    return readers[kind]


def _plain(
    function: str, folder: Path, _: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    names = ("W_enc", "?b_enc")
    arrays = arrays_of(function, folder / _WEIGHTS, state, *names)
    return dict(zip(("w_enc", "b_enc"), arrays, strict=True))


def _topk(
    function: str, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    return _plain(function, folder, config, state) | {"k": config.get("k", 100)}


def _jumprelu(
    function: str, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    (bars,) = arrays_of(function, folder / _WEIGHTS, state, "threshold")
    own = (config["metadata"].get("subspan") or {}).get("one_threshold")
    bars = float(bars[0]) if own and len(bars) else bars
    return _plain(function, folder, config, state) | {"threshold": bars}


def _gated(
    function: str, folder: Path, _: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    names = {"W_enc": "w_enc", "r_mag": "r_mag", "b_mag": "b_mag", "b_gate": "b_gate"}
    arrays = arrays_of(function, folder / _WEIGHTS, state, *names)
    return dict(zip(names.values(), arrays, strict=True))


def _batch(
    function: str, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a training checkpoint, whose one threshold is an average over batches."""
    (bar,) = arrays_of(function, folder / _WEIGHTS, state, "topk_threshold")
    parts = _plain(function, folder, config, state)
    parts |= {"threshold": float(bar), "k": config.get("k", 100)}
    if widths := list(config.get("matryoshka_widths") or ()):
        n = parts["w_enc"].shape[1]
        widths += [n] if widths[-1] != n else []
        parts["group_sizes"] = tuple(b - a for a, b in pairwise([0, *widths]))
    return parts


def _pursuit(
    function: str, folder: Path, config: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, Any]:
    w_dec, b_dec = arrays_of(function, folder / _WEIGHTS, state, "W_dec", "b_dec")
    steps = config.get("max_iterations") or w_dec.shape[1]
    ours = config["architecture"].startswith(_OWN_PREFIX)
    adds = ours or config.get("apply_b_dec_to_input", True)
    return {
        "w_enc": None,
        "k": steps,
        "b_dec": b_dec if adds else np.zeros_like(b_dec),
        "tolerance": max(0.0, config.get("residual_threshold", 1e-2)),
        "no_repeats": bool(config.get("stop_on_duplicate_support", True)),
    }


def _rescaled(
    parts: dict[str, Any],
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    function: str,
    folder: Path,
) -> dict[str, Any]:
    """Fold what multiplies codes: decoder norms, and the factors of a fine-tuning."""
    kind = config["architecture"]
    by_default = kind in {"batchtopk", "matryoshka_batchtopk"}
    if kind in {"topk", "batchtopk", "matryoshka_batchtopk"} and config.get(
        "rescale_acts_by_decoder_norm", by_default
    ):
        norms = np.linalg.norm(parts["w_dec"].astype(np.float64), axis=1)
        norms = np.maximum(norms, 1e-8).astype(parts["w_dec"].dtype)
        parts |= {"w_enc": parts["w_enc"] * norms, "w_dec": parts["w_dec"] / norms[:, None]}
        if parts["b_enc"] is not None:
            parts["b_enc"] = parts["b_enc"] * norms
    factor = state.get("scaling_factor")
    if factor is not None and not np.allclose(factor, 1):
        if not config.get("finetuning_scaling_factor"):
            raise damaged(
                function, folder / _WEIGHTS, "have no scaling_factor, as cfg.json says", "one"
            )
        parts["w_dec"] = parts["w_dec"] * factor[:, None]
    return parts


def _found_scale(function: str, folder: Path, scale: float | None) -> float:
    if scale is not None:
        return scale
    file = folder / _SCALER
    found = read_json(function, file).get("scaling_factor") if file.is_file() else None
    if found is None:
        raise FileFormatError(
            f"[{function}] scale must be given for normalize_activations="
            f"'expected_average_only_in', as {str(folder)!r} has no {_SCALER}, got None. Pass "
            "scale = sqrt(d) / mean norm of the rows it was trained on, or 1.0 if the weights "
            "take rows as they are"
        )
    return _checks.real(function, "scaling_factor", found)
