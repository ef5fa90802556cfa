"""LiDAR: the rank of what tells surrogate classes apart, beside what varies within them."""

from typing import Any

import numpy as np

from subspan import Moments, _spectrum, svdvals
from subspan._arrays import library_of, to_numpy
from subspan._checks import real
from subspan._rows import as_rows, check_finite, float64_block, row_blocks
from subspan._spectrum import Floats
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["lidar"]


def lidar(x: Any, groups: Any = None, *, delta: float = 1e-4, eps: float = 1e-8) -> Floats:
    r"""Return LiDAR, the effective rank of linear discriminant analysis between surrogate classes.

    With n classes of q rows each (views of one sample, say), their means :math:`\mu_i` and the mean
    :math:`\mu` of these,

    .. math:: \Sigma_b = \frac{1}{n - 1} \sum_i (\mu_i - \mu)(\mu_i - \mu)^T, \qquad
              \Sigma_w = \frac{1}{n (q - 1)} \sum_{ij} (x_{ij} - \mu_i)(x_{ij} - \mu_i)^T
              + \delta I,

    it is :math:`\exp(-\sum_k p_k \log p_k)` with :math:`p = \lambda / \sum \lambda + \epsilon`
    of the d eigenvalues of :math:`\Sigma_w^{-1/2} \Sigma_b \Sigma_w^{-1/2}`. Classes of other sizes
    count alike in the first sum, rows in the second, over N - n for N rows.

    Parameters
    ----------
    x : array (..., N, d), or Moments, or a sequence of Moments
        Embeddings, numpy, torch or cupy; leading axes are checkpoints or layers. Or states with
        groups, whose weights count as repetitions.
    groups : array_like of int or str, shape (N,)
        Surrogate class of each row, the same for all leading axes; None for Moments.
    delta : float, >= 0
        Added to the variances within; absolute, so that it depends on the scale of x.
    eps : float, >= 0
        Added to the shares.

    Returns
    -------
    ndarray of float64, shape (...)
        Between 1 and min(d, n - 1), but for eps; 0 for class means that are exactly equal.

    Raises
    ------
    InvalidArgumentError
        Fewer than two classes, no class of two rows, wrong shapes, values that are not finite, or
        a within-class covariance that is singular with ``delta``.
    DtypeError
        Not an array of floats; groups beside Moments.

    Notes
    -----
    n d^2 flops for the moments, d^3 / 3 for a Cholesky factor and O(d n min(d, n)) for the singular
    values of the whitened class means, whose squares are the eigenvalues: the scatter between the
    classes is never formed. As delta goes to 0, LiDAR is invariant to invertible linear maps.

    References
    ----------
    V. Thilak, C. Huang, O. Saremi, L. Dinh, H. Goh, P. Nakkiran, J. M. Susskind, E. Littwin: LiDAR:
    Sensing linear probing performance in joint embedding SSL architectures. ICLR 2024,
    `arXiv:2312.04000 <https://arxiv.org/abs/2312.04000>`_.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan import spectrum
    >>> rng = np.random.default_rng(0)
    >>> classes = np.repeat(np.arange(200), 20)
    >>> means = np.zeros((200, 16))
    >>> means[:, :3] = 5 * rng.normal(size=(200, 3))       # three directions tell classes apart
    >>> x = means[classes] + rng.normal(size=(4000, 16))
    >>> 3.0 < float(spectrum.lidar(x, classes)) < 3.2
    True
    """
    shift = real("lidar", "delta", delta, low=0.0, high=1e300)
    floor = real("lidar", "eps", eps, low=0.0, high=1.0)
    states = [x] if isinstance(x, Moments) else x
    if isinstance(states, (list, tuple)) and all(isinstance(state, Moments) for state in states):
        if groups is not None:
            raise DtypeError("[lidar] groups must be None for Moments, which hold theirs, got some")
        values = np.array([_of_moments(state, shift, floor) for state in states], dtype=np.float64)
        return values.reshape(() if isinstance(x, Moments) else len(states))
    if not library_of(x):
        raise DtypeError(f"[lidar] x must be an array or Moments, got {type(x).__name__}")
    if len(x.shape) < 2:
        raise InvalidArgumentError(
            f"[lidar] x must have 2 or more axes, got shape {tuple(x.shape)}"
        )
    labels = _labels(groups, int(x.shape[-2]))
    lead = tuple(int(extent) for extent in x.shape[:-2])
    each = [_of_moments(_moments(x[index], labels), shift, floor) for index in np.ndindex(lead)]
    return np.array(each, dtype=np.float64).reshape(lead)


def _labels(groups: Any, n: int) -> Any:
    if groups is None:
        raise InvalidArgumentError("[lidar] groups must name the class of each row, got None")
    labels = np.asarray(to_numpy(groups) if library_of(groups) else groups)
    if labels.shape != (n,):
        raise InvalidArgumentError(
            f"[lidar] groups must have shape ({n},), one per row of x, got {labels.shape}"
        )
    return labels


def _moments(x: Any, labels: Any) -> Moments:
    rows = as_rows(x, "lidar")
    check_finite(rows, "lidar")
    state = Moments(precision="float64")
    for start, stop in row_blocks(rows):
        state.update(float64_block(rows[start:stop]), groups=labels[start:stop])
    return state


def _of_moments(state: Moments, delta: float, eps: float) -> float:
    means, n = state.group_means, len(state.group_labels)
    if n < 2:
        raise InvalidArgumentError(f"[lidar] groups must have at least 2 classes, got {n}")
    freedom = state.weight_sum - n
    if freedom <= 0:
        raise InvalidArgumentError(
            f"[lidar] groups must have classes of 2 or more rows, got {n} classes of "
            f"{state.weight_sum:g} rows"
        )
    within = state.within() / freedom
    within.flat[:: len(within) + 1] += delta
    try:
        factor = np.linalg.cholesky(within)
    except np.linalg.LinAlgError:
        raise InvalidArgumentError(
            f"[lidar] delta must make the covariance within the classes positive definite, got "
            f"{delta:g} beside a mean variance of {np.trace(within) / len(within):.3g}. Give a "
            "larger delta, or more rows"
        ) from None
    apart = (means - means.mean(axis=0)).T / np.sqrt(n - 1)
    roots = svdvals(np.linalg.solve(factor, apart))
    values = np.zeros(len(within))
    values[: len(roots)] = np.square(roots)
    return float(_spectrum.rankme(values, eps))
