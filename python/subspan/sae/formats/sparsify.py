"""The layout of EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors``."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from subspan._arrays import to_numpy
from subspan.errors import UnsupportedError
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.formats._parts import build, folded, like, unsupported, with_pre_bias
from subspan.sae.formats._tensors import (
    arrays_of,
    damaged,
    in_folder,
    read_json,
    read_safetensors,
    write_folder,
)

__all__ = ["load_sparsify", "save_sparsify"]

_CONFIG, _WEIGHTS = "cfg.json", "sae.safetensors"


def load_sparsify(path: str | os.PathLike[str], *, dtype: Any = None) -> Autoencoder:
    """Return the autoencoder in a folder of sparsify, of one hookpoint.

    Parameters
    ----------
    path : path
        The folder, such as ``layers.10``.
    dtype : dtype, optional
        Of the numpy arrays; None: as stored, for bfloat16 float32.

    Returns
    -------
    Autoencoder
        "topk" of numpy arrays, with the rectifier before the selection, and b_dec subtracted: it
        always is there, whatever ``normalize_decoder`` says.

    Raises
    ------
    FileFormatError
        Files are missing, damaged or contradict each other.
    UnsupportedError
        It is a transcoder, has a skip connection, or selects by groups or signed values.

    Notes
    -----
    Tensors are ``encoder.weight`` (n, d), ``encoder.bias`` (n,), ``W_dec`` (n, d), ``b_dec`` (d,).
    The format is that of sparsify 1.3 (`github.com/EleutherAI/sparsify
    <https://github.com/EleutherAI/sparsify>`_).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae import Autoencoder
    >>> from subspan.sae.formats import load_sparsify, save_sparsify
    >>> w = np.eye(3, dtype=np.float32)
    >>> save_sparsify(Autoencoder("topk", w, w, np.zeros(3, np.float32), k=2), "layers.10")
    >>> load_sparsify("layers.10").relu_first
    True
    """
    function = "load_sparsify"
    folder = in_folder(function, path, _CONFIG, _WEIGHTS)
    config = read_json(function, folder / _CONFIG)
    refused = {
        "activation": config.get("activation", "topk") != "topk",
        "transcode": config.get("transcode", False),
        "skip_connection": config.get("skip_connection", False),
        "signed": config.get("signed", False),
    }
    for name, bad in refused.items():
        if bad:
            raise UnsupportedError(
                f"[{function}] {str(folder)!r} must be an autoencoder that takes the k largest, "
                f"got {name}={config[name]!r}"
            )
    state = read_safetensors(function, folder / _WEIGHTS)
    names = ("encoder.weight", "?encoder.bias", "W_dec", "b_dec")
    w_enc, b_enc, w_dec, b_dec = arrays_of(function, folder / _WEIGHTS, state, *names)
    wanted = (config.get("num_latents") or w_dec.shape[0], config.get("d_in", w_dec.shape[1]))
    if tuple(w_dec.shape) != wanted:
        raise damaged(function, folder, f"have W_dec of shape {wanted}", w_dec.shape)
    return build(
        function,
        folder,
        dtype,
        architecture="topk",
        w_enc=w_enc.T,
        w_dec=w_dec,
        b_dec=b_dec,
        b_enc=b_enc,
        k=config.get("k"),
        relu_first=True,
        metadata={"hook_name": folder.resolve().name},
    )


def save_sparsify(autoencoder: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Write an autoencoder as sparsify does.

    Parameters
    ----------
    autoencoder : Autoencoder
        Of "topk", without ``normalize``.
    path : path
        The folder; files of these names are replaced, and stay as they were if that fails.

    Raises
    ------
    UnsupportedError
        It is of another architecture, or normalizes rows.
    OutputError
        The files cannot be written.

    Notes
    -----
    A scale, and a b_dec that is not subtracted, are folded into the weights; reconstructions stay
    the same. sparsify rectifies before it selects: where a row has fewer than k positive latents,
    the indices of its zeros are others.
    """
    sae, function = autoencoder, "save_sparsify"
    if sae.architecture != "topk" or sae.normalize != "none":
        came = f"{sae.architecture!r} with normalize={sae.normalize!r}"
        raise unsupported(function, "be 'topk' and take rows as they are", came)
    arrays = with_pre_bias(sae, folded(function, sae), True)
    b_enc = arrays["b_enc"]
    norms = np.linalg.norm(to_numpy(arrays["w_dec"]).astype(np.float64), axis=1)
    table = {
        "activation": "topk",
        "expansion_factor": max(1, sae.n_latents // sae.width),
        "normalize_decoder": bool(np.abs(norms - 1).max() < 1e-3),
        "num_latents": sae.n_latents,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.width,
    }
    tensors = {
        "W_dec": arrays["w_dec"],
        "b_dec": arrays["b_dec"],
        "encoder.bias": like(sae, 0.0, sae.n_latents) if b_enc is None else b_enc,
        "encoder.weight": arrays["w_enc"].T,
    }
    write_folder(Path(path), tensors, _WEIGHTS, _CONFIG, table)
