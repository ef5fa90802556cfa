"""Sparse encoders in plain numpy: dense float64 and a stable sort. What their tests share."""

import numpy as np
from matrices import same_bits
from subspan import RaggedCode, SparseCode, batch_topk_encode, threshold_encode, topk_encode

FLOATS = ["float16", "float32", "float64"]
LEVELS = ("baseline", "v3", "v4")
ACTIVATIONS = ("relu", "relu_first", "identity")


def dense(x, w_enc, b_enc=None, b_pre=None):
    """Return z in float64; exact for small integers, whatever the dtype."""
    x, w_enc = x.astype(np.float64), w_enc.astype(np.float64)
    if b_pre is not None:
        x = x - b_pre.astype(np.float64)
    with np.errstate(invalid="ignore"):
        z = x @ w_enc
    return z if b_enc is None else z + b_enc.astype(np.float64)


def best_of_rows(z, k, activation, dtype):
    """The k largest by a stable sort: equal ones by index, NaN last."""
    if activation == "relu_first":
        z = np.maximum(z, 0)
    indices = np.argsort(-z, axis=-1, kind="stable")[..., :k]
    values = np.take_along_axis(z, indices, axis=-1)
    if activation == "relu":
        values = np.maximum(values, 0)
    return SparseCode((values + 0.0).astype(dtype), indices)


def ragged_of(z, mask, dtype):
    rows, columns = np.nonzero(mask)
    offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int64)
    return RaggedCode((z[rows, columns] + 0.0).astype(dtype), columns.astype(np.int64), offsets)


def best_of_batch(z, count, activation, dtype):
    flat = z.ravel()
    order = np.argsort(-flat, kind="stable")[: np.count_nonzero(~np.isnan(flat))][:count]
    if activation != "identity":
        order = order[flat[order] > 0]
    mask = np.zeros(flat.shape, bool)
    mask[order] = True
    return ragged_of(z, mask.reshape(z.shape), dtype)


def integers(rng, shape, dtype="float32", reach=3):
    """Small integers: products are exact, and ties are everywhere."""
    return rng.integers(-reach, reach, shape, endpoint=True).astype(dtype)


def problem(rng, rows, d, n, dtype="float32", biases=True):
    x, w_enc = integers(rng, (rows, d), dtype), integers(rng, (d, n), dtype)
    if not biases:
        return x, w_enc, None, None
    return x, w_enc, integers(rng, n, dtype, 9), integers(rng, d, dtype)


def same_code(got, wanted):
    assert type(got) is type(wanted)
    same_bits(*zip(got, wanted, strict=True))


def check_topk(x, w_enc, b_enc, b_pre, k, activation="relu"):
    got = topk_encode(x, w_enc, b_enc, k=k, b_pre=b_pre, activation=activation)
    same_code(got, best_of_rows(dense(x, w_enc, b_enc, b_pre), k, activation, x.dtype))


def check_batch(x, w_enc, b_enc, b_pre, k, activation="relu"):
    got = batch_topk_encode(x, w_enc, b_enc, k=k, b_pre=b_pre, activation=activation)
    count = int(k * len(x))
    same_code(got, best_of_batch(dense(x, w_enc, b_enc, b_pre), count, activation, x.dtype))
    return got


def check_threshold(x, w_enc, b_enc, b_pre, threshold):
    got = threshold_encode(x, w_enc, b_enc, threshold=threshold, b_pre=b_pre)
    z = dense(x, w_enc, b_enc, b_pre)
    same_code(got, ragged_of(z, z > threshold, x.dtype))
    return got


def check_all(x, w_enc, b_enc, b_pre, ks):
    n = w_enc.shape[1]
    for k in ks:
        for activation in ACTIVATIONS:
            check_topk(x, w_enc, b_enc, b_pre, k, activation)
            check_batch(x, w_enc, b_enc, b_pre, k, activation)
    threshold = (np.arange(n) % 7 * 3 - 3).astype(x.dtype)
    check_threshold(x, w_enc, b_enc, b_pre, threshold)


def rows_of(z, dtype="float32", rows=3):
    """A problem whose z is the same given row in all rows: without depth, it is the bias."""
    bias = np.asarray(z, dtype)
    return np.zeros((rows, 0), dtype), np.zeros((0, len(bias)), dtype), bias


def codes_of(x, w_enc, b_enc, b_pre):
    yield topk_encode(x, w_enc, b_enc, k=13, b_pre=b_pre)
    yield topk_encode(x, w_enc, b_enc, k=5, b_pre=b_pre, activation="relu_first")
    yield batch_topk_encode(x, w_enc, b_enc, k=4.3, b_pre=b_pre)
    yield batch_topk_encode(x, w_enc, b_enc, k=7, b_pre=b_pre, activation="identity")
    yield threshold_encode(x, w_enc, b_enc, threshold=10.0, b_pre=b_pre)
