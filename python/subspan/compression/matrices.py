"""What a weight matrix becomes: kept dense, two factors, or a dictionary with sparse codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from subspan import _arrays, sparse_decode
from subspan.compression.storage import (
    Storage,
    dense_storage,
    dictionary_storage,
    index_bits,
    low_rank_storage,
)
from subspan.errors import FileFormatError

__all__ = ["Dense", "LowRank", "Replacement", "SparseDictionary", "from_arrays"]


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


def pack_indices(indices: np.ndarray, atoms: int) -> np.ndarray:
    """Return ascending indices (m, s) as the bits that `index_bits` counts, in uint8."""
    m, sparsity = indices.shape
    way, width = index_bits(atoms, sparsity)
    if way == "mask":
        bits = np.zeros((m, atoms), np.uint8)
        np.put_along_axis(bits, indices, 1, axis=1)
    else:
        shifts = np.arange(width // sparsity)
        bits = ((indices[..., None] >> shifts) & 1).astype(np.uint8)
    return np.packbits(bits)


def unpack_indices(packed: np.ndarray, m: int, sparsity: int, atoms: int) -> np.ndarray:
    """Return the indices (m, s) that were packed."""
    way, width = index_bits(atoms, sparsity)
    if packed.size != (m * width + 7) // 8:
        raise FileFormatError(
            f"[SparseDictionary] indices must have {(m * width + 7) // 8} bytes, got {packed.size}"
        )
    bits = np.unpackbits(packed, count=m * width)
    if way == "mask":
        rows = bits.reshape(m, atoms)
        if (rows.sum(axis=1) != sparsity).any():
            raise FileFormatError(
                f"[SparseDictionary] masks must have {sparsity} bits each, got others"
            )
        return np.nonzero(rows)[1].reshape(m, sparsity).astype(np.int64)
    places = bits.reshape(m, sparsity, width // sparsity).astype(np.int64)
    indices: np.ndarray = (places << np.arange(width // sparsity)).sum(axis=-1)
    if indices.size and indices.max() >= atoms:
        raise FileFormatError(
            f"[SparseDictionary] indices must be below {atoms}, got {indices.max()}"
        )
    return indices


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
    except KeyError as missing:
        raise FileFormatError(
            f"[from_arrays] {kind} needs the tensor {missing}, got none"
        ) from None
    raise FileFormatError(f"[from_arrays] kind must be known, got {kind!r}")
