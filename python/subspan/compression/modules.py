"""Torch layers that run on what stands for a weight: two factors, a dictionary, or integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from subspan.compression.matrices import Integers, LowRank, Replacement, SparseDictionary

__all__ = [
    "STAND_INS",
    "DictionaryLinear",
    "FactoredLinear",
    "RoundedLinear",
    "Rounding",
    "make_layer",
    "round_groups",
]


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


def round_groups(x: Any, bits: int) -> Any:
    """Return ``quantize(x, bits).dequantize()`` for groups along the last axis, by torch."""
    top = 2**bits - 1
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    empty = low == high
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    scales = (high - low) / top
    zeros = torch.round(-low / scales)
    return (torch.clamp(torch.round(x / scales) + zeros, 0, top) - zeros) * scales


class Rounding(nn.Module):  # type: ignore[misc]
    """Round rows as they come, the last ``high`` of each block to more bits; keep count of errors.

    Low and high coordinates have scales of their own, for each block or for all ``together``.
    """

    def __init__(self, blocks: int, high: int, bits: tuple[int, int], *, together: bool) -> None:
        super().__init__()
        self.blocks, self.high, self.bits, self.together = blocks, high, bits, together
        self.error = self.power = 0.0

    def forward(self, x: Any) -> Any:
        """Return the rows (..., blocks * width) as integers and scales would hold them."""
        wide = x if x.dtype == torch.float64 else x.float()
        cut = wide.unflatten(-1, (self.blocks, -1))
        split = cut.shape[-1] - self.high
        parts = []
        for part, bits in ((cut[..., :split], self.bits[0]), (cut[..., split:], self.bits[1])):
            group = part.flatten(-2) if self.together else part
            parts.append(round_groups(group, bits).reshape(part.shape) if part.numel() else part)
        made = torch.cat(parts, dim=-1).flatten(-2)
        self.error += float((made - wide).double().square().sum())
        self.power += float(wide.double().square().sum())
        return made.to(x.dtype)

    @property
    def relative_error(self) -> float:
        """Error of all rows so far over their size, root mean square."""
        return float((self.error / self.power) ** 0.5) if self.power else 0.0

    def extra_repr(self) -> str:
        """Return blocks and bits, for printing."""
        low, high = self.bits
        return f"blocks={self.blocks}, bits={low}, high={self.high} of {high} bits"


class RoundedLinear(nn.Module):  # type: ignore[misc]
    """A dense layer whose input may be turned, block by block, and rounded first."""

    def __init__(self, weight: Any, bias: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("turn", None)
        self.rounding: Rounding | None = None

    def forward(self, x: Any) -> Any:
        """Return the outputs (..., m) of inputs (..., n)."""
        if self.turn is not None:
            x = (x.unflatten(-1, (-1, len(self.turn))) @ self.turn).flatten(-2)
        if self.rounding is not None:
            x = self.rounding(x)
        return nn.functional.linear(x, self.weight, self.bias)

    def matrix(self) -> Any:
        """Return the weight (m, n) for inputs that are not turned."""
        if self.turn is None:
            return self.weight.detach().clone()
        cut = self.weight.detach().unflatten(-1, (-1, len(self.turn)))
        return (cut @ self.turn.T).flatten(-2)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"{self.in_features}, {self.out_features}"


STAND_INS = (FactoredLinear, DictionaryLinear, RoundedLinear)


def make_layer(made: Replacement, old: Any) -> Any:
    """Return the layer for a replacement, in the dtype and on the device of the old one.

    The bias of the old layer and that of the replacement add up; that of integers, which are in a
    basis of their own, takes the place of the old one. None for a dense one.
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
    if isinstance(made, Integers):
        if made.bias is not None:
            bias = torch.as_tensor(made.bias).to(**home).clone()
        return _marked(RoundedLinear(torch.from_numpy(made.to_dense()).to(**home), bias), old)
    return None


def _marked(made: Any, old: Any) -> Any:
    """Note if the old layer kept its weight transposed, as GPT-2: its files are to stay so."""
    made.of_conv1d = type(old).__name__ == "Conv1D"
    return made
