"""Sparse encoders: what they refuse, and how they say so."""

import numpy as np
import pytest
import subspan
from subspan import _core, batch_topk_encode, threshold_encode, topk_encode
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

X, W, ONE = np.ones((2, 3)), np.ones((3, 4)), np.ones(4)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"activation": "gelu"}, InvalidArgumentError, "activation must be one of 'relu', 'relu_f"),
        ({"x": [[1.0]]}, DtypeError, "x must be an array .*, got list"),
        ({"x": np.float64(1)}, DtypeError, "x must be an array"),
        ({"x": np.array(1.0)}, InvalidArgumentError, "x must have 1 or more axes, got 0"),
        ({"x": np.ones((2, 3), int)}, DtypeError, "x must be float16, .* or float64, got int64"),
        ({"x": np.ones((2, 3), ">f4")}, DtypeError, "x must be float16, .*, got >f4"),
        ({"x": np.ma.masked_array(X)}, DtypeError, "x must have no mask"),
        ({"x": np.ones((2, 4))}, InvalidArgumentError, "w_enc must have d = 4 rows, .* got 3"),
        ({"w_enc": W.astype("f4")}, DtypeError, "w_enc must be float64 like x, got float32"),
        ({"w_enc": ONE}, InvalidArgumentError, "w_enc must have 2 axes, got 1"),
        ({"b_enc": np.ones(3)}, InvalidArgumentError, "b_enc must have 4 elements, got 3"),
        ({"b_enc": W}, InvalidArgumentError, "b_enc must have 1 axes, got 2"),
        ({"b_enc": ONE.astype("f2")}, DtypeError, "b_enc must be float64 like x, got float16"),
        ({"b_pre": ONE}, InvalidArgumentError, "b_pre must have 3 elements, got 4"),
        ({"b_pre": [1.0, 2.0, 3.0]}, DtypeError, "b_pre must be an array .*, got list"),
    ],
)
def test_refusals(arguments, kind, text):
    arguments = {"x": X, "w_enc": W} | arguments
    for function in (topk_encode, batch_topk_encode):
        with pytest.raises(kind, match=rf"\[{function.__name__}\] {text}"):
            function(**arguments, k=2)
    if "activation" not in arguments:
        with pytest.raises(kind, match=rf"\[threshold_encode\] {text}"):
            threshold_encode(**arguments, threshold=1)


@pytest.mark.parametrize(
    ("k", "kind", "text"),
    [
        (5, InvalidArgumentError, r"k must be in 1\.\.4, got 5"),
        (0, InvalidArgumentError, r"k must be in 1\.\.4, got 0"),
        (2.0, DtypeError, r"k must be an integer, got float 2\.0"),
        (True, DtypeError, r"k must be an integer, got bool True"),
    ],
)
def test_refused_numbers_of_a_row(k, kind, text):
    with pytest.raises(kind, match=r"\[topk_encode\] " + text):
        topk_encode(X, W, k=k)


@pytest.mark.parametrize(
    ("k", "kind", "text"),
    [
        (5, InvalidArgumentError, r"k must be in 0\.\.4, got 5"),
        (-1, InvalidArgumentError, r"k must be in 0\.\.4, got -1"),
        (4.5, InvalidArgumentError, r"k must be in \[0, 4\], got 4\.5"),
        (float("nan"), InvalidArgumentError, r"k must be in \[0, 4\], got nan"),
        (True, DtypeError, "k must be a.* True"),
        ("2", DtypeError, "k must be a number, got '2'"),
        (None, DtypeError, "k must be a number, got NoneType"),
    ],
)
def test_refused_numbers_of_a_batch(k, kind, text):
    with pytest.raises(kind, match=r"\[batch_topk_encode\] " + text):
        batch_topk_encode(X, W, k=k)


@pytest.mark.parametrize(
    ("threshold", "kind", "text"),
    [
        (np.ones(3), InvalidArgumentError, "threshold must have 4 elements, got 3"),
        (W, InvalidArgumentError, "threshold must have 1 axes, got 2"),
        (np.array(1.0), InvalidArgumentError, "threshold must have 1 axes, got 0"),
        (ONE.astype("f4"), DtypeError, "threshold must be float64 like x, got float32"),
        ("high", DtypeError, "threshold must be a number, got 'high'"),
        (None, DtypeError, "threshold must be a number, got NoneType"),
        (float("nan"), InvalidArgumentError, r"threshold must be in \[-inf, inf\], got nan"),
    ],
)
def test_refused_thresholds(threshold, kind, text):
    with pytest.raises(kind, match=r"\[threshold_encode\] " + text):
        threshold_encode(X, W, threshold=threshold)


