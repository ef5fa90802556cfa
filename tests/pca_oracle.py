"""Rows with known components, and numpy's SVD of them. What the tests of PCA share."""

import numpy as np

ATTRIBUTES = (
    "components_",
    "explained_variance_",
    "explained_variance_ratio_",
    "singular_values_",
    "mean_",
    "noise_variance_",
    "n_components_",
    "n_samples_",
    "n_features_in_",
)


def sample(n=300, d=12, *, offset=0.0, seed=0):
    """Return rows with well separated standard deviations from 1 to 0.05 and mixed columns."""
    rng = np.random.default_rng(seed)
    mix, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return (rng.normal(size=(n, d)) * np.geomspace(1.0, 0.05, d)) @ mix + offset


def reference(x, weights=None):
    """Return mean, variances and components by numpy's SVD of the centred rows in float64."""
    x = np.asarray(x, dtype=np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = w @ x / w.sum()
    _, s, vh = np.linalg.svd((x - mean) * np.sqrt(w)[:, None], full_matrices=False)
    place = np.argmax(np.abs(vh), axis=1)
    vh = vh * np.sign(vh[np.arange(len(vh)), place])[:, None]
    return mean, s**2 / (w.sum() - 1), vh


def assert_same_fit(a, b, rtol=1e-9, atol=1e-12):
    for name in ATTRIBUTES:
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), rtol=rtol, atol=atol, err_msg=name
        )
