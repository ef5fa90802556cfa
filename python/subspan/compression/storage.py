"""What a stored matrix costs: THE place where the bytes of every form are counted.

Sizes of files, kept ratios, budgets and reports all come from here. Every part of a form is one
tensor of a file, padded to whole bytes, so that a sum of parts is what lies on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

from numpy.typing import NDArray

from subspan._checks import choice, integer, real
from subspan.errors import InvalidArgumentError

__all__ = [
    "Part",
    "Storage",
    "array_storage",
    "bits_of",
    "cache_storage",
    "dense_storage",
    "dictionary_size",
    "dictionary_storage",
    "index_bits",
    "low_rank_storage",
    "quantized_storage",
    "rank_of_kept",
]


class Part(NamedTuple):
    """Numbers of one width: a tensor of a file."""

    name: str
    numbers: int
    bits: int

    @property
    def n_bytes(self) -> int:
        """Size in whole bytes."""
        return (self.numbers * self.bits + 7) // 8


@dataclass(frozen=True)
class Storage:
    """The tensors that stand for one matrix, or for many.

    Examples
    --------
    >>> from subspan.compression import dense_storage, low_rank_storage
    >>> low_rank_storage(576, 1536, 300).kept(dense_storage(576, 1536))
    0.716...
    """

    parts: tuple[Part, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.n_bytes for part in self.parts)

    def kept(self, dense: Storage) -> float:
        """Return the kept ratio, in bytes of ``dense``; above 1 it grew."""
        return self.n_bytes / dense.n_bytes

    def __add__(self, other: Storage) -> Storage:
        """Return the storage of both."""
        return Storage(self.parts + other.parts)

    def to_dict(self) -> dict[str, int]:
        """Return the bytes by name of part, and ``total``."""
        found: dict[str, int] = {}
        for part in self.parts:
            found[part.name] = found.get(part.name, 0) + part.n_bytes
        return found | {"total": self.n_bytes}


def dense_storage(m: int, n: int, *, bits: int = 16) -> Storage:
    """Return the storage of an (m, n) matrix of ``bits`` bits a value."""
    return Storage((Part("weight", m * n, bits),))


def low_rank_storage(m: int, n: int, rank: int, *, bits: int = 16, bias: int = 0) -> Storage:
    """Return the storage of factors (m, rank) and (rank, n), and of ``bias`` further values."""
    parts = (Part("A", m * rank, bits), Part("B", rank * n, bits))
    return Storage(parts + ((Part("bias", bias, bits),) if bias else ()))


def index_bits(atoms: int, sparsity: int) -> tuple[str, int]:
    """Return how the atoms of one column are told, and in how many bits.

    ``"mask"``: one bit for each atom; ``"list"``: ``ceil(log2 atoms)`` bits for each atom used;
    whichever is shorter.
    """
    listed = sparsity * max(1, (atoms - 1).bit_length())
    return ("mask", atoms) if atoms <= listed else ("list", listed)


def dictionary_storage(m: int, n: int, atoms: int, sparsity: int, *, bits: int = 16) -> Storage:
    """Return the storage of a dictionary (n, atoms) and of m columns of ``sparsity`` values.

    Parameters
    ----------
    m, n : int
        Shape of the matrix whose rows are coded.
    atoms, sparsity : int
        Columns of the dictionary, and how many of them a coded row uses.
    bits : int
        Of a value. Indices cost what `index_bits` says.
    """
    _, index = index_bits(atoms, sparsity)
    return Storage(
        (
            Part("dict", n * atoms, bits),
            Part("codes_val", m * sparsity, bits),
            Part("codes_idx", m * index, 1),
        )
    )


def quantized_storage(
    count: int, *, bits: int, group: int, scale_bits: int = 16, zero_bits: int = 0
) -> Storage:
    """Return the storage of integers of ``bits`` bits with a scale for each group of them.

    Parameters
    ----------
    count : int
        Numbers.
    bits : int
        Of an integer, packed without gaps.
    group : int
        Numbers that share a scale.
    scale_bits, zero_bits : int
        Of a scale and of a zero point; no zero points for 0 bits (symmetric).
    """
    groups = ceil(count / integer("quantized_storage", "group", group, low=1))
    parts = (Part("values", count, bits), Part("scales", groups, scale_bits))
    return Storage(parts + ((Part("zeros", groups, zero_bits),) if zero_bits else ()))


def array_storage(arrays: Mapping[str, NDArray[Any]]) -> Storage:
    """Return the storage of arrays as they are."""
    return Storage(tuple(Part(name, x.size, 8 * x.itemsize) for name, x in arrays.items()))


def cache_storage(keys: int, values: int, *, tokens: int = 1, bits: int = 16) -> Storage:
    """Return the storage of a cache that holds so many numbers of keys and of values a token."""
    return Storage((Part("keys", tokens * keys, bits), Part("values", tokens * values, bits)))


def rank_of_kept(m: int, n: int, kept: float) -> int:
    """Return the largest rank whose factors take at most ``kept`` of an (m, n) matrix; may be 0.

    ``floor(kept m n / (m + n))``
    """
    kept = real("rank_of_kept", "kept", kept, low=0.0, high=1.0)
    # a ratio such as 0.3 is not 0.3 in binary: what is whole but for that is whole
    return min(m, n, int(kept * m * n / (m + n) + 1e-9))


def useful_rank(m: int, n: int) -> int:
    """Return the largest rank whose factors have fewer numbers than an (m, n) matrix; may be 0."""
    return (m * n - 1) // (m + n)


def dictionary_size(
    m: int, n: int, kept: float, *, ratio: float = 2.0, bits: int = 16
) -> tuple[int, int]:
    """Return the largest (atoms, sparsity) with ``atoms ~ ratio * sparsity`` within ``kept``.

    Raises
    ------
    InvalidArgumentError
        Not even one atom for each row fits.
    """
    kept = real("dictionary_size", "kept", kept, low=0.0, high=1.0)
    ratio = real("dictionary_size", "ratio", ratio, low=1.0)
    budget = kept * dense_storage(m, n, bits=bits).n_bytes

    def size(sparsity: int) -> int:
        return dictionary_storage(
            m, n, max(1, round(ratio * sparsity)), sparsity, bits=bits
        ).n_bytes

    low, high = 0, max(m, n) + 1  # size(low) fits, size(high) does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= budget else (low, middle)
    if low == 0:
        raise InvalidArgumentError(
            f"[dictionary_size] kept must leave room for one atom a row of {m} x {n}, got {kept}. "
            f"Keep at least {size(1) / dense_storage(m, n, bits=bits).n_bytes:.3f}"
        )
    return max(1, round(ratio * low)), low


def bits_of(function: str, dtype: str) -> int:
    """Return the bits of a value of a number format of files."""
    known = {"float16": 16, "bfloat16": 16, "float32": 32, "float64": 64}
    return known[choice(function, "dtype", dtype, known)]