def test_libraries_are_not_mixed():
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match=r"\[topk_encode\] w_enc must be of the library .* of x"):
        topk_encode(torch.ones(2, 3, dtype=torch.float64), W, k=1)
    with pytest.raises(DtypeError, match=r"\[threshold_encode\] threshold must be of the library"):
        threshold_encode(X, W, threshold=torch.ones(4, dtype=torch.float64))


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    x, w_enc = (Producer(a.astype("f4"), device=CUDA) for a in (X, W))
    for encode in (
        lambda: topk_encode(x, w_enc, k=1),
        lambda: batch_topk_encode(x, w_enc, k=1),
        lambda: threshold_encode(x, w_enc, threshold=1),
    ):
        with pytest.raises(UnsupportedError, match=r"_encode\] .*CUDA"):
            encode()


def core_topk(**change):
    given = {
        "x": X,
        "w_enc": W,
        "b_enc": None,
        "b_pre": None,
        "values": np.zeros((2, 2)),
        "indices": np.zeros((2, 2), np.int64),
        "activation": "relu",
        "certified": False,
    }
    _core.topk_encode(**(given | change))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"values": np.zeros((2, 5))}, r"k must be in 1\.\.4, got 5"),
        ({"values": np.zeros((3, 2))}, "values must be C-ordered, on the device of x, and of"),
        ({"values": np.zeros((2, 4))[:, ::2]}, "values must be C-ordered"),
        ({"values": X[:, :2].copy(), "indices": np.zeros((2, 3), np.int64)}, "indices must be C-o"),
        ({"values": W.reshape(-1)[:4].reshape(2, 2)}, "values must not overlap an input"),
        ({"values": np.zeros(4)}, "values must have 2 axes, got 1"),
        ({"values": np.zeros((2, 2), "f4")}, "values must be float64, got float32"),
        ({"indices": np.zeros((2, 2), "i4")}, "indices must be int64, got int32"),
        ({"activation": "none"}, "activation must be one of 'relu', .*, got 'none'"),
    ],
)
def test_refusals_of_the_core(change, text):
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"\[topk_encode\] " + text):
        core_topk(**change)


def room(count):
    return np.zeros(count), np.zeros(count, np.int64)


@pytest.mark.parametrize(
    ("allocate", "text"),
    [
        (lambda n: room(n + 1), "allocate must return arrays of 8 elements, got 9 and 9"),
        (lambda n: (*room(n), 1), "allocate must return values and indices, got 3 objects"),
        (lambda n: (np.zeros(n, "f4"), np.zeros(n, np.int64)), "values must be float64"),
        (lambda n: (np.zeros(n), np.zeros(n)), "indices must be int64, got float64"),
    ],
)
def test_refused_room(allocate, text):
    offsets = np.zeros(3, np.int64)
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"_encode\] " + text):
        _core.threshold_encode(X, W, None, None, np.zeros(4), offsets, allocate)
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"_encode\] " + text):
        _core.batch_topk_encode(X, W, None, None, 8, offsets, allocate, "relu")


def test_refusals_of_the_ragged_core():
    with pytest.raises(InvalidArgumentError, match=r"count must be in 0\.\.8, got 9"):
        _core.batch_topk_encode(X, W, None, None, 9, np.zeros(3, np.int64), room, "relu")
    with pytest.raises(InvalidArgumentError, match="offsets must be C-ordered"):
        _core.batch_topk_encode(X, W, None, None, 2, np.zeros(2, np.int64), room, "relu")
    with pytest.raises(InvalidArgumentError, match="offsets must be C-ordered"):
        _core.threshold_encode(X, W, None, None, ONE, np.zeros(6, np.int64)[::2], room)


def test_an_error_while_room_is_made_gets_out():
    def fail(_):
        raise LookupError("no room")

    for _ in range(3):
        with pytest.raises(LookupError, match="no room"):
            _core.threshold_encode(X, W, None, None, ONE, np.zeros(3, np.int64), fail)
    assert subspan.topk_encode(X, W, k=1).values.tolist() == [[3.0], [3.0]]
