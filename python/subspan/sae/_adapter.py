"""Any autoencoder as a function of rows: its array library, its dtype, and its refusals."""

import sys
from typing import Any

import numpy as np

from subspan import _arrays
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.sae.autoencoder import Autoencoder

__all__ = ["Coder"]


class Coder:
    """Hands rows to an autoencoder in the library and dtype that it takes, and back as numpy.

    ``sae`` is anything with ``reconstruct(x)``; a trainable one is exported first. What it says of
    itself (``library``, ``dtype``, ``width``) is believed; without it, it gets float32 of torch
    where torch is loaded, else of numpy.
    """

    def __init__(self, function: str, sae: Any) -> None:
        if hasattr(sae, "export"):
            sae = sae.export()
        if not hasattr(sae, "reconstruct"):
            raise DtypeError(
                f"[{function}] sae must have reconstruct(x), got {type(sae).__name__}. Load a file "
                "with Autoencoder.load"
            )
        self.function, self.sae = function, sae
        self._library = getattr(sae, "library", None) or ("torch" if _torch() else "numpy")
        self._dtype = str(getattr(sae, "dtype", None) or "float32").rpartition(".")[2]
        self.encodes = isinstance(sae, Autoencoder)

    def reconstruct(self, x: Any) -> np.ndarray:
        """Return the reconstruction of rows (m, d), float32 or float64."""
        return self._checked(x, self.sae.reconstruct(self._own(x)))

    def encode(self, x: Any) -> Any:
        """Return the code of rows (m, d), in the library of the autoencoder."""
        self._check_width(x)
        return self.sae.encode(self._own(x))

    def decode(self, x: Any, code: Any) -> np.ndarray:
        """Return what ``code``, that of rows x, stands for."""
        return self._checked(x, self.sae.decode(code, self._own(x)))

    def _own(self, x: Any) -> Any:
        """Return rows as the autoencoder takes them."""
        self._check_width(x)
        if self._library == "torch":
            torch = _torch(load=True)
            tensor = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
            where = getattr(self.sae, "device", None) or tensor.device
            return tensor.to(device=where, dtype=getattr(torch, self._dtype))
        return _arrays.to_numpy(x).astype(self._dtype, copy=False)

    def _check_width(self, x: Any) -> None:
        width = getattr(self.sae, "width", None)
        if width is not None and int(width) != int(x.shape[-1]):
            raise InvalidArgumentError(
                f"[{self.function}] sae must have the width of the site, {int(x.shape[-1])}, got "
                f"{int(width)}. It belongs to another model or site"
            )

    def _checked(self, x: Any, made: Any) -> np.ndarray:
        out = _arrays.to_numpy(made)
        if out.shape != tuple(x.shape) or not np.isfinite(out).all():
            what = f"shape {out.shape}" if out.shape != tuple(x.shape) else "NaN or infinity"
            raise InvalidArgumentError(
                f"[{self.function}] sae.reconstruct must return finite rows of shape "
                f"{tuple(x.shape)}, got {what}"
            )
        return out if out.dtype == np.float64 else out.astype(np.float32, copy=False)


def _torch(*, load: bool = False) -> Any:
    if load:
        import torch

        return torch
    return sys.modules.get("torch")
