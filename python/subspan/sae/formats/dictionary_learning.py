"""The layout of saprmarks' dictionary_learning: ``ae.pt`` and ``config.json``."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from subspan import _checks
from subspan._arrays import library_of
from subspan.errors import FileFormatError, UnsupportedError
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.formats._parts import (
    build,
    folded,
    like,
    scalar_threshold,
    signed,
    unsupported,
    with_pre_bias,
)
from subspan.sae.formats._tensors import arrays_of, read_json, read_torch, write_torch

__all__ = ["load_dictionary_learning", "save_dictionary_learning"]

_WEIGHTS, _CONFIG = "ae.pt", "config.json"
# Their class: our architecture, and whether it subtracts b_dec first.
_CLASSES = {
    "AutoEncoder": ("relu", True),
    "AutoEncoderNew": ("relu", False),
    "GatedAutoEncoder": ("gated", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
    "AutoEncoderTopK": ("topk", True),
    "BatchTopKSAE": ("batch_topk", True),
    "MatryoshkaBatchTopKSAE": ("matryoshka", True),
}
# Our names, and theirs where weights are those of torch.nn.Linear and where they are not.
_LINEAR = {"w_enc": "encoder.weight", "w_dec": "decoder.weight"}
_BARE = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
_BIASES = {
    "AutoEncoder": {"b_enc": "encoder.bias", "b_dec": "bias"},
    "AutoEncoderNew": {"b_enc": "encoder.bias", "b_dec": "decoder.bias"},
    "GatedAutoEncoder": {
        "b_dec": "decoder_bias",
        "r_mag": "r_mag",
        "b_mag": "mag_bias",
        "b_gate": "gate_bias",
    },
    "AutoEncoderTopK": {"b_enc": "encoder.bias", "b_dec": "b_dec"},
    "BatchTopKSAE": {"b_enc": "encoder.bias", "b_dec": "b_dec"},
}


def load_dictionary_learning(
    path: str | os.PathLike[str], *, dict_class: str | None = None, dtype: Any = None
) -> Autoencoder:
    """Return the autoencoder in a folder or file of dictionary_learning.

    Parameters
    ----------
    path : path
        The folder, or the file in it: ``ae.pt``, or a checkpoint such as ``ae_1000.pt``.
    dict_class : str, optional
        The class there, such as "BatchTopKSAE". None: from ``config.json`` beside, else from the
        names of the tensors, which are the same for AutoEncoderTopK and BatchTopKSAE.
    dtype : dtype, optional
        Of the numpy arrays; None: as stored, for bfloat16 float32.

    Returns
    -------
    Autoencoder
        Of numpy arrays. A threshold of -1, which was never set, is None: then batches decide.

    Raises
    ------
    FileFormatError
        Files are missing or damaged, or the class is not known.
    UnsupportedError
        The class is none of those that are served, or torch is not installed.

    Notes
    -----
    The file is read without running code in it (``weights_only``). JumpReluAutoEncoder and
    AutoEncoderNew do not subtract b_dec. A backup that training left, whose biases are not yet in
    the units of the rows, gets its ``norm_factor`` as scale.

    The format is that of `github.com/saprmarks/dictionary_learning
    <https://github.com/saprmarks/dictionary_learning>`_ at 60ec6bf (2025-08-20).
    """
    function = "load_dictionary_learning"
    path = Path(path)
    file = path / _WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise FileFormatError(f"[{function}] {str(path)!r} must be a folder with {_WEIGHTS}, or it")
    state = read_torch(function, file)
    scale = 1.0
    if isinstance(state.get("ae"), Mapping):
        scale = 1 / float(state.get("norm_factor") or 1.0)
        state = state["ae"]
    configs = [each / _CONFIG for each in (file.parent, file.parent.parent)]
    config = next((read_json(function, each) for each in configs if each.is_file()), {})
    trainer = config.get("trainer") or {}
    kind = dict_class or trainer.get("dict_class") or _guess(function, file, state)
    if kind not in _CLASSES:
        raise UnsupportedError(
            f"[{function}] dict_class must be one of {', '.join(_CLASSES)}, got {kind!r}"
        )
    architecture, pre_bias = _CLASSES[kind]
    names = _LINEAR | _BIASES[kind] if kind in _BIASES else dict(_BARE)
    if architecture == "jumprelu":
        names["threshold"] = "threshold"
    parts = dict(zip(names, arrays_of(function, file, state, *names.values()), strict=True))
    if kind in _BIASES:
        parts |= {name: parts[name].T for name in ("w_enc", "w_dec")}
    if architecture in {"topk", "batch_topk", "matryoshka"}:
        k = state["k"] if "k" in state else trainer.get("k")
        parts["k"] = None if k is None else int(k)
    if architecture in {"batch_topk", "matryoshka"}:
        bar = float(state.get("threshold", -1.0))
        parts["threshold"] = bar if bar >= 0 else None
    if architecture == "matryoshka":
        (sizes,) = arrays_of(function, file, state, "group_sizes")
        parts["group_sizes"] = tuple(sizes.tolist())
    parts |= {"relu_first": architecture == "topk", "scale": scale, "pre_bias": pre_bias}
    metadata = {
        name: trainer[name] for name in ("lm_name", "layer", "submodule_name") if name in trainer
    }
    return build(function, file, dtype, architecture=architecture, metadata=metadata, **parts)


def _guess(function: str, file: Path, state: Mapping[str, Any]) -> str:
    """Return the class that has tensors of these names."""
    if "W_enc" in state:
        return "MatryoshkaBatchTopKSAE" if "group_sizes" in state else "JumpReluAutoEncoder"
    for name, kind in (("gate_bias", "GatedAutoEncoder"), ("decoder.bias", "AutoEncoderNew")):
        if name in state:
            return kind
    if "bias" in state:
        return "AutoEncoder"
    raise FileFormatError(
        f"[{function}] dict_class must be given for {str(file)!r}, as it has no {_CONFIG} beside, "
        f"got None and the tensors {', '.join(map(str, state))}. Pass 'AutoEncoderTopK' or "
        "'BatchTopKSAE'"
    )


def save_dictionary_learning(autoencoder: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Write an autoencoder as dictionary_learning does.

    Parameters
    ----------
    autoencoder : Autoencoder
        Any but matching pursuit, without ``normalize``.
    path : path
        The folder; files of these names are replaced, and stay as they were if that fails.

    Raises
    ------
    UnsupportedError
        It cannot be expressed there: matching pursuit, ``normalize``, a k that is no whole number,
        several thresholds for a batch architecture, one below 0 for feature_choice. Or torch is not
        installed.
    OutputError
        The files cannot be written.

    Notes
    -----
    A scale is folded into the weights, and so is b_dec where their class subtracts it and ours does
    not, or the other way; reconstructions stay the same. mutual_choice becomes BatchTopKSAE,
    feature_choice JumpReluAutoEncoder.
    """
    sae, function = autoencoder, "save_dictionary_learning"
    kind = _class_of(sae)
    if kind is None or sae.normalize != "none":
        came = f"{sae.architecture!r} with normalize={sae.normalize!r}"
        raise unsupported(function, "be none of pursuit and take rows as they are", came)
    if signed(sae):
        raise unsupported(function, "have no threshold below 0", "some: negative values pass")
    arrays = with_pre_bias(sae, folded(function, sae), _CLASSES[kind][1])
    if arrays["b_enc"] is None and sae.architecture != "gated":
        arrays["b_enc"] = like(sae, 0.0, sae.n_latents)
    if kind == "JumpReluAutoEncoder" and not library_of(arrays["threshold"]):
        arrays["threshold"] = like(sae, float(sae.threshold), sae.n_latents)
    arrays["threshold"] = arrays["threshold"] if kind == "JumpReluAutoEncoder" else None

    import torch

    names = _LINEAR | _BIASES[kind] if kind in _BIASES else dict(_BARE)
    names |= {"threshold": "threshold"} if kind == "JumpReluAutoEncoder" else {}
    state = {}
    for name, theirs in names.items():
        array = arrays[name].T if theirs in _LINEAR.values() else arrays[name]
        tensor = array.detach().cpu() if library_of(array) == "torch" else _tensor(torch, array)
        state[theirs] = tensor.contiguous()
    trainer: dict[str, Any] = {"dict_class": kind, "activation_dim": sae.width}
    trainer |= {"dict_size": sae.n_latents, "submodule_name": sae.metadata.get("hook_name")}
    trainer |= {name: sae.metadata.get(name) for name in ("lm_name", "layer")}
    if kind in {"AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"}:
        trainer["k"] = _whole_k(function, sae)
        state["k"] = torch.tensor(trainer["k"], dtype=torch.int)
        bar = -1.0 if sae.threshold is None else scalar_threshold(function, sae)
        state["threshold"] = torch.tensor(bar, dtype=torch.float32)
    if kind == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor(sae.group_sizes or (sae.n_latents,))
    write_torch(Path(path), state, _WEIGHTS, _CONFIG, {"trainer": trainer})


def _class_of(sae: Autoencoder) -> str | None:
    if sae.architecture == "relu":
        return "AutoEncoder" if sae.pre_bias else "AutoEncoderNew"
    same = {"mutual_choice": "batch_topk", "feature_choice": "jumprelu"}
    wanted = same.get(sae.architecture, sae.architecture)
    return next((name for name, (kind, _) in _CLASSES.items() if kind == wanted), None)


def _whole_k(function: str, sae: Autoencoder) -> int:
    if sae.k is None or sae.k != int(sae.k) or sae.k < 1:
        raise unsupported(function, "have a whole k >= 1", str(sae.k))
    return _checks.integer(function, "k", int(sae.k), low=1)


def _tensor(torch: Any, array: Any) -> Any:
    if array.dtype.name == "bfloat16":  # of ml_dtypes, which torch does not take
        return torch.tensor(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.tensor(np.ascontiguousarray(array))
