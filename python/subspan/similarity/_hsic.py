"""HSIC of all pairs of layers, from products of features or from tiles of kernels."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _checks, gram_inner
from subspan.errors import InvalidArgumentError
from subspan.similarity._bases import leading_scores
from subspan.similarity._layers import Floats, Layer, Sides
from subspan.similarity._progress import Steps
from subspan.similarity._tiles import Kernel, Tiles, tile_sums, tiles_of

__all__ = ["Alignment", "Float64", "normalised", "prepare"]

Float64 = NDArray[np.float64]
# Share of the variance of a permutation null that comes from true permutations of scores.
_NULL_SHARE = 0.99


class _Own(NamedTuple):
    """What HSIC needs of the kernels of one side."""

    inner: Float64
    """(L,) sums of K_ij^2 over i != j."""
    rows: Float64
    """(L, N) sums of K_ij over j != i."""
    diagonal: Float64
    """(L, N) K_ii."""

    def part(self, layers: slice) -> "_Own":
        return _Own(self.inner[layers], self.rows[layers], self.diagonal[layers])

    def permuted(self, order: NDArray[np.int64]) -> "_Own":
        return _Own(self.inner, self.rows[:, order], self.diagonal[:, order])


def _hsic(cross: Float64, a: _Own, b: _Own, *, unbiased: bool) -> Float64:
    """Return HSIC (L, M) from products over different samples, less the factors that cancel.

    Biased: tr K H L H. Unbiased: Song et al. 2012, equation 5.
    """
    n = a.rows.shape[1]
    if unbiased:
        totals = np.outer(a.rows.sum(axis=1), b.rows.sum(axis=1))
        between = a.rows @ b.rows.T
        return np.asarray(cross + totals / ((n - 1) * (n - 2)) - 2.0 / (n - 2) * between)
    left, right = a.rows + a.diagonal, b.rows + b.diagonal
    totals = np.outer(left.sum(axis=1), right.sum(axis=1))
    between, diagonals = left @ right.T, a.diagonal @ b.diagonal.T
    return np.asarray(cross + diagonals - 2.0 / n * between + totals / n**2)


def _own_hsic(a: _Own, *, unbiased: bool) -> Float64:
    """Return HSIC of each kernel with itself, (L,)."""
    return np.array(
        [
            _hsic(a.inner[k : k + 1, None], own, own, unbiased=unbiased)[0, 0]
            for k in range(len(a.inner))
            for own in [a.part(slice(k, k + 1))]
        ]
    )


class Alignment:
    """CKA of all pairs: sums over kernels once, then permutations of one side."""

    ranks = None

    def __init__(
        self,
        sides: Sides,
        cross: Float64,
        own: tuple[_Own, _Own],
        unbiased: bool,
        permuted_cross: Callable[[NDArray[np.int64]], Float64],
    ) -> None:
        self._sides, self._cross, self._own, self._unbiased = sides, cross, own, unbiased
        self._permuted_cross = permuted_cross
        self._squares = [_own_hsic(side, unbiased=unbiased) for side in own]

    def hsic(self) -> tuple[Float64, Float64, Float64]:
        """Return HSIC of pairs (L1, L2), and of the kernels of either side with themselves."""
        cross = _hsic(self._cross, *self._own, unbiased=self._unbiased)
        return cross, self._squares[0], self._squares[1]

    def matrix(self, steps: Steps) -> Float64:  # noqa: ARG002
        """Return CKA (L1, L2)."""
        return self._ratio(self._cross, self._own[1])

    def permuted(self, order: NDArray[np.int64]) -> Float64:
        """Return CKA with the samples of the second side in another order."""
        value = self._ratio(self._permuted_cross(order), self._own[1].permuted(order))
        # Of a set with itself one order of each pair is drawn, and stands for both.
        return np.triu(value) + np.triu(value, 1).T if self._sides.symmetric else value

    def _ratio(self, cross: Float64, right: _Own) -> Float64:
        value = normalised(
            _hsic(cross, self._own[0], right, unbiased=self._unbiased), *self._squares
        )
        return value if self._unbiased else np.clip(value, 0.0, 1.0)


def normalised(cross: Float64, left: Float64, right: Float64) -> Float64:
    """Return ``cross / sqrt(left right)``, NaN where there is nothing to divide by."""
    out = np.full(cross.shape, np.nan)
    there = (left[:, None] > 0) & (right > 0)
    root = np.sqrt(np.maximum(left, 0.0))[:, None] * np.sqrt(np.maximum(right, 0.0))
    return np.asarray(np.divide(cross, root, out=out, where=there))


def prepare(
    function: str,
    sides: Sides,
    steps: Steps,
    *,
    kernel: str | Kernel = "linear",
    bandwidth: float = 1.0,
    unbiased: bool = False,
) -> Alignment:
    """Return the sums that CKA of all pairs is made of."""
    if not callable(kernel):
        _checks.choice(function, "kernel", kernel, ("linear", "rbf"))
    width = _checks.real(function, "bandwidth", bandwidth, low=1e-6, high=1e6)
    if unbiased and sides.n < 4:
        raise InvalidArgumentError(
            f"[{function}] layers must have at least 4 rows for the unbiased estimator, "
            f"got {sides.n}"
        )
    if kernel == "linear":
        return _linear(sides, unbiased, steps)

    def tiles(layer: Layer) -> Tiles:
        return tiles_of(function, layer, kernel, width)

    return _by_tiles(sides, tiles, unbiased, steps)


def _linear(sides: Sides, unbiased: bool, steps: Steps) -> Alignment:
    """Linear kernels of centred rows: |X^T Y|^2, and rows of K that sum to zero."""

    def diagonal(layer: Layer) -> Float64:
        return np.asarray(np.einsum("ij,ij->i", layer.rows, layer.rows), np.float64)

    def own(diagonals: list[Float64], of_side: Float64) -> _Own:
        each = np.stack(diagonals)
        return _Own(of_side - np.square(each).sum(axis=1), -each, each)

    diagonals = sides.each(diagonal, steps)
    make = _by_features if _features_are_cheaper(sides) else _by_kernels
    products, squares = make(sides, steps)
    left, right = (own(*side) for side in zip(diagonals, squares, strict=True))
    cross = products - left.diagonal @ right.diagonal.T
    return Alignment(sides, cross, (left, right), unbiased, _LinearNull(sides, (left, right)))


def _features_are_cheaper(sides: Sides) -> bool:
    """Whether products of features take fewer flops than kernels."""
    n, x, y = sides.n, sides.x, sides.y
    layers = x if sides.symmetric else [*x, *y]
    features = n * sum(x[i].rows.shape[1] * y[j].rows.shape[1] for i, j in sides.pairs())
    if not sides.symmetric:
        features += n * sum(layer.rows.shape[1] ** 2 for layer in layers)
    kernels = n * n * (sum(layer.rows.shape[1] for layer in layers) + len(layers) ** 2) / 2
    return bool(features <= kernels)


def _by_features(sides: Sides, steps: Steps) -> tuple[Float64, tuple[Float64, Float64]]:
    """Return |X^T Y|^2 of pairs, and |X^T X|^2 of the layers of either side."""
    pairs = sides.pairs()
    advance = steps.stage("pairs", len(pairs))
    values = []
    for i, j in pairs:
        values.append(((i, j), _square_sum(sides.x[i].rows.T @ sides.y[j].rows)))
        advance(1)
    products = sides.matrix(values)
    if sides.symmetric:
        return products, (np.diagonal(products), np.diagonal(products))
    own = sides.each(lambda layer: _square_sum(layer.rows.T @ layer.rows), Steps())
    return products, (np.array(own[0]), np.array(own[1]))


def _by_kernels(sides: Sides, steps: Steps) -> tuple[Float64, tuple[Float64, Float64]]:
    """Return the same from inner products of kernels."""
    layers = sides.x if sides.symmetric else [*sides.x, *sides.y]
    advance = steps.stage("pairs", 1)
    products = gram_inner([layer.rows for layer in layers])
    advance(1)
    squares = np.diagonal(products)
    n_left = len(sides.x)
    if sides.symmetric:
        return products, (squares, squares)
    return products[:n_left, n_left:], (squares[:n_left], squares[n_left:])


def _square_sum(a: Floats) -> float:
    """Return the sum of squares, in float64 beyond one row."""
    return float(np.einsum("ij,ij->i", a, a).sum(dtype=np.float64))


def _by_tiles(
    sides: Sides, make: Callable[[Layer], Tiles], unbiased: bool, steps: Steps
) -> Alignment:
    kernels, others = sides.each(make, steps)
    whole: list[Tiles] = kernels if sides.symmetric else [*kernels, *others]
    n, dtype = sides.n, sides.x[0].rows.dtype
    sums = tile_sums(whole, None, n, dtype, steps)
    diagonals = np.stack([tiles.diagonal() for tiles in whole])
    both = _Own(np.diagonal(sums.cross).copy(), sums.rows, diagonals)
    first = slice(0, len(kernels))
    second = first if sides.symmetric else slice(len(kernels), len(whole))
    own = both.part(first), both.part(second)

    def permuted_cross(order: NDArray[np.int64]) -> Float64:
        moved = [tiles.permuted(order) for tiles in others]
        return tile_sums(kernels, moved, n, dtype, Steps()).cross

    return Alignment(sides, sums.cross[first, second], own, unbiased, permuted_cross)


class _LinearNull:
    """Cross sums of linear kernels with the samples of one side permuted.

    ``|X^T P Y|^2`` is a sum over pairs of principal directions; a pair has the mean
    ``a_k b_l / (N - 1)`` and, nearly, the variance ``2 (a_k b_l / (N - 1))^2``, with variances
    ``a_k``, ``b_l``. Permuted are the leading directions that hold 99 % of the squared variances on
    either side; the others, whose sum hardly varies, come in by their mean.
    """

    def __init__(self, sides: Sides, own: tuple[_Own, _Own]) -> None:
        self._sides, self._own = sides, own
        self._scores: tuple[list[Floats], list[Floats]] | None = None
        self._rest = np.zeros((0, 0))

    def __call__(self, order: NDArray[np.int64]) -> Float64:
        sides = self._sides
        if self._scores is None:
            self._scores = sides.each(lambda a: leading_scores(a.rows, _NULL_SHARE), Steps())
            traces = [own.diagonal.sum(axis=1) for own in self._own]
            kept = [np.array([_square_sum(a) for a in side]) for side in self._scores]
            self._rest = (np.outer(*traces) - np.outer(*kept)) / (sides.n - 1)
        left, right = self._scores
        moved = [scores[order] for scores in right]
        values = [((i, j), _square_sum(left[i].T @ moved[j])) for i, j in sides.pairs()]
        a, b = self._own[0], self._own[1].permuted(order)
        return sides.matrix(values) + self._rest - a.diagonal @ b.diagonal.T
