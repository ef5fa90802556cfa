"""Numbers in the form they have in files: rounded to a dtype, or as bits without gaps."""

from __future__ import annotations

from typing import Any

import numpy as np

from subspan.compression.storage import index_bits
from subspan.errors import FileFormatError

__all__ = ["pack_indices", "pack_numbers", "round_to", "unpack_indices", "unpack_numbers"]


def round_to(x: Any, dtype: str) -> Any:
    """Return values as a file of this dtype holds them; numpy has bfloat16 only as float32."""
    if dtype == "bfloat16":
        import torch

        return torch.from_numpy(np.asarray(x, np.float32)).bfloat16().float().numpy()
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(dtype)


def pack_numbers(numbers: np.ndarray, width: int) -> np.ndarray:
    """Return unsigned numbers of ``width`` bits each, lowest bit first, without gaps in uint8."""
    bits = (numbers.reshape(-1, 1) >> np.arange(width)) & 1
    return np.packbits(bits.astype(np.uint8))


def unpack_numbers(function: str, packed: np.ndarray, count: int, width: int) -> np.ndarray:
    """Return the int64 numbers (count,) that were packed."""
    if packed.size != (count * width + 7) // 8:
        raise FileFormatError(
            f"[{function}] {count} numbers of {width} bits must have {(count * width + 7) // 8} "
            f"bytes, got {packed.size}"
        )
    bits = np.unpackbits(packed, count=count * width).reshape(count, width).astype(np.int64)
    numbers: np.ndarray = (bits << np.arange(width)).sum(axis=-1)
    return numbers


def pack_indices(indices: np.ndarray, atoms: int) -> np.ndarray:
    """Return ascending indices (m, s) as the bits that `index_bits` counts, in uint8."""
    m, sparsity = indices.shape
    way, width = index_bits(atoms, sparsity)
    if way == "list":
        return pack_numbers(indices, width // sparsity)
    bits = np.zeros((m, atoms), np.uint8)
    np.put_along_axis(bits, indices, 1, axis=1)
    return np.packbits(bits)


def unpack_indices(packed: np.ndarray, m: int, sparsity: int, atoms: int) -> np.ndarray:
    """Return the indices (m, s) that were packed."""
    way, width = index_bits(atoms, sparsity)
    if packed.size != (m * width + 7) // 8:
        raise FileFormatError(
            f"[SparseDictionary] indices must have {(m * width + 7) // 8} bytes, got {packed.size}"
        )
    if way == "mask":
        rows = np.unpackbits(packed, count=m * width).reshape(m, atoms)
        if (rows.sum(axis=1) != sparsity).any():
            raise FileFormatError(
                f"[SparseDictionary] masks must have {sparsity} bits each, got others"
            )
        return np.nonzero(rows)[1].reshape(m, sparsity).astype(np.int64)
    count = m * sparsity
    indices = unpack_numbers("SparseDictionary", packed, count, width // sparsity)
    if indices.size and indices.max() >= atoms:
        raise FileFormatError(
            f"[SparseDictionary] indices must be below {atoms}, got {indices.max()}"
        )
    return indices.reshape(m, sparsity)
