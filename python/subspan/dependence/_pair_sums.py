"""What distance covariance and HSIC are made of: sums over pairs, and permutations of one side.

Both are inner products of two n x n matrices after their rows and columns were centred, which are
known from the sum of the products and the sums of the rows.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import joint_kernel_sums
from subspan.dependence._samples import Floats

__all__ = ["Kernel", "PairSums", "centred", "own_sums", "pair_sums", "permuted_products"]

# Permuted copies of the rows of one side that are there at a time: elements, copies.
_ELEMENTS, _COPIES = 1 << 22, 16


class Kernel(NamedTuple):
    """A function of the distance, as `joint_kernel_sums` takes it."""

    name: str
    bandwidth: float = 1.0
    alpha: float = 1.0
    diagonal: float = 0.0
    """Its value at distance 0."""


class PairSums(NamedTuple):
    """Of the matrices A and B of two samples."""

    product: Any
    """sum over i, j of A_ij B_ij."""
    left: Any
    """(n,) sums of the rows of A."""
    right: Any


def pair_sums(x: Any, y: Any, kernels: tuple[Kernel, Kernel]) -> PairSums:
    """Return the sums of both samples in one pass."""
    found = joint_kernel_sums(x, y, **_options(kernels))
    return PairSums(found.joint.sum(), found.first, found.second)


def own_sums(x: Any, kernel: Kernel) -> PairSums:
    """Return the sums of a sample with itself."""
    return pair_sums(x, x, (kernel, kernel))


def permuted_products(
    x: Floats,
    y: Floats,
    kernels: tuple[Kernel, Kernel],
    orders: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Yield every order and the sum of products with the rows of y in it.

    The values of x are made once for several orders.
    """
    step = int(np.clip(_ELEMENTS // max(y.size, 1), 1, _COPIES))
    for start in range(0, len(orders), step):
        some = orders[start : start + step]
        found = joint_kernel_sums(x, y[some], **_options(kernels))
        yield from zip(some, found.joint.sum(axis=1).tolist(), strict=True)


def centred(sums: PairSums, diagonals: tuple[float, float], *, unbiased: bool) -> Any:
    """Return the mean of the products of centred matrices.

    Biased: both centred by the means of rows and columns, over n^2. Unbiased: their diagonals left
    out and U-centred, over n (n - 3) (Szekely and Rizzo 2014, definition 2; HSIC_1 of Song et al.
    2012, equation 5, is the same).
    """
    n = len(sums.left)
    if not unbiased:
        left, right = sums.left / n, sums.right / n
        return sums.product / n**2 + left.mean() * right.mean() - 2.0 * (left @ right) / n
    a, b = diagonals
    left, right = sums.left - a, sums.right - b
    totals = left.sum() * right.sum() / ((n - 1) * (n - 2))
    between = 2.0 / (n - 2) * (left @ right)
    return (sums.product - n * a * b + totals - between) / (n * (n - 3))


def _options(kernels: tuple[Kernel, Kernel]) -> dict[str, Any]:
    first, second = kernels
    return {
        "kernels": (first.name, second.name),
        "bandwidths": (first.bandwidth, second.bandwidth),
        "alphas": (first.alpha, second.alpha),
    }
