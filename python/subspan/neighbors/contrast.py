"""The soft nearest-neighbour loss: how entangled classes are, as a loss with gradients."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks, kernel_matvec
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

__all__ = ["annealed_temperature", "soft_nearest_neighbor_loss"]

Float64 = NDArray[np.float64]
# Rows whose distances to all others are there at a time.
_BLOCK = 64


def annealed_temperature(epoch: float, *, gamma: float = 0.55) -> float:
    r"""Return the temperature of an epoch, :math:`(1 + \mathrm{epoch})^{-\gamma}`.

    Parameters
    ----------
    epoch : float
        >= 0.
    gamma : float
        >= 0: how fast it falls from 1.

    Returns
    -------
    float

    Raises
    ------
    InvalidArgumentError
        An argument is negative.

    References
    ----------
    A. F. Agarap, A. P. Azcarraga: Improving k-means clustering performance with disentangled
    internal representations, IJCNN 2020.

    Examples
    --------
    >>> from subspan.neighbors import annealed_temperature
    >>> [round(annealed_temperature(epoch), 3) for epoch in (0, 1, 9)]
    [1.0, 0.683, 0.282]
    """
    function = "annealed_temperature"
    epoch = _checks.real(function, "epoch", epoch, low=0.0)
    return float((1.0 + epoch) ** -_checks.real(function, "gamma", gamma, low=0.0))


def soft_nearest_neighbor_loss(
    x: Any, labels: Any, *, temperature: Any = 1.0, metric: str = "sqeuclidean"
) -> Any:
    r"""Return the soft nearest-neighbour loss of labelled rows.

    .. math:: L = -\frac{1}{b} \sum_i \ln
        \frac{\sum_{j \ne i,\, l_j = l_i} \exp(-D_{ij} / T)}{\sum_{j \ne i} \exp(-D_{ij} / T)}

    0 where every neighbour that counts is of the row's own class; large where classes are mixed.

    Parameters
    ----------
    x : array (n, d)
        float32 or float64 of numpy, torch or another library with DLPack (CPU), n >= 2.
    labels : array (n,)
        Integers or bools.
    temperature : float, or tensor of one element
        T > 0; see `annealed_temperature`. A tensor may require a gradient, too.
    metric : {"sqeuclidean", "cosine"}
        D: the squared distance, or 1 - cos.

    Returns
    -------
    float
        The mean over rows whose class has another row; 0 where there is none. Of torch tensors a
        tensor of no axes of the dtype of x, differentiable once in x and temperature.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, NaN or infinity, T is not positive, an unknown name, a row of zeros for
        "cosine".
    DtypeError
        x is no array of float32 or float64; labels that are no integers; a temperature that
        requires a gradient where x is no tensor.
    UnsupportedError
        x is on a CUDA device.

    Notes
    -----
    Distances are made by `subspan.kernel_matvec`, 64 columns at a time: 2 n² d flops for the loss,
    6 n² d for the gradient, which makes them anew; memory 64 n. A row is left out of its own sums
    by its index, and logarithms of sums take out the greatest term, so no temperature is too small.

    References
    ----------
    N. Frosst, N. Papernot, G. Hinton: Analyzing and improving representations with the soft nearest
    neighbor loss, ICML 2019, equation 1.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.neighbors import soft_nearest_neighbor_loss
    >>> x = np.array([[0.0], [0.1], [5.0], [5.1]])
    >>> round(soft_nearest_neighbor_loss(x, np.array([0, 0, 1, 1])), 6)  # apart
    0.0
    >>> round(soft_nearest_neighbor_loss(x, np.array([0, 1, 0, 1])), 1)  # mixed
    25.0
    """
    function = "soft_nearest_neighbor_loss"
    _checks.choice(function, "metric", metric, ("sqeuclidean", "cosine"))
    torch_in = _arrays.require_array(function, "x", x) == "torch"
    rows = _rows(function, x)
    groups = _labels(function, labels, len(rows))
    heat = _temperature(function, temperature, torch_in)
    lengths = np.ones(len(rows))
    if metric == "cosine":
        lengths = np.linalg.norm(rows, axis=1)
        if not lengths.all():
            raise InvalidArgumentError(
                f"[{function}] x must have no row of zeros for 'cosine', got one in row "
                f"{int(np.argmin(lengths))}"
            )
    terms = _Terms(rows / lengths[:, None], groups, heat, 1.0 if metric == "sqeuclidean" else 0.5)
    if not torch_in:
        return _value(_log_masses(terms))
    return _function().apply(x, temperature, terms, lengths if metric == "cosine" else None)


class _Terms(NamedTuple):
    """Rows, and what makes scores -D / T of their squared distances."""

    rows: Float64
    labels: NDArray[Any]
    temperature: float
    factor: float
    """Of squared distances."""

    def scores(self, block: slice) -> tuple[Float64, NDArray[np.bool_]]:
        """Return scores (n, b) of all rows with those of a block, and which are of one class.

        Of a row with itself it is -infinity.
        """
        some = self.rows[block]
        squares = kernel_matvec(self.rows, some, np.eye(len(some)), kernel="sqdistance")
        scores = np.asarray(squares) * (-self.factor / self.temperature)
        at = np.arange(block.start, block.start + len(some))
        scores[at, at - block.start] = -np.inf
        return scores, self.labels[:, None] == self.labels[block]

    def blocks(self) -> list[slice]:
        n = len(self.rows)
        return [slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]


class _Masses(NamedTuple):
    """Logarithms of the sums of every row: over its class, and over all others."""

    same: Float64
    every: Float64

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which rows have another one of their class."""
        return np.isfinite(self.same)


