"""What a weight matrix becomes: dense, two factors, a dictionary with sparse codes, or integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from subspan import _arrays, sparse_decode
from subspan.compression._inputs import Floats
from subspan.compression._packing import (
    pack_indices,
    pack_numbers,
    round_to,
    unpack_indices,
    unpack_numbers,
)
from subspan.compression.quantize import quantize
from subspan.compression.storage import (
    Part,
    Storage,
    dense_storage,
    dictionary_storage,
    low_rank_storage,
    quantized_storage,
)
from subspan.errors import FileFormatError

__all__ = ["Dense", "Integers", "LowRank", "Replacement", "SparseDictionary", "from_arrays"]

_LAYOUT = 6  # numbers that say how integers lie


@dataclass(frozen=True)
class Replacement:
    """Stands for a weight (..., m, n); what all forms have in common."""

    kind: ClassVar[str]

    error: Any
    """(...) predicted error in the norm that the method minimises, float64."""
    total: Any
    """(...) norm of the weight itself in that norm, float64."""
    note: str
    """What the caller ought to know; empty if all is as asked."""

    @property
    def relative_error(self) -> Any:
        """``error / total``; 0 where both are."""
        error, total = np.asarray(self.error), np.asarray(self.total)
        return error / np.where(total > 0, total, 1.0)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        raise NotImplementedError

    def to_dense(self) -> Any:
        """Return the weight (..., m, n) that this stands for."""
        raise NotImplementedError

    def storage(self, *, bits: int = 16) -> Storage:
        """Return what one matrix takes at ``bits`` bits a value, indices included."""
        raise NotImplementedError

    def arrays(self) -> dict[str, Any]:
        """Return the tensors of a file, which together have the bytes of `storage`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Dense(Replacement):
    """The weight itself, where nothing smaller was to be had."""

    kind: ClassVar[str] = "dense"

    weight: Any

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        return int(self.weight.shape[-2]), int(self.weight.shape[-1])

    def to_dense(self) -> Any:
        """Return the weight that this stands for."""
        return self.weight

    def storage(self, *, bits: int = 16) -> Storage:
        """Return what it takes at ``bits`` bits a value."""
        return dense_storage(*self.shape, bits=bits)

    def arrays(self) -> dict[str, Any]:
        """Return the tensors of a file."""
        return {"weight": self.weight}


@dataclass(frozen=True)
class LowRank(Replacement):
    """``W' = left @ right``, and a bias to be added to the output if the method is affine."""

    kind: ClassVar[str] = "low_rank"

    left: Any
    """(..., m, r)"""
    right: Any
    """(..., r, n)"""
    bias: Any = None
    """(..., m) or None"""

    @property
    def rank(self) -> int:
        """Columns of ``left``."""
        return int(self.left.shape[-1])

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        return int(self.left.shape[-2]), int(self.right.shape[-1])

    def to_dense(self) -> Any:
        """Return the weight that this stands for."""
        return self.left @ self.right

    def storage(self, *, bits: int = 16) -> Storage:
        """Return what it takes at ``bits`` bits a value."""
        m, n = self.shape
        bias = 0 if self.bias is None else m
        return low_rank_storage(m, n, self.rank, bits=bits, bias=bias)

    def arrays(self) -> dict[str, Any]:
        """Return the tensors of a file."""
        found = {"A": self.left, "B": self.right}
        return found if self.bias is None else found | {"bias": self.bias}


