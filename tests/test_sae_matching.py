"""Matching of dictionaries against dense assignment, and correlations against numpy."""

import numpy as np
import pytest
from subspan import RaggedCode, SparseCode, topk_encode
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError
from subspan.sae.correlations import feature_correlations
from subspan.sae.matching import match_dictionaries, mean_max_cosine, pw_mcc
from subspan.similarity import svcca

optimize = pytest.importorskip("scipy.optimize")


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def dense_value(a, b, signed):
    weights = unit(a) @ unit(b).T
    weights = weights if signed else np.abs(weights)
    rows, columns = optimize.linear_sum_assignment(-weights)
    return weights[rows, columns].mean()


def pair(n, m, d, mix, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    count = min(n, m)
    signs = rng.choice([-1, 1], size=(count, 1))
    b[rng.permutation(m)[:count]] += mix * a[:count] * signs
    return a, b


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("candidates", [1, 3, 16])
@pytest.mark.parametrize(
    "shape", [(60, 60, 8), (40, 90, 8), (90, 40, 8), (5, 300, 3), (80, 80, 2), (1, 1, 4)]
)
@pytest.mark.parametrize("mix", [0, 1])
def test_it_is_the_best_of_all(shape, mix, signed, candidates):
    a, b = pair(*shape, mix)
    found = match_dictionaries(a, b, signed=signed, candidates=candidates)
    assert found.exact
    assert found.value == pytest.approx(dense_value(a, b, signed), abs=1e-12)
    assert found.bound >= found.value
    cosines = (unit(a)[found.a_indices] * unit(b)[found.b_indices]).sum(axis=1)
    np.testing.assert_allclose(found.cosines, cosines, atol=1e-12)
    assert found.value == pytest.approx((cosines if signed else np.abs(cosines)).mean())
    assert len(found.a_indices) == min(shape[:2])
    assert np.all(np.diff(found.a_indices) > 0)
    assert len(set(found.b_indices)) == len(found.b_indices)


def test_two_thousand_rows():
    a, b = pair(1500, 2000, 24, 0.5)
    found = match_dictionaries(a.astype(np.float32), b.astype(np.float32))
    assert found.exact
    assert found.value == pytest.approx(dense_value(a, b, False), abs=1e-6)


def test_the_example_of_the_paper():
    a, b = np.eye(2), np.array([[0.1, 1.0], [1.0, 0.2]])
    assert match_dictionaries(a, b).value == pytest.approx((0.9950372 + 0.9805807) / 2, abs=1e-6)


def test_permuted_flipped_and_scaled_copies():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(120, 10))
    order = rng.permutation(120)
    b = (a * rng.uniform(0.1, 9, size=(120, 1)))[order]
    found = match_dictionaries(a, b, signed=True)
    assert found.value == pytest.approx(1, abs=1e-12)
    np.testing.assert_array_equal(order[found.b_indices], np.arange(120))
    b *= rng.choice([-1, 1], size=(120, 1))
    assert match_dictionaries(a, b).value == pytest.approx(1, abs=1e-12)
    assert match_dictionaries(a, b, signed=True).value < 0.9


def test_unrelated_dictionaries_are_at_the_level_of_chance():
    a, b = pair(400, 400, 64, 0)
    found = match_dictionaries(a, b)
    level = np.abs(unit(a) @ unit(b).T).max(axis=1).mean()
    assert 0.8 * level < found.value < level


def test_limits_are_honest():
    """Without the rounds to prove it, the bound holds all the same."""
    a, b = pair(300, 300, 4, 0)
    truth = dense_value(a, b, False)
    for rounds in (2, 3, 4):
        found = match_dictionaries(a, b, candidates=1, max_rounds=rounds)
        assert found.rounds <= rounds
        assert found.value <= truth + 1e-12
        assert found.bound >= truth - 1e-12
        assert found.gap == pytest.approx(found.bound - found.value)
    assert not match_dictionaries(a, b, candidates=1, max_rounds=2).exact
    assert match_dictionaries(a, b, candidates=300, max_rounds=3).exact