def _log_masses(terms: _Terms) -> _Masses:
    same, every = np.empty(len(terms.rows)), np.empty(len(terms.rows))
    for block in terms.blocks():
        scores, alike = terms.scores(block)
        every[block] = _log_sum(scores)
        same[block] = _log_sum(np.where(alike, scores, -np.inf))
    return _Masses(same, every)


def _log_sum(scores: Float64) -> Float64:
    """Return log sum exp of columns; -infinity for none."""
    top = scores.max(axis=0)
    with np.errstate(divide="ignore"):
        total = np.log(np.exp(scores - np.where(np.isfinite(top), top, 0.0)).sum(axis=0))
    return np.asarray(top + np.where(np.isfinite(top), total, 0.0))


def _value(masses: _Masses) -> float:
    kept = masses.counted
    return float((masses.every - masses.same)[kept].mean()) if kept.any() else 0.0


def _gradients(terms: _Terms, masses: _Masses) -> tuple[Float64, float]:
    """Return the gradients in the rows and in the temperature."""
    rows, kept = terms.rows - terms.rows.mean(axis=0), masses.counted
    of_rows, of_heat = np.zeros_like(rows), 0.0
    share = 1.0 / max(int(kept.sum()), 1)
    for block in terms.blocks():
        scores, alike = terms.scores(block)
        # dL / dscore: weights among all less weights among the class.
        weights = np.exp(scores - masses.every[block])
        within = np.where(alike & kept[block], scores, -np.inf)
        weights -= np.exp(within - np.where(kept[block], masses.same[block], 0.0))
        weights *= np.where(kept[block], share, 0.0)
        scores[weights == 0] = 0.0
        of_heat -= float((weights * scores).sum()) / terms.temperature
        weights *= -2.0 * terms.factor / terms.temperature
        of_rows += weights.sum(axis=1)[:, None] * rows - weights @ rows[block]
        of_rows[block] += weights.sum(axis=0)[:, None] * rows[block] - weights.T @ rows
    return of_rows, of_heat


@functools.cache
def _function() -> Any:
    """Return the autograd function; made once, where torch is there."""
    import torch
    from torch.autograd.function import once_differentiable

    class SoftNearestNeighbor(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, x: Any, temperature: Any, terms: _Terms, lengths: Any) -> Any:
            ctx.terms, ctx.masses, ctx.lengths = terms, _log_masses(terms), lengths
            ctx.like = x.dtype, temperature
            return torch.tensor(_value(ctx.masses), dtype=x.dtype)

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, g: Any) -> tuple[Any, ...]:
            rows, heat = _gradients(ctx.terms, ctx.masses)
            if ctx.lengths is not None:
                unit = ctx.terms.rows
                rows -= unit * np.einsum("ij,ij->i", unit, rows)[:, None]
                rows /= ctx.lengths[:, None]
            dtype, given = ctx.like
            of_heat = None
            if ctx.needs_input_grad[1]:
                of_heat = torch.full_like(given, heat) * g.to(given.dtype)
            return torch.from_numpy(rows).to(dtype) * g, of_heat, None, None

    return SoftNearestNeighbor


def _rows(function: str, x: Any) -> Float64:
    _checks.ndim(function, "x", x, 2)
    if (came := _arrays.dtype_name(x)) not in {"float32", "float64"}:
        raise DtypeError(f"[{function}] x must be float32 or float64, got {came}. Convert it first")
    if _arrays.device_of(x) != "cpu":
        raise UnsupportedError(
            f"[{function}] x must be on the CPU, got {_arrays.device_of(x)}. Copy it to the host "
            "first"
        )
    if int(x.shape[0]) < 2:
        raise InvalidArgumentError(f"[{function}] x must have at least 2 rows, got {x.shape[0]}")
    rows = _arrays.to_numpy(x).astype(np.float64)
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise InvalidArgumentError(
            f"[{function}] x must be finite, got NaN or infinity in row {row}"
        )
    return rows


def _labels(function: str, labels: Any, n: int) -> NDArray[Any]:
    _arrays.require_array(function, "labels", labels)
    groups = _arrays.to_numpy(labels)
    if groups.shape != (n,):
        raise InvalidArgumentError(
            f"[{function}] labels must have shape ({n},), one for each row of x, got {groups.shape}"
        )
    if groups.dtype.kind not in "iub":
        raise DtypeError(f"[{function}] labels must be integers or bools, got {groups.dtype}")
    return groups


def _temperature(function: str, temperature: Any, torch_in: bool) -> float:
    if getattr(temperature, "requires_grad", False):
        if not torch_in:
            raise DtypeError(
                f"[{function}] temperature must require no gradient where x is no tensor. Pass "
                "temperature.detach()"
            )
        temperature = temperature.detach()
    heat = _checks.real(function, "temperature", temperature)
    if not 0 < heat < np.inf:
        raise InvalidArgumentError(f"[{function}] temperature must be > 0 and finite, got {heat}")
    return heat
