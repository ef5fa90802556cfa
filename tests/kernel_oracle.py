"""Kernel matrices by their definitions, dense and in float64."""

import numpy as np

RADIAL = (
    *("gaussian", "laplacian", "matern12", "matern32", "matern52", "cauchy"),
    *("rational_quadratic", "distance", "sqdistance"),
)
OF_PRODUCTS = ("exp_dot", "softmax", "linear", "polynomial")
KERNELS = RADIAL + OF_PRODUCTS


def matrix(x, y, kernel, bandwidth=1.0, alpha=1.0, degree=3, offset=1.0):
    """Return K [..., n, m]; works on numpy arrays of any float dtype, and computes in float64."""
    x, y = (np.asarray(a, np.float64) for a in (x, y))
    b = np.broadcast_to(np.asarray(bandwidth, np.float64), x.shape[-1:])
    if kernel in RADIAL:
        square = (((x[..., :, None, :] - y[..., None, :, :]) / b) ** 2).sum(-1)
        d = np.sqrt(square)
        t3, t5 = np.sqrt(3) * d, np.sqrt(5) * d
        return {
            "gaussian": lambda: np.exp(-square / 2),
            "laplacian": lambda: np.exp(-d),
            "matern12": lambda: np.exp(-d),
            "matern32": lambda: (1 + t3) * np.exp(-t3),
            "matern52": lambda: (1 + t5 + t5**2 / 3) * np.exp(-t5),
            "cauchy": lambda: 1 / (1 + square),
            "rational_quadratic": lambda: (1 + square / (2 * alpha)) ** -alpha,
            "distance": lambda: d,
            "sqdistance": lambda: square,
        }[kernel]()
    p = (x / b) @ np.swapaxes(y, -1, -2)
    if kernel == "softmax":
        p = np.exp(p - p.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)
    return {
        "exp_dot": lambda: np.exp(p),
        "linear": lambda: p,
        "polynomial": lambda: (p + offset) ** degree,
    }[kernel]()


def error(out, x, y, v, kernel, **options):
    """Return the greatest error over sum_j |K_ij v_j|; `spread` widens it for signed products."""
    k, v = matrix(x, y, kernel, **options), np.asarray(v, np.float64)
    wanted, size = k @ v, np.abs(k) @ np.abs(v)
    out = np.asarray(out, np.float64)
    assert out.shape == wanted.shape
    return float(np.max(np.abs(out - wanted) / np.where(size > 0, size, 1), initial=0.0))


def product(x, y, v, kernel, bandwidth, *, alpha=1.0, degree=3, offset=1.0):
    """Return K v of torch tensors, dense, so that autograd knows it; no equal points."""
    p = (x / bandwidth) @ y.mT
    square = ((x[..., :, None, :] - y[..., None, :, :]) / bandwidth).square().sum(-1)
    d = square.sqrt()
    t3, t5 = 3**0.5 * d, 5**0.5 * d
    k = {
        "gaussian": (-square / 2).exp,
        "laplacian": (-d).exp,
        "matern32": lambda: (1 + t3) * (-t3).exp(),
        "matern52": lambda: (1 + t5 + t5**2 / 3) * (-t5).exp(),
        "cauchy": lambda: 1 / (1 + square),
        "rational_quadratic": lambda: (1 + square / (2 * alpha)) ** -alpha,
        "distance": lambda: d,
        "sqdistance": lambda: square,
        "exp_dot": p.exp,
        "softmax": lambda: p.softmax(-1),
        "linear": lambda: p,
        "polynomial": lambda: (p + offset) ** degree,
    }[kernel]()
    return k @ v
