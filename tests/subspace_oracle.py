"""Subspaces with known angles, and slow definitions by projectors of n x n."""

import numpy as np

EPS = np.finfo(np.float64).eps


def frame(rng, n, p, lead=()):
    """Random orthonormal bases."""
    return np.linalg.qr(rng.standard_normal((*lead, n, p)))[0]


def mixing(rng, p, lead=(), *, condition=10.0):
    """Random changes of basis."""
    return frame(rng, p, p, lead) * np.linspace(1, condition, p) @ frame(rng, p, p, lead)


def planted(rng, n, p, q, theta, lead=(), *, mix=True):
    """Bases of dimensions p and q with the principal angles ``theta``, min(p, q) of them."""
    k = min(p, q)
    whole = frame(rng, n, n, lead)
    a = whole[..., :p]
    partner = whole[..., p : p + k]
    near = a[..., :k] * np.cos(theta) + partner * np.sin(theta)
    b = np.concatenate([near, whole[..., p + k : p + q]], axis=-1)
    if not mix:
        return a, b
    return a @ mixing(rng, p, lead), b @ mixing(rng, q, lead)


def projector(a):
    q = np.linalg.qr(a)[0]
    return q @ q.mT


def apart(a, b):
    """Largest entry of the difference of projectors: how far two subspaces are from equal."""
    return float(np.max(np.abs(projector(a) - projector(b)), initial=0.0))
