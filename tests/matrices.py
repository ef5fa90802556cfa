"""Test matrices of LAPACK's own suites, some harder ones, and LAPACK's test ratios.

Ratios are those of TESTING/EIG/ddrvbd.f, dbdt01.f, dort01.f and ddrvst.f: an error over the size of
the data, the dimension and the machine precision. Our gates are tighter than LAPACK's thresholds
(50 and 60): 30 for residuals and orthogonality, 60 for values-only against values with vectors.
"""

import numpy as np

GATE, VALUES_GATE = 30.0, 60.0
SIZES = (1, 2, 3, 10, 16, 30, 40)


def norm1(a):
    """Largest column sum."""
    return np.abs(a).sum(axis=0).max(initial=0.0) if a.size else 0.0


def orthogonal(n, k, rng):
    q, r = np.linalg.qr(rng.standard_normal((n, k)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def with_values(m, n, values, rng):
    k = min(m, n)
    return (orthogonal(m, k, rng) * values) @ orthogonal(n, k, rng).T


def spectrum(kind, k, dtype):
    """Even or geometric from 1 to ulp, or one 1 and the others ulp (clustered)."""
    ulp = float(np.finfo(dtype).eps)
    if kind == "even":
        return np.linspace(1.0, ulp, k)
    if kind == "geometric":
        return np.geomspace(1.0, ulp, k)
    return np.where(np.arange(k) == 0, 1.0, ulp)


def _kahan(m, n):
    c, s = np.cos(1.2), np.sin(1.2)
    full = np.triu(np.full((max(m, n), max(m, n)), -c), 1) + np.eye(max(m, n))
    return (s ** np.arange(max(m, n)))[:, None][:m] * full[:m, :n]


def svd_matrix(kind, m, n, dtype, rng):
    """One matrix of a kind of SVD_KINDS."""
    info = np.finfo(dtype)
    k = min(m, n)
    i, j = np.arange(m)[:, None], np.arange(n)[None, :]
    normal = rng.standard_normal((m, n))
    made = {
        "zero": lambda: np.zeros((m, n)),
        "identity": lambda: np.eye(m, n),
        "even": lambda: with_values(m, n, spectrum("even", k, dtype), rng),
        "even tiny": lambda: (
            with_values(m, n, spectrum("even", k, dtype), rng) * (info.tiny / info.eps)
        ),
        "even huge": lambda: (
            with_values(m, n, spectrum("even", k, dtype), rng) * (float(info.max) * info.eps)
        ),
        "geometric": lambda: with_values(m, n, spectrum("geometric", k, dtype), rng),
        "clustered": lambda: with_values(m, n, spectrum("clustered", k, dtype), rng),
        "duplicate columns": lambda: normal[:, j[0] // 2],
        "zero columns": lambda: normal * (j % 3 != 1),
        "rank one": lambda: np.cumprod(np.full((m, 1), 1.1))[:, None] * np.cumprod(np.full(n, 0.9)),
        "graded": lambda: normal * 10.0 ** (-30.0 * j / max(n - 1, 1)),
        "equal values": lambda: 7.0 * with_values(m, n, np.ones(k), rng),
        "close pairs": lambda: with_values(
            m, n, np.repeat(np.arange(k, 0, -1.0), 2)[:k] + 1e-14 * np.arange(k), rng
        ),
        "kahan": lambda: _kahan(m, n),
        "hilbert": lambda: 1.0 / (i + j + 1.0),
        "vandermonde": lambda: np.vander(np.linspace(0.1, 1.0, m), n),
        "integers": lambda: rng.integers(-9, 10, (m, n)).astype(float),
        "normal": lambda: normal,
    }
    return made[kind]().astype(dtype)


SVD_KINDS = (
    *("zero", "identity", "even", "even tiny", "even huge", "geometric", "clustered"),
    *("duplicate columns", "zero columns", "rank one", "graded", "equal values", "close pairs"),
    *("kahan", "hilbert", "vandermonde", "integers", "normal"),
)


def eigh_matrix(kind, n, dtype, rng):
    """One symmetric matrix of a kind of EIGH_KINDS."""
    info = np.finfo(dtype)
    scale = 1.0
    if kind.endswith(" huge"):
        scale = float(np.sqrt(info.max))
    elif kind.endswith(" tiny"):
        scale = float(np.sqrt(info.tiny))
    kind = kind.removesuffix(" huge").removesuffix(" tiny")
    if kind == "zero":
        a = np.zeros((n, n))
    elif kind == "identity":
        a = np.eye(n)
    elif kind == "symmetric":
        a = rng.uniform(-1, 1, (n, n))
        a = a + a.T
    elif kind == "banded":
        a = rng.uniform(-1, 1, (n, n))
        a = np.triu(np.tril(a + a.T, 2), -2)
    elif kind == "gram":
        x = rng.standard_normal((max(1, n // 2), n))
        a = x.T @ x
    else:
        form, spaced = kind.split()
        values = spectrum(spaced, n, dtype) * rng.choice([-1.0, 1.0], n)
        q = np.eye(n) if form == "diagonal" else orthogonal(n, n, rng)
        a = (q * values) @ q.T
        a = (a + a.T) / 2
    return (a * scale).astype(dtype)


EIGH_KINDS = (
    *("zero", "identity", "diagonal even", "diagonal geometric", "diagonal clustered"),
    *("dense even", "dense geometric", "dense clustered", "dense even huge", "dense even tiny"),
    *("symmetric", "symmetric huge", "symmetric tiny", "banded", "banded huge", "banded tiny"),
    "gram",
)


def over(error, size, dimension, dtype):
    """Return error / (size dimension ulp), 0 for an exact result."""
    if error == 0:
        return 0.0
    return float(error / size / (dimension * np.finfo(dtype).eps)) if size > 0 else np.inf


def svd_ratios(a, u, s, vh):
    """R1, R2, R3 of one matrix."""
    m, n = a.shape
    k = min(m, n)
    top = float(np.abs(a).max())
    wide = a.astype(np.float64) / (top or 1.0)  # so that norms cannot overflow
    product = (u.astype(np.float64) * (s.astype(np.float64) / (top or 1.0))) @ vh
    eye = np.eye(k)
    return (
        over(norm1(wide - product), norm1(wide), max(m, n), a.dtype),
        over(norm1(eye - u.T.astype(np.float64) @ u), 1.0, m, a.dtype),
        over(norm1(eye - vh.astype(np.float64) @ vh.T), 1.0, n, a.dtype),
    )


def eigh_ratios(a, w, z):
    """E1, E2 of one matrix."""
    n = len(a)
    top = float(np.abs(a).max())
    wide = a.astype(np.float64) / (top or 1.0)
    product = (z.astype(np.float64) * (w.astype(np.float64) / (top or 1.0))) @ z.T
    return (
        over(norm1(wide - product), norm1(wide), n, a.dtype),
        over(norm1(np.eye(n) - z.astype(np.float64) @ z.T), 1.0, n, a.dtype),
    )


def same_bits(*pairs):
    """Every pair of arrays has the same shape, dtype and bytes."""
    for a, b in pairs:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def layouts(a):
    """Views that hold the values of `a` (..., m, n), one for every kind of strides."""
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1] + 1), a.dtype)
    wide[..., 1::2] = a
    frozen = a.copy()
    frozen.flags.writeable = False
    raw = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)
    return {
        "fortran": np.asfortranarray(a),
        "strided": wide[..., 1::2],
        "negative columns": a[..., ::-1].copy()[..., ::-1],
        "negative rows": a[..., ::-1, :].copy()[..., ::-1, :],
        "negative batch": a[::-1].copy()[::-1],
        "read-only": frozen,
        "unaligned": raw,
        "transposed": np.ascontiguousarray(np.swapaxes(a, -1, -2)).swapaxes(-1, -2),
    }