def test_equal_rows_and_rows_of_zeros():
    same = np.ones((30, 5))
    assert match_dictionaries(same, same).value == pytest.approx(1)
    some = np.eye(6)
    some[3] = 0
    found = match_dictionaries(some, some)
    assert found.exact
    assert found.value == pytest.approx(5 / 6)


def test_libraries():
    torch = pytest.importorskip("torch")
    a, b = pair(20, 30, 6, 1)
    found = match_dictionaries(torch.from_numpy(a), torch.from_numpy(b).requires_grad_())
    wanted = match_dictionaries(a, b)
    assert isinstance(found.b_indices, torch.Tensor)
    np.testing.assert_array_equal(found.b_indices.numpy(), wanted.b_indices)


def test_pairwise():
    runs = [pair(50, 50, 6, 0, seed)[0] for seed in range(3)]
    found = pw_mcc(runs, candidates=4)
    wanted = [dense_value(runs[i], runs[j], False) for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose([each.value for each in found.matchings], wanted, atol=1e-12)
    assert found.value == pytest.approx(np.mean(wanted))
    assert found.bound == pytest.approx(found.value)


def test_mean_max_cosine():
    a, b = pair(70, 90, 5, 0)
    cosines = unit(a) @ unit(a).T - 2 * np.eye(70)
    assert mean_max_cosine(a) == pytest.approx(cosines.max(axis=1).mean(), abs=1e-12)
    assert mean_max_cosine(a, b) == pytest.approx((unit(a) @ unit(b).T).max(axis=1).mean())
    assert mean_max_cosine(np.repeat(a, 2, axis=0)) == pytest.approx(1)
    assert np.isnan(mean_max_cosine(a[:1]))


def test_refusals(monkeypatch):
    a, b = pair(10, 10, 4, 0)
    bad = a.copy()
    bad[2, 1] = np.inf
    for arguments, options, text in [
        ((a, b[:, :3]), {}, "d = 4 columns"),
        ((a[:0], b), {}, "a must have rows"),
        ((a, bad), {}, "with NaN or infinity"),
        ((a, b[0]), {}, "b must have 2 axes"),
        ((a, b), {"candidates": 0}, "candidates must be >= 1"),
        ((a, b), {"max_rounds": 1}, "max_rounds must be >= 2"),
    ]:
        with pytest.raises(InvalidArgumentError, match=text):
            match_dictionaries(*arguments, **options)
    with pytest.raises(DtypeError, match="a must be an array"):
        match_dictionaries(a.tolist(), b)
    with pytest.raises(InvalidArgumentError, match="two or more, got 1"):
        pw_mcc([a])
    with pytest.raises(InvalidArgumentError, match="must have rows, got none"):
        mean_max_cosine(a[:0])
    monkeypatch.setitem(__import__("sys").modules, "scipy.sparse.csgraph", None)
    with pytest.raises(UnsupportedError, match="pip install scipy"):
        match_dictionaries(a, b)
    code = SparseCode(np.ones((3, 1)), np.zeros((3, 1), np.int64))
    monkeypatch.setitem(__import__("sys").modules, "scipy.sparse", None)
    with pytest.raises(UnsupportedError, match="pip install scipy"):
        feature_correlations(code, code, 3)


# ---- correlations ------------------------------------------------------------------------------


def codes(rows=300, n_a=20, n_b=25, activation="relu"):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 6))
    w_a, w_b = rng.normal(size=(6, n_a)), rng.normal(size=(6, n_b))
    return tuple(topk_encode(x, w, k=3, activation=activation) for w in (w_a, w_b))


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_correlations_are_pearsons(activation):
    a, b = codes(activation=activation)
    if activation == "identity":  # negative values too
        a, b = a._replace(values=a.values - 1), b._replace(values=b.values - 1)
    f, g = a.to_dense(22), b.to_dense(26)  # latents that never fire among them
    found = feature_correlations(a, b, 22, 26)
    with np.errstate(invalid="ignore", divide="ignore"):
        wanted = np.corrcoef(f.T, g.T)[:22, 22:]
    np.testing.assert_allclose(found.to_dense(), wanted, atol=1e-10)
    rows, columns = np.nonzero(np.ones((22, 26)))
    np.testing.assert_allclose(found.pairs(rows, columns), wanted.ravel(), atol=1e-10)
    indices, values = found.nearest()
    dead = np.isnan(wanted).all(axis=0)
    assert dead.any()
    np.testing.assert_array_equal(indices == -1, dead)
    np.testing.assert_allclose(values[~dead], np.nanmax(wanted[:, ~dead], axis=0), atol=1e-10)


