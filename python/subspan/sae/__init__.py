"""Sparse autoencoders: trained, judged, read from and written to files, used on plain arrays.

An `Autoencoder` is a finished one: weights and a rule of selection, on numpy or torch arrays,
without torch if the arrays are numpy's. What is trained are torch modules, which are imported when
one of them is asked for (``pip install 'subspan[models]'``).
"""

import importlib
from typing import Any

from subspan.sae.autoencoder import ARCHITECTURES as ARCHITECTURES
from subspan.sae.autoencoder import Autoencoder as Autoencoder

# Names that need torch, and where they are.
_LAZY: dict[str, str] = {}

__all__ = ["ARCHITECTURES", "Autoencoder"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