@dataclass(frozen=True)
class SparseDictionary(Replacement):
    """``W'^T = dictionary @ codes``, each column of the codes with ``sparsity`` entries."""

    kind: ClassVar[str] = "dictionary"

    dictionary: Any
    """(n, k)"""
    values: Any
    """(m, s)"""
    indices: Any
    """(m, s) int64, ascending in each row; entries that are not needed have the value 0."""
    history: tuple[float, ...] = ()
    """Error after each accepted step."""

    @property
    def atoms(self) -> int:
        """Columns of the dictionary."""
        return int(self.dictionary.shape[1])

    @property
    def sparsity(self) -> int:
        """Atoms of a coded row."""
        return int(self.values.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        return int(self.values.shape[0]), int(self.dictionary.shape[0])

    def to_dense(self) -> Any:
        """Return the weight that this stands for."""
        return sparse_decode(self.values, self.indices, self.dictionary.T)

    def codes(self) -> Any:
        """Return the codes as a dense matrix (k, m), of numpy."""
        values, indices = _arrays.to_numpy(self.values), _arrays.to_numpy(self.indices)
        codes = np.zeros((self.atoms, len(values)), values.dtype)
        codes[indices.T, np.arange(len(values))] = values.T
        return codes

    def storage(self, *, bits: int = 16) -> Storage:
        """Return what it takes at ``bits`` bits a value."""
        return dictionary_storage(*self.shape, self.atoms, self.sparsity, bits=bits)

    def arrays(self) -> dict[str, Any]:
        """Return the tensors of a file."""
        indices = _arrays.to_numpy(self.indices)
        packed = pack_indices(indices, self.atoms)
        return {
            "dict": self.dictionary,
            "codes_val": self.values,
            "codes_idx": _arrays.from_numpy(self.values, packed),
        }


@dataclass(frozen=True)
class Integers(Replacement):
    """``W' = values * scales`` row by row; the last columns of each block may be wider.

    It stands for the weight in the basis in which it was rounded.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.compression import Integers
    >>> w = np.random.default_rng(0).normal(size=(16, 64))
    >>> made = Integers.of(w, bits=(4, 8), high=8)
    >>> made.storage().to_dict()
    {'layout': 24, 'values': 576, 'scales': 64, 'total': 664}
    >>> bool(made.relative_error < 0.15)
    True
    """

    kind: ClassVar[str] = "integers"

    low: Any
    """(m, blocks * low columns) int16"""
    low_scales: Any
    """(m,)"""
    high: Any
    """(m, blocks * high columns) int16, possibly none"""
    high_scales: Any
    """(m,), or (0,) without high columns"""
    blocks: int
    bits: tuple[int, int]
    """Of a low and of a high integer."""
    bias: Any = None
    """(m,), or None; it replaces that of the layer."""

    @classmethod
    def of(
        cls, weight: Floats, *, bits: tuple[int, int], blocks: int = 1, high: int = 0,
        clip: bool = True, bias: Any = None, dtype: str = "float16",
    ) -> Integers:  # fmt: skip
        """Round a weight row by row; see `quantize`.

        Parameters
        ----------
        weight : ndarray (m, n)
            float64.
        bits : tuple of int
            Of most columns, and of the high ones.
        blocks, high : int
            ``high`` columns at the end of each of ``blocks`` equal blocks are the high ones.
        clip : bool
            As for `quantize`.
        bias : ndarray (m,), optional
            Goes along.
        dtype : {"float16", "bfloat16", "float32"}
            Of the scales.
        """
        m = len(weight)
        cut = weight.reshape(m, blocks, -1)
        split = cut.shape[-1] - high
        parts: list[Any] = []
        for part, width in ((cut[..., :split], bits[0]), (cut[..., split:], bits[1])):
            if not part.size:
                parts += [np.zeros((m, 0), np.int16), np.zeros(0, np.float32)]
                continue
            made = quantize(part.reshape(m, -1), width, symmetric=True, clip=clip)
            scales = round_to(made.scales[:, 0], dtype)
            parts += [made.values.astype(np.int16), scales]
        low, low_scales, high_values, high_scales = parts
        found = cls(
            0.0, float(np.linalg.norm(weight)), "", low, low_scales, high_values, high_scales,
            blocks, bits, bias,
        )  # fmt: skip
        return replace(found, error=float(np.linalg.norm(found.to_dense() - weight)))

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        return int(self.low.shape[0]), int(self.low.shape[1] + self.high.shape[1])

    def to_dense(self) -> Any:
        """Return the weight that this stands for, float32 of numpy."""
        m = len(self.low)
        parts = [
            (values * scales[:, None]).reshape(m, self.blocks, -1)
            for values, scales in (
                (self.low, _float32(self.low_scales)), (self.high, _float32(self.high_scales))
            )
            if values.size
        ]  # fmt: skip
        return np.concatenate(parts, axis=-1).reshape(self.shape)

    def storage(self, *, bits: int = 16) -> Storage:
        """Return what it takes with scales of ``bits`` bits."""
        made = Storage((Part("layout", _LAYOUT * 4, 8),))
        for values, width in zip((self.low, self.high), self.bits, strict=True):
            if values.size:
                group = int(values.shape[1])
                made += quantized_storage(values.size, bits=width, group=group, scale_bits=bits)
        return made if self.bias is None else made + Storage((Part("bias", len(self.bias), bits),))

    def arrays(self) -> dict[str, Any]:
        """Return the tensors of a file."""
        layout = [*self.shape, self.blocks, self.high.shape[1] // self.blocks, *self.bits]
        found: dict[str, Any] = {"layout": np.array(layout, "<u4").view(np.uint8)}
        parts = (("low", self.low, self.low_scales), ("high", self.high, self.high_scales))
        for (name, values, scales), width in zip(parts, self.bits, strict=True):
            if values.size:
                found[name] = pack_numbers(values.astype(np.int64) + 2 ** (width - 1), width)
                found[f"{name}_scales"] = scales
        return found if self.bias is None else found | {"bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], error: float, total: float) -> Integers:
        """Return the matrix whose `arrays` these are."""
        layout = _arrays.to_numpy(arrays["layout"])
        if layout.size != _LAYOUT * 4:
            raise FileFormatError(
                f"[Integers] the layout must have {_LAYOUT * 4} bytes, got {layout.size}"
            )
        m, n, blocks, high, *bits = (int(x) for x in layout.view("<u4"))
        if not blocks or n % blocks or high * blocks > n or not all(2 <= x <= 16 for x in bits):
            raise FileFormatError(
                f"[Integers] the layout must be that of an integer matrix, got {layout.tolist()}"
            )
        parts: list[Any] = []
        for name, columns, width in (("low", n - blocks * high, bits[0]),
                                     ("high", blocks * high, bits[1])):  # fmt: skip
            if not columns:
                parts += [np.zeros((m, 0), np.int16), np.zeros(0, np.float32)]
                continue
            packed = _arrays.to_numpy(arrays[name])
            values = unpack_numbers("Integers", packed, m * columns, width) - 2 ** (width - 1)
            parts += [values.astype(np.int16).reshape(m, columns), arrays[f"{name}_scales"]]
        low, low_scales, high_values, high_scales = parts
        return cls(
            error, total, "", low, low_scales, high_values, high_scales, blocks,
            (bits[0], bits[1]), arrays.get("bias"),
        )  # fmt: skip


def _float32(x: Any) -> Any:
    return np.asarray(_arrays.to_numpy(x), np.float32)


def from_arrays(kind: str, arrays: Mapping[str, Any], *, error: float, total: float) -> Replacement:
    """Return the replacement whose `arrays` these are."""
    try:
        if kind == "dense":
            return Dense(error, total, "", arrays["weight"])
        if kind == "low_rank":
            return LowRank(error, total, "", arrays["A"], arrays["B"], arrays.get("bias"))
        if kind == "dictionary":
            dictionary, values = arrays["dict"], arrays["codes_val"]
            packed = _arrays.to_numpy(arrays["codes_idx"])
            m, sparsity = (int(extent) for extent in values.shape)
            indices = unpack_indices(packed, m, sparsity, int(dictionary.shape[1]))
            made = _arrays.from_numpy(values, indices)
            return SparseDictionary(error, total, "", dictionary, values, made)
        if kind == "integers":
            return Integers.from_arrays(arrays, error, total)
    except KeyError as missing:
        raise FileFormatError(
            f"[from_arrays] {kind} needs the tensor {missing}, got none"
        ) from None
    raise FileFormatError(f"[from_arrays] kind must be known, got {kind!r}")
