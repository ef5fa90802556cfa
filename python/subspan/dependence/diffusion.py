"""Entropies of the spectrum of a diffusion on samples, and what labels take away from them."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks, eigvalsh, kernel_matvec
from subspan.dependence._lanczos import Quadrature, student, tridiagonals
from subspan.dependence._samples import Floats, read_constant
from subspan.dependence.bandwidths import width_of
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = [
    "SpectralEntropy",
    "diffusion_spectral_entropy",
    "diffusion_spectral_mutual_information",
]

Float64 = NDArray[np.float64]
# Rows up to which all eigenvalues are worked out.
_EXACT = 2000
# Columns of a matrix that are made at a time.
_BLOCK = 64
_LOG_2 = float(np.log(2.0))


class SpectralEntropy(NamedTuple):
    """An entropy in bits, and bounds where it is an estimate."""

    value: float
    low: float
    """Lower end of the 95 % confidence interval; the value itself where it is exact."""
    high: float


class _How(NamedTuple):
    """Options of the entropy, checked."""

    width: float
    t: float
    convention: str
    method: str
    n_probes: int
    n_steps: int


def diffusion_spectral_entropy(
    x: Any,
    *,
    bandwidth: Any = 10.0,
    t: float = 1.0,
    convention: str = "reference",
    method: str = "auto",
    n_probes: int = 32,
    n_steps: int = 48,
    seed: int = 0,
) -> SpectralEntropy:
    r"""Return the entropy of the spectrum of a diffusion on the rows.

    .. math:: H = -\sum_i p_i \log_2 p_i, \quad p_i = |\mu_i|^t / \sum_j |\mu_j|^t

    with the eigenvalues :math:`\mu` of :math:`K = D^{-1/2} G D^{-1/2}`, G the Gaussian matrix of
    the rows and D its row sums: log2 of an effective number of modes.

    Parameters
    ----------
    x : array (n, d) or (n,)
        float32 or float64 of numpy, torch or another library with DLPack (CPU).
    bandwidth : float or str
        > 0, in the units of x, or the name of a rule (`kernel_bandwidth`). 10 is the reference
        code's.
    t : float
        > 0: steps of the diffusion.
    convention : {"reference", "markov"}
        Of which matrix the eigenvalues are. "reference": K itself, as in the authors' code.
        "markov": K divided by its row sums once more, the transition matrix of which the paper
        speaks.
    method : {"auto", "exact", "lanczos"}
        All eigenvalues (n² memory, n³ steps), or stochastic Lanczos quadrature (products with G
        alone, memory n n_probes); "auto": exact up to 2000 rows.
    n_probes, n_steps : int
        Random vectors (>= 2) and steps (>= 4) of Lanczos.
    seed : int
        >= 0, of the random vectors.

    Returns
    -------
    SpectralEntropy (value, low, high)
        In bits, 0 (all rows equal) to log2(n).

    Raises
    ------
    InvalidArgumentError
        Fewer than 2 rows, NaN or infinity, an unknown name, an option out of range.
    DtypeError
        x is no array, or not float32 or float64.
    UnsupportedError
        x is on a CUDA device, or requires a gradient.

    Notes
    -----
    All in float64. Lanczos takes n_steps products of G with n_probes vectors, n² (d + n_probes)
    each. The eigenvector of the eigenvalue 1 is known and taken out; for t = 1 the sum of
    eigenvalues is exact. The interval is that of the mean over the probes, widened by what the last
    quarter of the steps changed. The reference adds an epsilon to every p_i, and eigenvalues that
    it has saved are rounded to float16: both move its values.

    References
    ----------
    D. Liao, C. Liu et al.: Assessing neural network representations during training using
    noise-resilient diffusion spectral entropy, 2023 (arXiv 2312.04823); S. Ubaru, J. Chen, Y. Saad:
    Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 38 (2017).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import diffusion_spectral_entropy
    >>> corners = np.repeat([[0.0, 0.0], [0.0, 99.0], [99.0, 0.0], [99.0, 99.0]], 5, axis=0)
    >>> round(diffusion_spectral_entropy(corners, bandwidth=1.0).value, 9)  # four modes
    2.0
    """
    function = "diffusion_spectral_entropy"
    [rows] = read_constant(function, least=2, x=x)
    how = _how(
        function,
        rows,
        bandwidth=bandwidth,
        t=t,
        convention=convention,
        method=method,
        n_probes=n_probes,
        n_steps=n_steps,
    )
    return _entropy(rows, how, np.random.default_rng(_seed(function, seed)))


def diffusion_spectral_mutual_information(
    x: Any,
    labels: Any,
    *,
    n_repeats: int = 5,
    n_clusters: int = 10,
    bandwidth: Any = 10.0,
    t: float = 1.0,
    convention: str = "reference",
    method: str = "auto",
    n_probes: int = 32,
    n_steps: int = 48,
    seed: int = 0,
) -> float:
    r"""Return how much of the spectral entropy of the rows their labels take away.

    .. math:: I = \sum_b \frac{n_b}{n} \bigl( H(x^*_b) - H(x \mid \mathrm{label} = b) \bigr)

    with the `diffusion_spectral_entropy` H, and :math:`x^*_b` as many rows drawn from all:
    entropies of sets of different size do not compare.

    Parameters
    ----------
    x : array (n, d) or (n,)
        float32 or float64 of numpy, torch or another library with DLPack (CPU).
    labels : array (n,) or (n, q)
        Integers or bools (n,), or floats: one column is cut into ``n_clusters`` parts of equal
        width; several are clustered by scikit-learn's ``KMeans``.
    n_repeats : int
        >= 1 drawings, whose entropies are averaged.
    n_clusters : int
        >= 1, for labels that are floats.
    bandwidth, t, convention, method, n_probes, n_steps
        As in `diffusion_spectral_entropy`; rules see all rows.
    seed : int
        >= 0, of the drawings, the clusters and the random vectors.

    Returns
    -------
    float
        In bits.

    Raises
    ------
    InvalidArgumentError
        As `diffusion_spectral_entropy`; labels of another length.
    DtypeError
        As there; labels that are no array of numbers.
    UnsupportedError
        As there.

    Notes
    -----
    Costs (1 + n_repeats) entropies of every label. A label of a single row has entropy 0. The
    reference code clusters floats of several columns by ``SpectralClustering``: give its labels.

    References
    ----------
    As `diffusion_spectral_entropy`, section 4 and the code (`dsmi.py`).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.dependence import diffusion_spectral_mutual_information
    >>> corners = np.repeat([[0.0, 0.0], [0.0, 99.0], [99.0, 0.0], [99.0, 99.0]], 50, axis=0)
    >>> labels = np.repeat([0, 1, 2, 3], 50)
    >>> round(diffusion_spectral_mutual_information(corners, labels, bandwidth=1.0), 2)
    2.0
    """
    function = "diffusion_spectral_mutual_information"
    [rows] = read_constant(function, least=2, x=x)
    how = _how(
        function,
        rows,
        bandwidth=bandwidth,
        t=t,
        convention=convention,
        method=method,
        n_probes=n_probes,
        n_steps=n_steps,
    )
    repeats = _checks.integer(function, "n_repeats", n_repeats, low=1)
    clusters = _checks.integer(function, "n_clusters", n_clusters, low=1)
    generator = np.random.default_rng(_seed(function, seed))
    groups = _groups(function, labels, len(rows), clusters, generator)
    total = 0.0
    for group in np.unique(groups):
        chosen = groups == group
        size = int(chosen.sum())
        drawn = [
            _entropy(rows[generator.choice(len(rows), size, replace=False)], how, generator).value
            for _ in range(repeats)
        ]
        within = _entropy(rows[chosen], how, generator).value
        total += size / len(rows) * (float(np.mean(drawn)) - within)
    return total


def _how(
    function: str,
    rows: Floats,
    *,
    bandwidth: Any,
    t: float,
    convention: str,
    method: str,
    n_probes: int,
    n_steps: int,
) -> _How:
    time = _checks.real(function, "t", t, high=1e6)
    if time <= 0:
        raise InvalidArgumentError(f"[{function}] t must be > 0, got {time}")
    return _How(
        width_of(function, "bandwidth", bandwidth, rows),
        time,
        _checks.choice(function, "convention", convention, ("reference", "markov")),
        _checks.choice(function, "method", method, ("auto", "exact", "lanczos")),
        _checks.integer(function, "n_probes", n_probes, low=2),
        _checks.integer(function, "n_steps", n_steps, low=4),
    )


def _seed(function: str, seed: int) -> int:
    return _checks.integer(function, "seed", seed, low=0)


def _groups(
    function: str, labels: Any, n: int, clusters: int, generator: np.random.Generator
) -> NDArray[Any]:
    """Return one label for each row."""
    _arrays.require_array(function, "labels", labels)
    values = _arrays.to_numpy(labels)
    if values.ndim not in {1, 2} or len(values) != n:
        raise InvalidArgumentError(
            f"[{function}] labels must be ({n},) or ({n}, q), one row for each of x, got shape "
            f"{values.shape}"
        )
    if values.dtype.kind in "iub":
        if values.ndim == 2 and values.shape[1] != 1:
            raise InvalidArgumentError(
                f"[{function}] labels must be ({n},) where they are integers, got {values.shape}"
            )
        return values.reshape(n)
    if values.dtype.kind != "f":
        raise DtypeError(
            f"[{function}] labels must be integers, bools or floats, got {values.dtype}"
        )
    [values] = read_constant(function, least=2, labels=values.astype(np.float64))
    if values.shape[1] == 1:
        low, high = values.min(), values.max()
        width = (high - low) / clusters if high > low else 1.0
        parts: NDArray[Any] = np.minimum((values[:, 0] - low) // width, clusters - 1)
        return parts
    from sklearn.cluster import KMeans

    state = int(generator.integers(1 << 31))
    found = KMeans(min(clusters, n), n_init=4, random_state=state).fit(values)
    return np.asarray(found.labels_)


def _entropy(rows: Floats, how: _How, generator: np.random.Generator) -> SpectralEntropy:
    n = len(rows)
    if n == 1:
        return SpectralEntropy(0.0, 0.0, 0.0)
    scaled = rows.astype(np.float64) / how.width
    if how.method == "exact" or (how.method == "auto" and n <= _EXACT):
        value = _of_eigenvalues(_exact(scaled, how.convention), how.t)
        return SpectralEntropy(value, value, value)
    return _estimated(scaled, how, generator)


def _exact(rows: Float64, convention: str) -> Float64:
    n = len(rows)
    matrix = np.empty((n, n))
    for start in range(0, n, _BLOCK):
        some = rows[start : start + _BLOCK]
        matrix[:, start : start + _BLOCK] = kernel_matvec(rows, some, np.eye(len(some)))
    for _ in range(1 if convention == "reference" else 2):
        roots = np.sqrt(matrix.sum(axis=1))
        matrix /= roots[:, None]
        matrix /= roots
    return np.asarray(eigvalsh(matrix))


def _of_eigenvalues(values: Float64, t: float) -> float:
    # Eigenvalues that are rounding errors stand for 0.
    sizes = np.abs(values)
    powers = np.where(sizes > len(values) * np.finfo(np.float64).eps, sizes, 0.0) ** t
    shares = powers / powers.sum()
    shares = shares[shares > 0]
    return float(max(-(shares * np.log2(shares)).sum(), 0.0))


def _estimated(rows: Float64, how: _How, generator: np.random.Generator) -> SpectralEntropy:
    """H = log S - t T / S, with the sums S of |mu|^t and T of |mu|^t log |mu|."""
    n = len(rows)

    def of_gaussian(v: Float64) -> Float64:
        return np.asarray(kernel_matvec(rows, None, v))

    # The matrix is R G R, and its eigenvector of 1 the root of what it was divided by.
    degrees = of_gaussian(np.ones(n))
    roots = 1.0 / np.sqrt(degrees)
    top = np.sqrt(degrees)
    if how.convention == "markov":
        again = roots * of_gaussian(roots)
        roots, top = roots / np.sqrt(again), np.sqrt(again)
    probes = np.asarray(generator.choice([-1.0, 1.0], (n, how.n_probes)), np.float64)
    whole, shorter = tridiagonals(
        lambda v: roots[:, None] * of_gaussian(roots[:, None] * v),
        probes,
        top / np.linalg.norm(top),
        min(how.n_steps, n),
    )
    # For t = 1 the sum of all eigenvalues is the trace, of a Gaussian with ones on its diagonal.
    trace = float(np.square(roots).sum()) if how.t == 1 else None
    value, varied = _of_quadrature(whole, how.t, trace)
    earlier, _ = _of_quadrature(shorter, how.t, trace)
    half = student(how.n_probes - 1) * float(np.std(varied, ddof=1)) / np.sqrt(how.n_probes)
    half += abs(value - earlier)
    return SpectralEntropy(value, max(value - half, 0.0), min(value + half, float(np.log2(n))))


def _of_quadrature(found: Quadrature, t: float, trace: float | None) -> tuple[float, Float64]:
    """Return H in bits, and how it varies with each of the probes, to first order."""
    sizes = np.abs(found.nodes)
    logs = np.log(sizes, out=np.zeros_like(sizes), where=sizes > 0)
    powers = found.weights * sizes**t
    # Without the eigenvalue 1, whose logarithm is 0.
    masses, products = powers.sum(axis=1), (powers * logs).sum(axis=1)
    mass = 1.0 + masses.mean() if trace is None else trace
    ratio = t * products.mean() / mass
    varied = -t * products / mass
    if trace is None:
        varied = varied + (1.0 + ratio) * masses / mass
    return max(float(np.log(mass) - ratio), 0.0) / _LOG_2, varied / _LOG_2
