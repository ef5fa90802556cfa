"""Torch layers that run on what stands for a weight: two factors, or a dictionary and codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from subspan.compression.matrices import LowRank, Replacement, SparseDictionary

__all__ = ["DictionaryLinear", "FactoredLinear", "make_layer"]


class FactoredLinear(nn.Module):  # type: ignore[misc]
    """``y = A (B x) + bias``: r (m + n) multiplications a token where a dense layer has m n."""

    def __init__(self, a: Any, b: Any, bias: Any = None) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(a), nn.Parameter(b)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.in_features, self.out_features = b.shape[1], a.shape[0]

    def forward(self, x: Any) -> Any:
        """Return the outputs (..., m) of inputs (..., n)."""
        return nn.functional.linear(nn.functional.linear(x, self.B), self.A, self.bias)

    def matrix(self) -> Any:
        """Return the weight (m, n) that it stands for."""
        return (self.A @ self.B).detach()

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"{self.in_features}, {self.out_features}, rank={self.A.shape[1]}"


class DictionaryLinear(nn.Module):  # type: ignore[misc]
    """``y = C^T (D^T x) + bias``; codes are stored sparse and multiplied dense."""

    def __init__(self, dictionary: Any, codes: Any, bias: Any = None) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(dictionary)
        self.register_buffer("codes", codes)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.in_features, self.out_features = dictionary.shape[0], codes.shape[1]

    def forward(self, x: Any) -> Any:
        """Return the outputs (..., m) of inputs (..., n)."""
        return nn.functional.linear(x @ self.dictionary, self.codes.T, self.bias)

    def matrix(self) -> Any:
        """Return the weight (m, n) that it stands for."""
        return (self.dictionary @ self.codes).T.detach()

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"{self.in_features}, {self.out_features}, atoms={self.dictionary.shape[1]}"


def make_layer(made: Replacement, old: Any) -> Any:
    """Return the layer for a replacement, in the dtype and on the device of the old one.

    The bias of the old layer and that of the replacement add up. None for a dense one.
    """
    home = {"device": old.weight.device, "dtype": old.weight.dtype}
    bias = None if old.bias is None else old.bias.detach().clone()
    if isinstance(made, LowRank):
        if made.bias is not None:
            extra = torch.as_tensor(made.bias).to(**home)
            bias = extra.clone() if bias is None else bias + extra
        a, b = (torch.as_tensor(x).to(**home).clone() for x in (made.left, made.right))
        return _marked(FactoredLinear(a, b, bias), old)
    if isinstance(made, SparseDictionary):
        dictionary = torch.as_tensor(made.dictionary).to(**home).clone()
        codes = torch.from_numpy(made.codes()).to(**home)
        return _marked(DictionaryLinear(dictionary, codes, bias), old)
    return None


def _marked(made: Any, old: Any) -> Any:
    """Note if the old layer kept its weight transposed, as GPT-2: its files are to stay so."""
    made.of_conv1d = type(old).__name__ == "Conv1D"
    return made
