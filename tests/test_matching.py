"""subspan.neighbors.match: against all distances; ties, duplicates, few descriptors, refusals."""

import numpy as np
import pytest
from matrices import same_bits
from neighbor_oracle import distances_of, nearest
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.neighbors import Match, match


def matched(a, b, metric, ratio=None, max_distance=None, mutual=True):
    """Return what `match` is to return, from all distances."""
    there, back = distances_of(a, b, metric), distances_of(b, a, metric)
    forth, from_b = (nearest(distances, 2) for distances in (there, back))
    pairs = []
    for i, j in enumerate(forth[1][:, 0]):
        if j < 0 or (mutual and from_b[1][j, 0] != i):
            continue
        tests = [forth[0][i], from_b[0][j]][: 1 + mutual]
        if ratio is not None and any(d1 >= ratio * d2 for d1, d2 in tests):
            continue
        if max_distance is None or forth[0][i, 0] <= max_distance:
            pairs.append((i, j, forth[0][i, 0]))
    return np.array(pairs).reshape(-1, 3)


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("ratio", [None, 0.95, 1.0])
def test_matches_are_those_of_all_distances(metric, mutual, ratio, rng):
    a = rng.standard_normal((150, 8))
    b = np.concatenate([a[::2] + 0.05 * rng.standard_normal((75, 8)), rng.standard_normal((90, 8))])
    for limit in (None, 0.3):
        how = {"ratio": ratio, "max_distance": limit, "mutual": mutual, "metric": metric}
        got, wanted = match(a, b, **how), matched(a, b, **how)
        assert isinstance(got, Match)
        np.testing.assert_array_equal(got.a_indices, wanted[:, 0])
        np.testing.assert_array_equal(got.b_indices, wanted[:, 1])
        np.testing.assert_allclose(got.distances, wanted[:, 2], atol=1e-12)
        if mutual:
            other = match(b, a, **how)
            order = np.argsort(other.b_indices)
            same_bits(
                (other.b_indices[order], got.a_indices),
                (other.a_indices[order], got.b_indices),
                (other.distances[order], got.distances),
            )
    assert len(match(a, b, metric=metric).a_indices) > 60


def test_ties_go_to_the_lowest_index_on_both_sides():
    for seed in range(30):
        draw = np.random.default_rng(seed)
        a, b = (draw.integers(0, 3, (n, 3)).astype(np.float32) for n in (40, 25))
        for ratio in (None, 0.8, 1.0):
            got, wanted = match(a, b, ratio=ratio), matched(a, b, "euclidean", ratio)
            np.testing.assert_array_equal(got.a_indices, wanted[:, 0])
            np.testing.assert_array_equal(got.b_indices, wanted[:, 1])


def test_a_set_matches_itself(rng):
    x = rng.standard_normal((200, 16)).astype(np.float32)
    for ratio in (None, 0.8):
        got = match(x, x, ratio=ratio)
        np.testing.assert_array_equal(got.a_indices, np.arange(200))
        np.testing.assert_array_equal(got.b_indices, np.arange(200))
        assert not got.distances.any()
    shuffled = rng.permutation(200)
    np.testing.assert_array_equal(match(x, x[shuffled]).b_indices, np.argsort(shuffled))


def test_duplicates_fail_the_ratio_test(rng):
    x = rng.standard_normal((30, 8))
    twice = np.concatenate([x, x[:10]])
    got = match(x, twice, ratio=0.99)
    np.testing.assert_array_equal(got.a_indices, np.arange(10, 30))
    np.testing.assert_array_equal(match(x, twice).b_indices, np.arange(30))


def test_few_descriptors(rng):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal((5, 4)).astype(np.float32)
    for n, m in ((0, 5), (5, 0), (0, 0)):
        for ratio in (None, 0.8):
            assert [len(part) for part in match(x[:n], x[:m], ratio=ratio)] == [0, 0, 0]
    one = match(x[:1], x[2:3], ratio=0.5)  # there is no second to be compared with
    assert (one.a_indices.tolist(), one.b_indices.tolist()) == ([0], [0])
    tensors = match(torch.from_numpy(x), torch.from_numpy(x[1:]), mutual=False)
    assert all(isinstance(part, torch.Tensor) for part in tensors)
    assert tensors.b_indices.tolist()[1:] == [0, 1, 2, 3]
    assert tensors.distances.dtype == torch.float32
    bad = x.copy()
    bad[2] = np.nan
    assert match(bad, x).a_indices.tolist() == [0, 1, 3, 4]


def test_refusals_of_match():
    x = np.ones((4, 3))
    for change, kind, text in (
        ({"ratio": 0.0}, InvalidArgumentError, "ratio must be in"),
        ({"ratio": 1.1}, InvalidArgumentError, r"ratio must be in .*, got 1\.1"),
        ({"max_distance": -1}, InvalidArgumentError, r"max_distance must be in \[0\.0, inf\], got"),
        ({"metric": "inner_product"}, InvalidArgumentError, "metric must be one of 'euclidean'"),
        ({"b": x[:, :2]}, InvalidArgumentError, "b must have d = 3 columns like a, got 2"),
        ({"b": x[0]}, InvalidArgumentError, "b must have 2 axes, got 1"),
        ({"b": x.astype(np.float32)}, DtypeError, "b must be float64 like a, got float32"),
        ({"b": [1.0]}, DtypeError, "b must be an array"),
    ):
        with pytest.raises(kind, match=rf"\[match\] {text}"):
            match(x, **{"b": x, **change})
