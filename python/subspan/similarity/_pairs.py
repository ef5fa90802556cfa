"""Nuclear norms of the products of all pairs of layers, in few large batches."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from subspan import eigvalsh, svdvals
from subspan.similarity._layers import Floats

__all__ = ["nuclear_norms"]

Pair = tuple[int, int]

# Bytes of one batch of products, or of their squares.
_BATCH = 1 << 25
# Shapes are padded by zeros up to multiples of this, so that ragged ranks still share batches.
_GRAIN = 16
# Above this size singular values come from the eigenvalues of C C^T, where that is safe: half the
# work or less.
_SMALL = 128
# Bound on the relative error of a nuclear norm by squaring, in eps; far above what is seen.
_SAFE = 256.0


def nuclear_norms(
    left: Sequence[Floats], right: Sequence[Floats], pairs: Sequence[Pair]
) -> Iterator[tuple[list[Pair], NDArray[np.float64]]]:
    """Yield pairs and the sums of singular values of their ``left[i].T @ right[j]``."""
    groups: dict[tuple[int, int], list[Pair]] = {}
    size = left[0].itemsize
    for i, j in pairs:
        shape = _shape(left[i].shape[1], right[j].shape[1])
        group = groups.setdefault(shape, [])
        group.append((i, j))
        if (len(group) + 1) * shape[0] * shape[1] * size > _BATCH:
            yield group, _norms(left, right, groups.pop(shape), shape)
    for shape, group in groups.items():
        yield group, _norms(left, right, group, shape)


def _shape(p: int, q: int) -> tuple[int, int]:
    """Return the padded shape of a product, or of its square where that is what is stored."""
    p, q = (-(-extent // _GRAIN) * _GRAIN for extent in (p, q))
    return (p, q) if min(p, q) <= _SMALL else (min(p, q), min(p, q))


def _norms(
    left: Sequence[Floats], right: Sequence[Floats], pairs: list[Pair], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the norms of pairs of one shape."""
    squared = min(shape) > _SMALL
    stack = np.zeros((len(pairs), *shape), left[0].dtype)
    ranks = np.zeros(len(pairs), np.int64)
    for place, (i, j) in enumerate(pairs):
        product = left[i].T @ right[j]
        p, q = product.shape
        ranks[place] = min(p, q)
        if squared:
            wide = product if p <= q else product.T
            stack[place, : len(wide), : len(wide)] = wide @ wide.T
        else:
            stack[place, :p, :q] = product
    if not squared:
        return np.asarray(svdvals(stack).sum(axis=1, dtype=np.float64))
    total, safe = _from_squares(stack, ranks)
    for k in np.flatnonzero(~safe):
        i, j = pairs[int(k)]
        total[k] = svdvals(left[i].T @ right[j]).sum(dtype=np.float64)
    return total


def _from_squares(
    stack: Floats, ranks: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return sums of at most ``ranks`` roots of eigenvalues, and whether squaring was harmless."""
    squares = eigvalsh(stack).astype(np.float64)[:, ::-1]
    there = np.arange(squares.shape[1]) < ranks[:, None]  # the root of a rounded 0 is not small
    s = np.sqrt(np.maximum(squares, 0.0)) * there
    total: NDArray[np.float64] = s.sum(axis=1)
    # A square is off by a few eps of the largest; its root by this over 2 s, at most by its root.
    eps = float(np.finfo(stack.dtype).eps)
    off = 4.0 * eps * squares[:, :1]
    doubt = np.minimum(off / (2.0 * s + np.finfo(np.float64).tiny), np.sqrt(off)) * there
    return total, doubt.sum(axis=1) <= _SAFE * eps * total
