"""Slow definitions of the measures, in float64, as the books write them."""

import numpy as np


def centred(x):
    x = np.asarray(x, np.float64)
    return x - x.mean(axis=0)


def linear(x):
    return centred(x) @ centred(x).T


def gaussian(x, bandwidth=1.0):
    squares = np.square(x[:, None] - x[None]).sum(axis=2, dtype=np.float64)
    middle = np.median(np.sqrt(squares[np.triu_indices(len(x), 1)]))
    return np.exp(-squares / (2 * (bandwidth * middle) ** 2))


def hsic(k, m):
    """tr KHMH: the inner product of M with the doubly centred K."""
    return np.sum((k - k.mean(axis=0) - k.mean(axis=1)[:, None] + k.mean()) * m)


def hsic_unbiased(k, m):
    """Song et al. 2012, equation 5, term by term."""
    n, one = len(k), np.ones(len(k))
    k, m = (a - np.diag(np.diag(a)) for a in (k, m))
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * ((one @ k) @ (m @ one))
    return (np.sum(k * m) + middle - last) / (n * (n - 3))


def alignment(k, m, of=hsic):
    return of(k, m) / np.sqrt(of(k, k) * of(m, m))


def basis(x, share=1.0, rtol=1e-10):
    u, s, _ = np.linalg.svd(centred(x), full_matrices=False)
    kept = np.count_nonzero(s > rtol * s[0])
    kept = min(kept, np.searchsorted(np.cumsum(s**2) / np.sum(s**2), share * (1 - 1e-12)) + 1)
    return u[:, :kept]


def canonical(x, y, **cut):
    return np.linalg.svd(basis(x, **cut).T @ basis(y, **cut), compute_uv=False)


def weighted(x, y):
    """PWCCA: weights from the columns of the side of smaller rank."""
    qx, qy = basis(x), basis(y)
    u, rho, vh = np.linalg.svd(qx.T @ qy)
    variates, columns = (
        (qx @ u, centred(x)) if qx.shape[1] <= qy.shape[1] else (qy @ vh.T, centred(y))
    )
    weights = np.array([sum(abs(h @ column) for column in columns.T) for h in variates.T])
    weights = weights[: len(rho)] / weights[: len(rho)].sum()
    return weights @ rho, weights


def whitened(x, alpha):
    """Partial whitening of rows of unit mean variance: singular values a s + (1 - a) mean."""
    u, s, vh = np.linalg.svd(centred(x), full_matrices=False)
    kept = s > 1e-10 * s[0]
    u, s, vh = u[:, kept], s[kept], vh[kept]
    new = alpha * s + (1 - alpha) * np.sqrt(np.mean(s**2))
    return (u * (new * np.linalg.norm(s) / np.linalg.norm(new))) @ vh


def procrustes_cosine(x, y):
    x, y = centred(x), centred(y)
    nuclear = np.linalg.svd(x.T @ y, compute_uv=False).sum()
    return nuclear / (np.linalg.norm(x) * np.linalg.norm(y))
