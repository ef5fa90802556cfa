"""sparse_decode in plain numpy: dense products in float64. What its tests share."""

import numpy as np
from subspan import _core

FLOATS = ["float16", "float32", "float64"]
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24, "float64": 2.0**-53}
LEVELS = ("baseline", "v3", "v4")


def dense(values, indices, n, offsets=None):
    """The code as a float64 matrix [rows, n]; duplicates add."""
    values, indices = np.asarray(values, np.float64), np.asarray(indices)
    if offsets is None:
        lengths = np.full(int(np.prod(values.shape[:-1])), values.shape[-1])
    else:
        lengths = np.diff(offsets)
    f = np.zeros((len(lengths), n))
    np.add.at(f, (np.repeat(np.arange(len(lengths)), lengths), indices.ravel()), values.ravel())
    return f


def problem(rng, rows=7, k=5, n=20, d=33, dtype="float32"):
    values = rng.standard_normal((rows, k)).astype(dtype)
    indices = rng.integers(0, n, (rows, k))
    w = rng.standard_normal((n, d)).astype(dtype)
    b = rng.standard_normal(d).astype(dtype)
    return values, indices, w, b


def close(got, code, w, b, dtype):
    """Within the rounding of float32 (float64) sums and one rounding of the result."""
    values, indices, *offsets = code
    n = len(w)
    f, magnitude = (dense(v, indices, n, *offsets) for v in (values, np.abs(values)))
    w = np.asarray(w, np.float64)
    wanted = f @ w + (0 if b is None else np.asarray(b, np.float64))
    size = magnitude @ np.abs(w) + (0 if b is None else np.abs(np.asarray(b, np.float64)))
    terms = 4 + np.minimum((magnitude != 0).sum(1, keepdims=True), 1024)
    unit = max(EPS["float32"], EPS[dtype]) if dtype != "float64" else EPS["float64"]
    sums = EPS["float64"] if dtype == "float64" else EPS["float32"]
    tiny = 2.0**-25 if dtype == "float16" else 0
    assert got.shape == wanted.shape
    bound = terms * sums * size + unit * np.abs(wanted) + tiny
    assert (np.abs(np.asarray(got, np.float64) - wanted) <= bound).all()


def near(got, wanted, dtype, scale=1.0):
    tol = {"float16": 4e-3, "float32": 2e-6, "float64": 4e-15}[dtype]
    atol = tol * scale * max(1.0, np.abs(wanted).max(initial=0.0))
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=tol, atol=atol)


def gradients(values, indices, w, gradient, offsets=None, rows=None):
    """All three, from the core."""
    of_values, of_w = np.full(values.size, 7, w.dtype), np.full(w.shape, 7, w.dtype)
    of_b = np.full(w.shape[1], 7, w.dtype)
    rows = len(gradient) if rows is None else rows
    code = (np.ascontiguousarray(values).ravel(), np.ascontiguousarray(indices).ravel())
    _core.sparse_decode_backward(*code, offsets, rows, w, gradient, of_values, of_w, of_b)
    return of_values, of_w, of_b


def encoder_gradients(dz, indices, x, b_pre, w_enc):
    """All four, from the core, in the layout of w_enc."""
    d, n = w_enc.shape
    turned = not w_enc.flags.c_contiguous
    of_w = np.full((n, d), 7, x.dtype).T if turned else np.full((d, n), 7, x.dtype)
    out = of_w, np.full(n, 7, x.dtype), np.full(x.shape, 7, x.dtype), np.full(d, 7, x.dtype)
    code = (dz.ravel(), indices.ravel(), None, len(x))
    _core.topk_encode_backward(*code, n, x, b_pre, w_enc, *out)
    return out
