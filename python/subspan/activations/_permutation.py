"""Permutations of 0..n-1 that are computed, not stored: any part of one costs only that part."""

import math

import numpy as np
import numpy.typing as npt

_ROUNDS = 10
_GOLDEN = 0x9E3779B97F4A7C15
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


class Permutation:
    """A pseudo-random permutation of 0..n-1, chosen by a seed and a stream number.

    Numbers are written as pairs (l, r) with l < a and r < b, a b >= n. Every round adds to one
    half, modulo its size, a hash of the other half and of the key of the round, which can be
    undone, so all rounds together are a bijection of the a b pairs. A result that is not below n
    is put in again until it is, which makes it a bijection of 0..n-1; as a b < n + sqrt(n) + 1,
    that happens to few.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002), generalized Feistel
    construction and cycle walking; the hash is the finalizer of SplitMix64 (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", 2014).
    """

    def __init__(self, n: int, seed: int, stream: int = 0) -> None:
        self.n = n
        self._a = max(1, math.isqrt(max(n - 1, 0)) + 1)  # at least the square root
        self._b = max(1, -(-n // self._a))
        key = _mixed(np.array([seed & _MASK], dtype=np.uint64))[0]
        key = _mixed(np.array([int(key) ^ (stream & _MASK)], dtype=np.uint64))[0]
        steps = [(int(key) + _GOLDEN * (i + 1)) & _MASK for i in range(_ROUNDS)]
        self._keys = _mixed(np.array(steps, dtype=np.uint64))

    def __call__(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return where start, ..., stop - 1 go, shape (stop - start,)."""
        values = self._once(np.arange(start, stop, dtype=np.uint64))
        while (outside := np.flatnonzero(values >= self.n)).size:
            values[outside] = self._once(values[outside])
        return values.astype(np.int64)

    def _once(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        a, b = np.uint64(self._a), np.uint64(self._b)
        left, right = np.divmod(values, b)
        for number, key in enumerate(self._keys):
            if number % 2:
                right = _added(right, _mixed(left + key), b)
            else:
                left = _added(left, _mixed(right + key), a)
        return left * b + right


def _added(
    half: npt.NDArray[np.uint64], hashed: npt.NDArray[np.uint64], size: np.uint64
) -> npt.NDArray[np.uint64]:
    """Add a number below ``size``, taken from the upper 32 bits of a hash, modulo ``size``."""
    total = half + ((hashed >> np.uint64(32)) * size >> np.uint64(32))
    return np.minimum(total, total - size)  # below size, the difference wraps to a huge number


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash 64-bit numbers one to one (wrapping products are meant)."""
    values = (values ^ (values >> np.uint64(30))) * _M1
    values = (values ^ (values >> np.uint64(27))) * _M2
    return values ^ (values >> np.uint64(31))
