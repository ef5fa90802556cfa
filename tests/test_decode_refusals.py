"""sparse_decode: what it refuses, and how it says so."""

import numpy as np
import pytest
from subspan import _core, sparse_decode
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

ONES, WHERE, W = np.ones((2, 3)), np.zeros((2, 3), np.int64), np.ones((4, 5))


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"values": [1.0]}, DtypeError, r"values must be an array .*, got list"),
        ({"values": np.ones((2, 3), int)}, DtypeError, "values must be float16, .*, got int64"),
        ({"indices": WHERE.astype(np.int32)}, DtypeError, "indices must be int64, got int32"),
        ({"indices": ONES}, DtypeError, "indices must be int64, got float64"),
        ({"w_dec": W.astype("f4")}, DtypeError, "w_dec must be float64 like values, got float32"),
        ({"b_dec": np.ones(5, "f4")}, DtypeError, "b_dec must be float64 like values, got float32"),
        ({"w_dec": np.ones(5)}, InvalidArgumentError, "w_dec must have 2 axes, got 1"),
        ({"b_dec": np.ones(4)}, InvalidArgumentError, r"b_dec must have shape \(5,\), .*\(4,\)"),
        ({"indices": WHERE[:1]}, InvalidArgumentError, r"indices must have the shape of values"),
        (
            {"values": np.array(1.0), "indices": np.array(1)},
            InvalidArgumentError,
            "values must have 1 or more axes, got 0",
        ),
        ({"offsets": np.array([0, 6])}, InvalidArgumentError, "values must have 1 axes, got 2"),
        (
            {"indices": np.array([[0, 1, 3], [2, 4, -1]])},
            InvalidArgumentError,
            r"indices must be in 0\.\.3 \(4 features\), got 4 at row 1, position 1",
        ),
        (
            {"indices": np.array([[0, 1, 3], [2, 3, -1]])},
            InvalidArgumentError,
            r"indices must be in 0\.\.3 \(4 features\), got -1 at row 1, position 2",
        ),
        ({"w_dec": np.ma.masked_array(W)}, DtypeError, "w_dec must have no mask"),
    ],
)
def test_refusals(change, kind, text):
    arguments = {"values": ONES, "indices": WHERE, "w_dec": W} | change
    with pytest.raises(kind, match=r"\[sparse_decode\] " + text):
        sparse_decode(**arguments)


@pytest.mark.parametrize(
    ("offsets", "kind", "text"),
    [
        (np.array([0, 4, 2, 6]), InvalidArgumentError, "ascend from 0 .*, 6, got 2 at position 2"),
        (np.array([1, 4, 6]), InvalidArgumentError, "ascend from 0 .*, 6, got 1 at position 0"),
        (np.array([0, 4, 7]), InvalidArgumentError, "ascend from 0 .*, 6, got 7 at position 2"),
        (np.array([0, 4, 5]), InvalidArgumentError, "ascend from 0 .*, 6, got 5 at position 2"),
        (np.array([0]), InvalidArgumentError, "ascend from 0 .*, 6, got 0 at position 0"),
        (np.zeros(0, int), InvalidArgumentError, "offsets must have one element more .*, got none"),
        (np.array([[0, 6]]), InvalidArgumentError, "offsets must have 1 axes, got 2"),
        (np.array([0.0, 6.0]), DtypeError, "offsets must be int64, got float64"),
    ],
)
def test_refused_offsets(offsets, kind, text):
    with pytest.raises(kind, match=r"\[sparse_decode\] .*" + text):
        sparse_decode(np.ones(6), np.zeros(6, np.int64), W, offsets=offsets)
    where = np.array([0, 1, 2, 3, 9, 1])
    with pytest.raises(InvalidArgumentError, match="got 9 at row 2, position 1"):
        sparse_decode(np.ones(6), where, W, offsets=np.array([0, 2, 3, 6]))


def test_the_first_of_many_bad_indices_is_named_before_anything_is_written(threads, rng):
    indices = rng.integers(0, 4, (20_000, 5))
    indices[(777, 900, 15_000), (2, 0, 4)] = 4
    out = np.full((20_000, 5), 7.0)
    values = np.ones(100_000)
    for count in (1, 2):
        threads(count)
        with pytest.raises(InvalidArgumentError, match="got 4 at row 777, position 2"):
            _core.sparse_decode(values, indices.ravel(), None, 20_000, W, None, out)
        written = np.full_like(W, 7)
        code = (values, indices.ravel(), None, 20_000)
        with pytest.raises(InvalidArgumentError, match="got 4 at row 777, position 2"):
            _core.sparse_decode_backward(*code, W, out, None, written, None)
        assert (written == 7).all()
    assert (out == 7).all()


