"""Files of autoencoders: our own, and those of the libraries that people use.

`load` finds out what lies in a folder; `save` writes what can be loaded elsewhere. Nothing that a
file holds is executed, files appear whole or not at all, and what a format cannot say is refused.
"""

import os
from pathlib import Path
from typing import Any

from subspan import _checks
from subspan.errors import FileFormatError
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.formats._tensors import read_torch
from subspan.sae.formats.dictionary_learning import (
    load_dictionary_learning,
    save_dictionary_learning,
)
from subspan.sae.formats.published import load_gemma_scope, load_openai
from subspan.sae.formats.saelens import load_saelens, save_own, save_saelens
from subspan.sae.formats.sparsify import load_sparsify, save_sparsify

__all__ = [
    "FORMATS",
    "load",
    "load_dictionary_learning",
    "load_gemma_scope",
    "load_openai",
    "load_saelens",
    "load_sparsify",
    "save",
    "save_dictionary_learning",
    "save_saelens",
    "save_sparsify",
]

_SAVERS = {
    "subspan": save_own,
    "saelens": save_saelens,
    "sparsify": save_sparsify,
    "dictionary_learning": save_dictionary_learning,
}
FORMATS = tuple(_SAVERS)
"""Formats that `save` writes."""
# A file that only one format has, and its reader.
_SIGNS = {
    "sae_weights.safetensors": load_saelens,
    "sae.safetensors": load_sparsify,
    "ae.pt": load_dictionary_learning,
    "params.npz": load_gemma_scope,
    "params.safetensors": load_gemma_scope,
}


def load(path: str | os.PathLike[str], **options: Any) -> Autoencoder:
    """Return the autoencoder in a folder or file of any format that is known.

    ================================================  ==================================
    folder with, or file                              reader
    ================================================  ==================================
    ``sae_weights.safetensors`` (ours is the same)    `load_saelens`
    ``sae.safetensors``                               `load_sparsify`
    ``ae.pt``, other ``.pt``                          `load_dictionary_learning`
    ``params.npz``, other ``.npz``                    `load_gemma_scope`
    ``.pt`` with a ``pre_bias``                       `load_openai`
    ================================================  ==================================

    Parameters
    ----------
    path : path
    **options
        Those of the reader, such as ``dtype``.

    Returns
    -------
    Autoencoder
        Of numpy arrays; `Autoencoder.to_torch` makes tensors of them.

    Raises
    ------
    FileFormatError
        There is no file that is known, or it is damaged.
    UnsupportedError
        What it holds is not served.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae import Autoencoder
    >>> from subspan.sae.formats import load, save
    >>> w = np.eye(3, dtype=np.float32)
    >>> sae = Autoencoder("batch_topk", w, w, np.zeros(3, np.float32), k=2, threshold=0.5)
    >>> save(sae, "mine")
    >>> load("mine")
    Autoencoder('batch_topk', width=3, n_latents=3, k=2, numpy float32)
    """
    place = Path(path)
    if place.is_dir():
        for name, reader in _SIGNS.items():
            if (place / name).is_file():
                return reader(place, **options)
        there = ", ".join(sorted(each.name for each in place.iterdir())[:8]) or "an empty folder"
        raise FileFormatError(
            f"[load] {str(place)!r} must have one of {', '.join(_SIGNS)}, got {there}"
        )
    if place.name in _SIGNS:
        return _SIGNS[place.name](place, **options)
    if place.suffix == ".npz":
        return load_gemma_scope(place, **options)
    if place.suffix == ".pt" and place.is_file():
        openai = "pre_bias" in read_torch("load", place)
        return (
            load_openai(place, **options) if openai else load_dictionary_learning(place, **options)
        )
    raise FileFormatError(
        f"[load] {str(place)!r} must be a folder, or one of the files {', '.join(_SIGNS)}, got "
        + ("another file" if place.exists() else "nothing there")
    )


def save(
    autoencoder: Autoencoder, path: str | os.PathLike[str], *, format: str = "subspan"
) -> None:
    """Write an autoencoder to a folder.

    Parameters
    ----------
    autoencoder : Autoencoder
        Of numpy or torch arrays, of any float dtype.
    path : path
        Files that are there stay as they were if the new ones cannot be written.
    format : {"subspan", "saelens", "sparsify", "dictionary_learning"}
        "subspan": the layout of SAELens, which SAELens loads too; what SAELens cannot express is
        written all the same, with an architecture ``subspan_...`` that only `load` knows.

    Raises
    ------
    UnsupportedError
        The format cannot express it.
    OutputError
        The files cannot be written.

    Notes
    -----
    A scale is folded into the weights wherever that is exact. Metadata must be what JSON can hold;
    "sparsify" has no place for it, and "dictionary_learning" keeps the model, layer and hook.
    """
    _SAVERS[_checks.choice("save", "format", format, FORMATS)](autoencoder, path)