def test_the_nearest_may_be_one_that_is_never_active_with_it():
    """Latents that only exclude each other: the least negative wins, though no product is there."""
    rows = np.array([0, 0, 0, 1, 1, 2])
    a = SparseCode(np.ones((6, 1)), rows[:, None])
    b = SparseCode(np.array([[0], [0], [0], [0], [0], [1.0]]), np.full((6, 1), 3))
    found = feature_correlations(a._replace(indices=np.where(a.indices == 2, 1, a.indices)), b, 4)
    indices, values = found.nearest()
    assert indices.tolist() == [-1, -1, -1, 1]
    exclusive = feature_correlations(a, SparseCode(np.ones((6, 1)), 2 - a.indices), 3)
    with np.errstate(invalid="ignore"):
        best = np.nanmax(exclusive.to_dense(), axis=0)
    np.testing.assert_allclose(exclusive.nearest()[1], best)
    assert values[3] > 0


def test_a_permutation_is_found():
    a, _ = codes()
    order = np.random.default_rng(4).permutation(20)
    found = feature_correlations(a, a._replace(indices=order[a.indices]), 20)
    indices, values = found.nearest()
    alive = indices >= 0
    np.testing.assert_array_equal(order[indices[alive]], np.flatnonzero(alive))
    np.testing.assert_allclose(values[alive], 1)


def test_rows_matched_by_their_activations_span_the_same():
    """Dictionaries that differ by order and an orthogonal map: SVCCA of matched rows is 1."""
    rng = np.random.default_rng(6)
    x, w = rng.normal(size=(2000, 8)), rng.normal(size=(8, 40))
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    order = rng.permutation(40)
    a = topk_encode(x, w, k=4)
    b = topk_encode(x @ turn, turn.T @ w[:, order], k=4)
    indices, values = feature_correlations(a, b, 40).nearest()
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(values, 1)
    theirs = (turn.T @ w[:, order]).T
    assert svcca(w.T[indices], theirs, share=1.0).value == pytest.approx(1)
    assert svcca(w.T[rng.permutation(40)], theirs, share=1.0).value < 0.7


def test_constant_latents_correlate_with_nothing():
    always = SparseCode(np.full((7, 1), 0.1), np.zeros((7, 1), np.int64))
    found = feature_correlations(always, always, 2)
    assert np.isnan(found.to_dense()).all()
    assert found.nearest()[0].tolist() == [-1, -1]


def test_refusals_of_correlations():
    a, b = codes()
    none = RaggedCode(np.zeros(0), np.zeros(0, np.int64), np.zeros(1, np.int64))
    with pytest.raises(InvalidArgumentError, match="rows of code_a"):
        feature_correlations(a, SparseCode(b.values[:-1], b.indices[:-1]), 25)
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        feature_correlations(none, none, 25)
    with pytest.raises(InvalidArgumentError, match=r"code_b must have indices in 0\.\.19"):
        feature_correlations(a, b, 20)
    with pytest.raises(DtypeError, match="code_a must be a SparseCode"):
        feature_correlations(np.eye(3), b, 20)