def core(**change):
    arguments = {
        "values": np.ones(6),
        "indices": np.zeros(6, np.int64),
        "offsets": None,
        "rows": 2,
        "w_dec": W,
        "b_dec": None,
        "out": np.zeros((2, 5)),
    } | change
    _core.sparse_decode(**arguments)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rows": 4, "out": np.zeros((4, 5))}, "values must be as many in each of 4 rows, got 6"),
        ({"indices": np.zeros(5, np.int64)}, "indices must be as many as values, 6, got 5"),
        ({"offsets": np.array([0, 6])}, "offsets must have 3 elements, got 2"),
        ({"b_dec": np.ones(4)}, r"b_dec must have shape \(5\), got \(4\)"),
        ({"out": np.zeros((2, 4))}, r"out must have shape \(2, 5\), got \(2, 4\)"),
        ({"out": np.zeros((5, 2)).T}, "out must be of the documented strides"),
        ({"w_dec": W.astype(np.float32)}, "w_dec must be float64, got float32"),
    ],
)
def test_refusals_of_the_core(change, text):
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"\[sparse_decode\] " + text):
        core(**change)


def test_refusals_of_the_backward_passes():
    code = (np.ones(6), np.zeros(6, np.int64), None, 2)
    with pytest.raises(InvalidArgumentError, match=r"grad_out must have shape \(2, 5\)"):
        _core.sparse_decode_backward(*code, W, np.ones((3, 5)), np.ones(6), None, None)
    with pytest.raises(InvalidArgumentError, match=r"grad_values must have shape \(6\), got \(5\)"):
        _core.sparse_decode_backward(*code, W, np.ones((2, 5)), np.ones(5), None, None)
    x, w = np.ones((2, 5)), np.ones((5, 4))
    with pytest.raises(InvalidArgumentError, match="x must be given for the gradient of w_enc"):
        _core.topk_encode_backward(*code, 4, None, None, w, np.ones((5, 4)), None, None, None)
    with pytest.raises(InvalidArgumentError, match="w_enc must be given for the gradients of x"):
        _core.topk_encode_backward(*code, 4, x, None, None, None, None, np.ones((2, 5)), None)
    wide = np.ones((5, 8))[:, ::2]
    with pytest.raises(InvalidArgumentError, match="grad_w_enc must be of the documented strides"):
        _core.topk_encode_backward(*code, 4, x, None, w, wide, None, None, None)
    with pytest.raises(InvalidArgumentError, match=r"\[topk_encode\] w_enc must have shape"):
        _core.topk_encode_backward(*code, 9, x, None, w, None, None, x.copy(), None)


def test_outputs_that_overlap_are_refused():
    memory = np.zeros(30)
    with pytest.raises(InvalidArgumentError, match="out must not overlap what is read"):
        core(w_dec=memory[:20].reshape(4, 5), out=memory[15:25].reshape(2, 5))


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    def far(a):
        return Producer(a, device=CUDA)

    with pytest.raises(UnsupportedError, match="values on a CUDA device must be of torch or cupy"):
        sparse_decode(far(ONES), far(WHERE), far(W))
    with pytest.raises(DtypeError, match="must be of the library and on the device of values"):
        sparse_decode(ONES, WHERE, far(W))
    single = {"values": np.ones(6, "f4"), "w_dec": W.astype("f4"), "out": np.zeros((2, 5), "f4")}
    for name in ("values", "w_dec", "out"):
        with pytest.raises(InvalidArgumentError, match="must be on the device of values"):
            core(**single | {name: far(single[name])})


@pytest.mark.skipif(_core.has_cuda(), reason="there is a CUDA device")
def test_cuda_memory_is_never_read():
    from test_interop import CUDA, INT, Producer

    def far(*shape):
        return Producer(np.full(shape, np.nan, "f4"), device=CUDA)

    where = Producer(np.full(6, -1), device=CUDA, code=INT)
    code = (far(6), where, None, 2)
    with pytest.raises(UnsupportedError, match=r"no CUDA (library|device)"):
        _core.sparse_decode(*code, far(4, 5), None, far(2, 5))
    with pytest.raises(UnsupportedError, match=r"no CUDA (library|device)"):
        _core.sparse_decode_backward(*code, far(4, 5), far(2, 5), far(6), far(4, 5), far(5))
    with pytest.raises(UnsupportedError, match=r"no CUDA (library|device)"):
        _core.topk_encode_backward(
            *code, 4, far(2, 5), far(5), far(5, 4), far(5, 4), far(4), far(2, 5), far(5)
        )
