"""Rows in a random order: a permutation for every size and seed, resumable anywhere, of bounded
memory; the same over arrays, memory maps and torch tensors."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subspan.activations import OutlierRule, array_batches
from subspan.activations._permutation import Permutation
from subspan.errors import DtypeError, InvalidArgumentError

RNG = np.random.default_rng(11)
X = RNG.standard_normal((103, 5)).astype(np.float32)
X[:, 0] = np.arange(103)  # the row's number


def numbers(batches):
    return [batch[:, 0].astype(int).tolist() for batch in batches]


def flat(batches):
    return list(itertools.chain.from_iterable(numbers(batches)))


@given(st.integers(0, 5000), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
@settings(max_examples=100, deadline=None)
def test_a_permutation_is_one(n, seed, stream):
    assert np.array_equal(np.sort(Permutation(n, seed, stream)(0, n)), np.arange(n))


@given(st.integers(1, 2**62), st.integers(0, 2**32), st.data())
@settings(max_examples=80, deadline=None)
def test_parts_of_a_huge_permutation(n, seed, data):
    start = data.draw(st.integers(0, n - 1))
    stop = min(n, start + data.draw(st.integers(1, 50)))
    order = Permutation(n, seed)
    part = order(start, stop)
    assert part.min() >= 0
    assert part.max() < n
    assert len(set(part.tolist())) == stop - start
    assert part[-1] == order(stop - 1, stop)[0]


def test_permutations_are_uniform():
    """Chi-square of 4800 permutations of 4, and of where each of 30 numbers goes, p > 1e-6."""
    seen = dict.fromkeys(itertools.permutations(range(4)), 0)
    for seed in range(4800):
        seen[tuple(Permutation(4, seed)(0, 4).tolist())] += 1
    expected = 4800 / math.factorial(4)
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 70  # 23 free
    places = np.zeros((30, 30))
    for epoch in range(1500):
        places[np.arange(30), Permutation(30, 5, epoch)(0, 30)] += 1
    statistic = ((places - 50) ** 2 / 50).sum()
    free = 29 * 29
    assert abs(statistic - free) < 5 * math.sqrt(2 * free)


def test_neighbours_are_torn_apart():
    n = 200_000
    order = Permutation(n, 3)(0, n)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / math.sqrt(n)
    assert (np.abs(np.diff(order)) == 1).sum() < 15  # 2 are expected
    other = Permutation(n, 4)(0, n)
    assert (order == other).sum() < 10  # 1 is expected
    # a batch of 1024 rows meets all of 16 parts of the text about equally
    counts = np.bincount(order[:16384] // (n // 16), minlength=16)[:16]
    assert ((counts - 1024) ** 2 / 1024).sum() < 60  # 15 free


@pytest.mark.parametrize("size", [1, 7, 50, 103, 200])
@pytest.mark.parametrize("drop_last", [False, True])
def test_each_row_once_per_epoch(size, drop_last):
    if drop_last and size > 103:
        return
    batches = array_batches(X, size, seed=2, epochs=3, drop_last=drop_last)
    per_epoch = 103 // size if drop_last else -(-103 // size)
    assert (batches.per_epoch, batches.total) == (per_epoch, 3 * per_epoch)
    found = numbers(batches)
    assert len(found) == batches.total == batches.done
    epochs = [found[i * per_epoch : (i + 1) * per_epoch] for i in range(3)]
    for epoch in epochs:
        rows = list(itertools.chain.from_iterable(epoch))
        assert len(set(rows)) == len(rows) == (per_epoch * size if drop_last else 103)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != numbers(array_batches(X, size, seed=3, drop_last=drop_last))


def test_values_and_row_numbers_agree():
    batches = array_batches(X, 20, seed=1, epochs=2)
    for number, batch in enumerate(batches):
        rows = batches.rows_of(number)
        assert np.array_equal(batch, X[rows])
    assert flat(array_batches(X, 20, shuffle=False)) == list(range(103))


def test_resumed_anywhere_is_the_same():
    whole = numbers(array_batches(X, 25, seed=4, epochs=3))
    running = array_batches(X, 25, seed=4, epochs=3)
    for done in range(len(whole) + 1):
        state = json.loads(json.dumps(running.state))
        assert state["next"] == done
        for start in (done, state):
            assert numbers(array_batches(X, 25, seed=4, epochs=3, start=start)) == whole[done:]
        next(running, None)
    endless = array_batches(X, 25, seed=4, epochs=None, start=1000)
    assert endless.total is None
    assert np.array_equal(next(endless), X[endless.rows_of(1000)])
    endless.close()
    assert next(endless, None) is None


def test_parts_are_one_array(tmp_path):
    whole = flat(array_batches(X, 10, seed=9))
    for cuts in ([0, 103], [50], [1, 2, 90]):
        parts = np.split(X, cuts)
        assert flat(array_batches(parts, 10, seed=9)) == whole
        mapped = []
        for number, part in enumerate(parts):
            if len(part):
                np.save(tmp_path / f"{number}.npy", part)
                mapped.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
        batches = array_batches(mapped, 10, seed=9, buffer_mb=1)
        assert flat(batches) == whole


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_dtypes_and_libraries(dtype, output):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(X).to(getattr(torch, dtype))
    rows = array_batches(X, 20, seed=1).rows_of(0)
    batch = next(array_batches(x, 20, seed=1, output=output))
    wide = "float64" if dtype == "float64" else "float32"
    assert str(batch.dtype).removeprefix("torch.") == wide
    assert np.array_equal(np.asarray(batch), x.to(getattr(torch, wide)).numpy()[rows])
    kept = next(array_batches(x, 20, seed=1))
    assert isinstance(kept, torch.Tensor)
    half = next(array_batches(x, 20, seed=1, output=output, dtype="float16"))
    assert str(half.dtype).removeprefix("torch.") == "float16"
    if dtype != "bfloat16":
        same = next(array_batches(x.numpy(), 20, seed=1, output=output))
        assert np.array_equal(np.asarray(same), np.asarray(batch))


def test_batches_belong_to_the_caller():
    x = X.copy()
    for output in ("numpy", "torch"):
        if output == "torch":
            pytest.importorskip("torch")
        for batch in array_batches(x, 20, output=output):
            batch[:] = 0
    assert np.array_equal(x, X)


def test_excluded_rows_never_come():
    mask = RNG.random(103) < 0.4
    kept = np.flatnonzero(~mask).tolist()
    batches = array_batches(X, 10, seed=5, epochs=2, exclude=mask)
    found = numbers(batches)
    assert batches.n_rows == len(kept)
    for epoch in (found[: batches.per_epoch], found[batches.per_epoch :]):
        assert sorted(itertools.chain.from_iterable(epoch)) == kept
    for case in ([0], [102], [0, 1, 2, 101, 102], list(range(1, 103))):
        mask = np.zeros(103, bool)
        mask[case] = True
        assert sorted(flat(array_batches(X, 4, exclude=mask))) == np.flatnonzero(~mask).tolist()
    with pytest.raises(InvalidArgumentError, match="exclude must leave at least one row"):
        array_batches(X, 4, exclude=np.ones(103, bool))


def test_the_outlier_rule_excludes():
    x = RNG.standard_normal((9000, 6)).astype(np.float32)
    x[[0, 4000, 8999]] *= 100
    first = np.arange(9000) % 1000 == 0
    rule = OutlierRule()
    for excluded, batches in (
        ([0, 4000, 8999], array_batches(x, 512, exclude=rule)),
        (
            sorted({*range(0, 9000, 1000), 8999}),
            array_batches(x, 512, exclude=OutlierRule(first_token="drop"), first_in_window=first),
        ),
    ):
        rows = np.concatenate([batches.rows_of(i) for i in range(batches.total)])
        assert sorted(set(range(9000)) - set(rows.tolist())) == excluded
    with pytest.raises(InvalidArgumentError, match="first_in_window must be given"):
        array_batches(x, 512, exclude=OutlierRule(first_token="drop"))


@pytest.mark.parametrize(
    ("arrays", "options", "error", "match"),
    [
        ([], {}, InvalidArgumentError, "at least one array"),
        (X[0], {}, InvalidArgumentError, "must have 2 axes, got 1"),
        (X[:0], {}, InvalidArgumentError, "at least one value"),
        (X.astype(int), {}, DtypeError, "must be one of float16.* got int64"),
        ("x", {}, DtypeError, "must be an array"),
        ([X, X[:, :3]], {}, InvalidArgumentError, r"width of arrays\[0\] \(5\), got 3"),
        ([X, X.astype(np.float16)], {}, InvalidArgumentError, r"dtype of arrays\[0\]"),
        (X, {"batch_size": 0}, InvalidArgumentError, "batch_size must be >= 1"),
        (X, {"batch_size": 104, "drop_last": True}, InvalidArgumentError, "at most the 103 rows"),
        (X, {"epochs": 0}, InvalidArgumentError, "epochs must be >= 1"),
        (X, {"seed": -1}, InvalidArgumentError, "seed must be >= 0"),
        (X, {"start": 12}, InvalidArgumentError, r"start must be in 0\.\.11, got 12"),
        (X, {"start": {"next": 0, "seed": 1}}, InvalidArgumentError, "a state of the same batches"),
        (X, {"output": "cupy"}, InvalidArgumentError, "output must be one of"),
        (X, {"dtype": "int8"}, InvalidArgumentError, "dtype must be one of"),
        (X, {"dtype": "bfloat16"}, InvalidArgumentError, "one that numpy has"),
        (X, {"exclude": np.zeros(5, bool)}, InvalidArgumentError, r"bool of shape \(103,\)"),
        (X, {"exclude": np.zeros(103)}, InvalidArgumentError, "an OutlierRule or an array of bool"),
        (X, {"first_in_window": [True]}, InvalidArgumentError, "first_in_window must be an array"),
        (X, {"buffer_mb": 0}, InvalidArgumentError, "buffer_mb"),
    ],
)
def test_refusals(arrays, options, error, match):
    with pytest.raises(error, match=match):
        array_batches(arrays, **{"batch_size": 10, **options})
