"""Files that others published and nobody here writes: Gemma Scope, and OpenAI's autoencoders."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from subspan.errors import FileFormatError, UnsupportedError
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.formats._parts import build
from subspan.sae.formats._tensors import (
    arrays_of,
    damaged,
    read_npz,
    read_safetensors,
    read_torch,
)

__all__ = ["load_gemma_scope", "load_openai"]


def load_gemma_scope(path: str | os.PathLike[str], *, dtype: Any = None) -> Autoencoder:
    """Return the autoencoder in a file of Gemma Scope (``params.npz``) or Gemma Scope 2.

    Parameters
    ----------
    path : path
        The file, or the folder with it; the second has ``params.safetensors``.
    dtype : dtype, optional
        Of the numpy arrays; None: as stored.

    Returns
    -------
    Autoencoder
        "jumprelu" of numpy arrays; b_dec is not subtracted from rows.

    Raises
    ------
    FileFormatError
        The file is missing or damaged.
    UnsupportedError
        It is a transcoder.

    Notes
    -----
    Arrays are ``W_enc`` (d, n), ``W_dec`` (n, d), ``b_enc``, ``b_dec`` and ``threshold`` (n,),
    the weights in small letters too. Those of the embedding take rows divided by sqrt(d).

    Lieberum et al. 2024, `arXiv:2408.05147 <https://arxiv.org/abs/2408.05147>`_.
    """
    function = "load_gemma_scope"
    file = Path(path)
    if file.is_dir():
        names = ("params.npz", "params.safetensors")
        file = next((file / name for name in names if (file / name).is_file()), file / names[0])
    if not file.is_file():
        raise FileFormatError(f"[{function}] {str(path)!r} must be params.npz or a folder with it")
    npz = file.suffix == ".npz"
    state = read_npz(function, file) if npz else read_safetensors(function, file)
    state = {("W_" + name[2:] if name.startswith("w_") else name): x for name, x in state.items()}
    if "affine_skip_connection" in state:
        raise UnsupportedError(
            f"[{function}] {str(file)!r} must be an autoencoder, got a transcoder"
        )
    factor = state.get("scaling_factor")
    if factor is not None and not np.allclose(factor, 1):
        raise damaged(function, file, "have scaling_factor 1", "another")
    names_of = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    w_enc, w_dec, b_enc, b_dec, threshold = arrays_of(function, file, state, *names_of)
    return build(
        function,
        file,
        dtype,
        architecture="jumprelu",
        w_enc=w_enc,
        w_dec=w_dec,
        b_enc=b_enc,
        b_dec=b_dec,
        threshold=threshold,
        pre_bias=False,
    )


def load_openai(path: str | os.PathLike[str], *, dtype: Any = None) -> Autoencoder:
    """Return the autoencoder in a ``.pt`` file of OpenAI's sparse_autoencoder.

    Parameters
    ----------
    path : path
        The file.
    dtype : dtype, optional
        Of the numpy arrays; None: as stored.

    Returns
    -------
    Autoencoder
        Of numpy arrays: "topk" with ``normalize="layer_norm"``, or "relu" without.

    Raises
    ------
    FileFormatError
        The file is missing or damaged.
    UnsupportedError
        The activation is none of these, or torch is not installed.

    Notes
    -----
    Tensors are ``pre_bias`` (d,), ``latent_bias`` (n,), ``encoder.weight`` (n, d) and
    ``decoder.weight`` (d, n), which is missing where it is the encoder transposed. The activation
    TopK implies that rows are normalized. Values are rectified after the selection.

    Gao et al. 2024, `arXiv:2406.04093 <https://arxiv.org/abs/2406.04093>`_; the format is that of
    `github.com/openai/sparse_autoencoder <https://github.com/openai/sparse_autoencoder>`_ at
    4965b94.
    """
    function = "load_openai"
    file = Path(path)
    if not file.is_file():
        raise FileFormatError(f"[{function}] {str(path)!r} must be a file, got none")
    state = read_torch(function, file)
    names = ("encoder.weight", "?decoder.weight", "pre_bias", "latent_bias")
    encoder, decoder, b_dec, b_enc = arrays_of(function, file, state, *names)
    activation = state.get("activation", "ReLU")
    options = state.get("activation_state_dict") or {}
    if activation not in {"ReLU", "TopK"} or options.get("postact_fn", "ReLU") != "ReLU":
        raise UnsupportedError(
            f"[{function}] {str(file)!r} must have the activation ReLU, or TopK of ReLU, got "
            f"{activation} {options}"
        )
    topk = activation == "TopK"
    return build(
        function,
        file,
        dtype,
        architecture="topk" if topk else "relu",
        w_enc=encoder.T,
        w_dec=encoder if decoder is None else decoder.T,
        b_enc=b_enc,
        b_dec=b_dec,
        k=options.get("k") if topk else None,
        normalize="layer_norm" if topk else "none",
    )
