"""Products of all pairs of layers, in few large batches, and what is read off them."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from subspan import eigvalsh, svdvals
from subspan.similarity._layers import Floats

__all__ = ["cross_products", "nuclear_norms"]

# Bytes of one batch of products.
_BATCH = 1 << 25
# Shapes are padded by zeros up to multiples of this, so that ragged ranks still share batches.
_GRAIN = 16
# Above this size singular values come from the eigenvalues of C C^T, where that is safe: half the
# work or less.
_SMALL = 256
# Bound on the relative error of a nuclear norm by squaring, in eps; far above what is seen.
_SAFE = 256.0


def cross_products(
    left: Sequence[Floats], right: Sequence[Floats], pairs: Sequence[tuple[int, int]]
) -> Iterator[tuple[list[tuple[int, int]], Floats]]:
    """Yield pairs and their ``left[i].T @ right[j]`` as stacks (batch, p, q), padded by zeros."""
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    size = left[0].itemsize
    for i, j in pairs:
        shape = _padded(left[i].shape[1]), _padded(right[j].shape[1])
        group = groups.setdefault(shape, [])
        group.append((i, j))
        if (len(group) + 1) * shape[0] * shape[1] * size > _BATCH:
            yield groups.pop(shape), _stack(left, right, group, shape)
    for shape, group in groups.items():
        yield group, _stack(left, right, group, shape)


def _padded(extent: int) -> int:
    return -(-extent // _GRAIN) * _GRAIN


def _stack(
    left: Sequence[Floats],
    right: Sequence[Floats],
    pairs: Sequence[tuple[int, int]],
    shape: tuple[int, int],
) -> Floats:
    out = np.zeros((len(pairs), *shape), left[0].dtype)
    for place, (i, j) in enumerate(pairs):
        out[place, : left[i].shape[1], : right[j].shape[1]] = left[i].T @ right[j]
    return out


def nuclear_norms(stack: Floats, ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sums of singular values of matrices (batch, p, q), at most ``ranks`` of each."""
    p, q = stack.shape[1:]
    if min(p, q) <= _SMALL:
        return np.asarray(svdvals(stack).sum(axis=1, dtype=np.float64))
    turned = stack.transpose(0, 2, 1)
    squares = eigvalsh(stack @ turned if p <= q else turned @ stack).astype(np.float64)[:, ::-1]
    there = np.arange(squares.shape[1]) < ranks[:, None]  # the root of a rounded 0 is not small
    s = np.sqrt(np.maximum(squares, 0.0)) * there
    total: NDArray[np.float64] = s.sum(axis=1)
    # A square is off by a few eps of the largest; its root by this over 2 s, at most by its root.
    eps = float(np.finfo(stack.dtype).eps)
    off = 4.0 * eps * squares[:, :1]
    doubt = np.minimum(off / (2.0 * s + np.finfo(np.float64).tiny), np.sqrt(off)) * there
    unsafe = doubt.sum(axis=1) > _SAFE * eps * total
    if unsafe.any():
        total[unsafe] = svdvals(stack[unsafe]).sum(axis=1, dtype=np.float64)
    return total
