"""What training modules are given, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from subspan._arrays import dtype_name
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["check_dead", "checked_rows", "float_dtype"]


def checked_rows(function: str, x: Any, width: int) -> Tensor:
    """Return x if it is a tensor (..., width) of floats."""
    if not torch.is_tensor(x) or not x.is_floating_point():
        came = f"a tensor of {dtype_name(x)}" if torch.is_tensor(x) else type(x).__name__
        raise DtypeError(
            f"[{function}] x must be a torch tensor of floats, got {came}. Convert it first"
        )
    if x.dim() < 1 or x.shape[-1] != width:
        raise InvalidArgumentError(
            f"[{function}] x must have shape (..., {width}) like the weights, got {tuple(x.shape)}"
        )
    return x


def check_dead(dead: Any, n: int) -> None:
    """Raise unless dead is None or a mask of latents."""
    if dead is None:
        return
    if not torch.is_tensor(dead) or dead.dtype != torch.bool:
        came = f"one of {dtype_name(dead)}" if torch.is_tensor(dead) else type(dead).__name__
        raise DtypeError(f"[SAE.loss] dead must be a tensor of bool, got {came}")
    if tuple(dead.shape) != (n,):
        raise InvalidArgumentError(
            f"[SAE.loss] dead must have shape ({n},), one for each latent, got {tuple(dead.shape)}"
        )


def float_dtype(function: str, dtype: Any) -> torch.dtype:
    """Return a dtype of torch, given by itself or by name."""
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if kind not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise DtypeError(
            f"[{function}] dtype must be float16, bfloat16, float32 or float64, got {dtype}"
        )
    return kind
