"""knn: layouts, libraries, and everything that is refused."""

import numpy as np
import pytest
from matrices import same_bits
from neighbor_oracle import FLOATS, INTEGERS, METRICS, random_rows
from subspan import KNN, _core, knn
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

# ---- layouts and libraries ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
@pytest.mark.parametrize("metric", METRICS)
def test_layouts_give_the_same_bits(dtype, metric, rng):
    x = random_rows((130, 37), dtype, rng)
    y = random_rows((300, 37), dtype, rng)
    whole = knn(x, y, k=8, metric=metric)

    def views(a):
        wide = np.zeros((a.shape[0], 2 * a.shape[1] + 1), a.dtype)
        wide[:, 1::2] = a
        frozen = a.copy()
        frozen.flags.writeable = False
        raw = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(dtype).reshape(a.shape)
        yield from (wide[:, 1::2], frozen, raw, np.asfortranarray(a))
        yield from (a[:, ::-1].copy()[:, ::-1], a[::-1].copy()[::-1])

    for view, other in zip(views(x), list(views(y))[::-1], strict=True):
        same_bits(*zip(knn(view, other, k=8, metric=metric), whole, strict=True))


def test_rows_are_not_copied(monkeypatch, rng):
    seen = []
    called = _core.knn
    monkeypatch.setattr(
        _core, "knn", lambda x, y, *rest: seen.extend([x, y]) or called(x, y, *rest)
    )
    x = rng.standard_normal((60, 50)).astype(np.float32)
    for view in (x, x[::2, ::-1], x.T, x[:, ::-3]):
        knn(view, k=2)
    assert all(np.shares_memory(part, x) for part in seen)
    assert len(seen) == 8


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_same_library_out(library, dtype, rng):
    if library.name == "array_api_strict" and dtype == "float16":
        pytest.skip("the standard has no float16")
    x, y = random_rows((30, 8), dtype, rng), random_rows((90, 8), dtype, rng)
    mask, ids = rng.random((30, 90)) < 0.9, rng.permutation(90)[:60]
    plain = knn(x, y, k=5, mask=mask, ids=ids)
    result = knn(*map(library.put, (x, y)), k=5, mask=library.put(mask), ids=library.put(ids))
    assert isinstance(result, KNN)
    assert all(library.owns(part) for part in result)
    same_bits(*((library.get(a), b) for a, b in zip(result, plain, strict=True)))


def test_views_of_torch(rng):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(rng.standard_normal((80, 60)).astype(np.float32))
    for view in (x.T, x[:, 1::2], x[5].expand(40, 60)):
        plain = knn(np.ascontiguousarray(view.numpy()), k=3)
        same_bits(*((a.numpy(), b) for a, b in zip(knn(view, k=3), plain, strict=True)))
    needs = x.clone().requires_grad_()
    with pytest.raises(UnsupportedError, match=r"\[knn\] x must not require a gradient"):
        knn(needs, k=1)
    with pytest.raises(UnsupportedError, match=r"\[knn\] y must not require a gradient"):
        knn(x, needs, k=1)
    with torch.no_grad():
        assert knn(needs, k=1).indices.shape == (80, 1)


# ---- refusals ----------------------------------------------------------------------------------

X = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("x", "change", "kind", "text"),
    [
        (X, {"k": 0}, InvalidArgumentError, r"k must be >= 1, got 0"),
        (X, {"k": 1.0}, DtypeError, r"k must be an integer, got float 1\.0"),
        (X, {"metric": "ip"}, InvalidArgumentError, r"metric must be one of .*, got 'ip'"),
        (X, {"precision": "high"}, InvalidArgumentError, r"precision must be one of 'exact'"),
        (X, {"dtype": "float16"}, InvalidArgumentError, r"dtype must be one of 'float32'"),
        (X[0], {}, InvalidArgumentError, r"x must have 2 axes, got 1 \(shape \(3,\)\)"),
        (X[None], {}, InvalidArgumentError, r"x must have 2 axes, got 3"),
        (X.tolist(), {}, DtypeError, r"x must be an array .*, got list"),
        (X.astype(np.int32), {}, DtypeError, r"x must be float16, .* got int32\. Convert"),
        (X.astype(">f4"), {}, DtypeError, "x must be float16, .*got >f4"),
        (X, {"y": X[:, :2]}, InvalidArgumentError, r"y must have d = 3 columns like x, got 2"),
        (X, {"y": X[0]}, InvalidArgumentError, r"y must have 2 axes, got 1"),
        (X, {"y": X.astype(float)}, DtypeError, r"y must be float32 like x, got float64"),
        (X, {"y": X, "exclude_self": True}, InvalidArgumentError, r"exclude_self must be False"),
        (X, {"exclude_self": 1}, DtypeError, r"exclude_self must be a bool or None, got 1"),
        (X, {"mask": np.ones(4)}, DtypeError, r"mask must be bool, got float64"),
        (
            X,
            {"mask": np.ones(3, bool)},
            InvalidArgumentError,
            r"mask must have shape \(4,\) or \(4, 4\)",
        ),
        (X, {"mask": np.ones((1, 4), bool)}, InvalidArgumentError, r"mask must have shape"),
        (X, {"ids": np.array([0, 4])}, InvalidArgumentError, r"ids must be in 0\.\.3, got 4"),
        (X, {"ids": np.array([-1])}, InvalidArgumentError, r"ids must be in 0\.\.3, got -1"),
        (X, {"ids": np.array([0.0])}, DtypeError, r"ids must be int64, got float64"),
        (X, {"ids": [0, 1]}, DtypeError, r"ids must be an array .*, got list"),
        (X, {"ids": np.array([[0]])}, InvalidArgumentError, r"ids must have 1 axes, got 2"),
        (X[:0], {"ids": np.array([0])}, InvalidArgumentError, r"ids must be empty where y has no"),
    ],
)
def test_refusals(x, change, kind, text):
    with pytest.raises(kind, match=r"\[knn\] " + text):
        knn(x, **{"k": 1, **change})


def test_arrays_of_two_libraries_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match=r"\[knn\] y must be of the library and on the device of"):
        knn(X, torch.ones(4, 3), k=1)


def core(**change):
    arguments = {
        "x": np.zeros((4, 3), np.float32),
        "y": np.zeros((5, 3), np.float32),
        "mask": None,
        "distances": np.zeros((4, 2)),
        "indices": np.zeros((4, 2), np.int64),
        "metric": "euclidean",
        "exclude_self": False,
        "precision": "exact",
    } | change
    return _core.knn(**arguments)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"distances": np.zeros((5, 2))}, "distances must be C-ordered, on the device of x, and"),
        ({"distances": np.zeros((4, 4))[:, ::2]}, "distances must be C-ordered"),
        ({"distances": np.zeros((4, 2), np.float32)}, "distances must be float64, got float32"),
        ({"distances": np.zeros((4, 3))}, "distances must be C-ordered"),
        ({"indices": np.zeros((4, 2), np.int32)}, "indices must be int64, got int32"),
        ({"indices": np.zeros(8, np.int64)}, "indices must have 2 axes, got 1"),
        ({"mask": np.zeros((2, 5), np.uint8)}, r"mask must have shape \(4, 5\) or \(1, 5\), got"),
        ({"mask": np.zeros((4, 5), bool)}, "mask must be uint8, got bool"),
        ({"exclude_self": True}, "exclude_self must be false unless x and y have the same rows"),
        ({"metric": "ip"}, "metric must be one of"),
        ({"precision": ""}, "precision must be one of"),
        ({"y": np.zeros((5, 3))}, "y must be float32, got float64"),
        ({"x": np.zeros((4, 3), np.int16)}, "x must be float16, .* int8 or uint8, got int16"),
        ({"y": np.broadcast_to(np.float32(0), (2**32, 3))}, r"y must have fewer than 2\^32 rows"),
    ],
)
def test_refusals_of_the_core(change, text):
    with pytest.raises((InvalidArgumentError, DtypeError), match=r"\[knn\] " + text):
        core(**change)


def test_outputs_that_overlap_are_refused():
    memory = np.zeros(100)
    with pytest.raises(InvalidArgumentError, match=r"\[knn\] distances must not overlap an input"):
        core(
            x=memory[:12].reshape(4, 3),
            y=memory[20:35].reshape(5, 3),
            distances=memory[8:16].reshape(4, 2),
        )
    with pytest.raises(InvalidArgumentError, match=r"\[knn\] indices must not overlap an input"):
        core(
            x=memory[:12].reshape(4, 3),
            y=memory[20:35].reshape(5, 3),
            indices=memory[30:38].view(np.int64).reshape(4, 2),
        )


def test_cuda_arrays_are_refused():
    from test_interop import CUDA, Producer

    x = Producer(np.zeros((4, 3), np.float32), device=CUDA)
    with pytest.raises(UnsupportedError, match=r"\[knn\] has no CUDA kernel yet"):
        knn(x, k=1)
