"""subspan.PCA: accuracy against float64 references, parity with scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pca_oracle import ATTRIBUTES, assert_same_fit, reference, sample
from subspan import PCA, Moments
from subspan.errors import InvalidArgumentError, SubspanError

# ---- correctness -------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e6])
@pytest.mark.parametrize("k", [None, 1, 5, 12])
def test_float64_fit_is_the_svd_of_the_centred_rows(offset, k):
    x = sample(offset=offset)
    pca = PCA(k).fit(x)
    mean, variances, vh = reference(x)
    k = 12 if k is None else k
    slack = 1e-15 * abs(offset)
    np.testing.assert_allclose(pca.mean_, mean, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(pca.explained_variance_, variances[:k], rtol=1e-10 + 1e3 * slack)
    np.testing.assert_allclose(pca.components_, vh[:k], atol=1e-10 + 1e3 * slack)
    np.testing.assert_allclose(
        pca.explained_variance_ratio_, variances[:k] / variances.sum(), rtol=1e-9 + 1e3 * slack
    )
    left_out = variances[k:].mean() if k < 12 else 0.0
    assert pca.noise_variance_ == pytest.approx(left_out, rel=1e-9 + 1e3 * slack)
    assert (pca.n_components_, pca.n_samples_, pca.n_features_in_) == (k, 300, 12)


@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("precision", ["auto", "float64"])
def test_float32_variances_survive_cancellation(offset, precision):
    """Mean / standard deviation of 1000 in float32, where X^T X - n mu mu^T loses everything."""
    rng = np.random.default_rng(5)
    scales = np.geomspace(1.0, 0.03, 16)
    x = (rng.normal(size=(50_000, 16)) * scales + offset).astype(np.float32)
    _, variances, _ = reference(x)
    got = PCA(precision=precision).fit(x).explained_variance_
    assert got.dtype == np.float32
    assert np.max(np.abs(got - variances)) <= 1e-6 * variances[0]
    large = variances > 0.01 * variances[0]
    assert np.max(np.abs(got / variances - 1)[large]) <= 1e-4
    if precision == "float64":
        np.testing.assert_allclose(got, variances, rtol=1e-6)


@pytest.mark.parametrize("whiten", [False, True])
def test_float32_scores_survive_cancellation(whiten):
    x = (sample(2000, offset=1000.0, seed=1)).astype(np.float32)
    mean, variances, vh = reference(x)
    want = (x.astype(np.float64) - mean) @ vh.T
    want = want / np.sqrt(variances) if whiten else want
    pca = PCA(whiten=whiten, precision="float64").fit(x)
    got = pca.transform(x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=3e-5 if whiten else 3e-6)
    np.testing.assert_allclose(pca.inverse_transform(got), x, rtol=2e-7)


def test_components_are_orthonormal_with_positive_largest_entry():
    for x in (sample(), sample(8, 12), sample().astype(np.float32)):
        v = PCA().fit(x).components_
        np.testing.assert_allclose(v @ v.T, np.eye(len(v)), atol=1e-13 if x.itemsize == 8 else 1e-6)
        assert (v[np.arange(len(v)), np.argmax(np.abs(v), axis=1)] > 0).all()


def test_fraction_takes_the_fewest_components_beyond_it():
    x = np.diag([3.0, 2.0, 1.0]).repeat(2, axis=0) * np.array([1, -1] * 3)[:, None]
    shares = np.array([9, 4, 1]) / 14
    for share, k in ((0.5, 1), (shares[0] + 1e-9, 2), (0.9, 2), (0.95, 3), (0.999999, 3)):
        pca = PCA(n_components=share).fit(x)
        assert pca.n_components_ == k
        np.testing.assert_allclose(pca.explained_variance_ratio_, shares[:k], rtol=1e-12)


@pytest.mark.parametrize("shape", [(200, 10), (10, 10), (9, 30)])
@pytest.mark.parametrize("k", [None, 1, 4, 0.7])
@pytest.mark.parametrize("whiten", [False, True])
def test_parity_with_scikit_learn(shape, k, whiten):
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = sample(*shape, offset=2.0)
    theirs = decomposition.PCA(k, whiten=whiten, svd_solver="full").fit(x)
    ours = PCA(k, whiten=whiten).fit(x)
    live = theirs.explained_variance_ > 1e-12
    for name in ATTRIBUTES:
        a, b = getattr(ours, name), getattr(theirs, name)
        if name == "components_":
            a, b = a[live], b[live]
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=2e-8, err_msg=name)
    np.testing.assert_allclose(
        ours.transform(x)[:, live], theirs.transform(x)[:, live], rtol=1e-7, atol=1e-8
    )
    z = theirs.transform(x)[:, live]
    z = np.pad(z, ((0, 0), (0, len(live) - z.shape[1])))
    np.testing.assert_allclose(ours.inverse_transform(z), theirs.inverse_transform(z), atol=1e-8)


@pytest.mark.parametrize("k", [1, 5, None])
def test_model_covariance_and_likelihood_match_scikit_learn(k):
    decomposition = pytest.importorskip("sklearn.decomposition")
    x = sample(offset=3.0)
    theirs, ours = decomposition.PCA(k, svd_solver="full").fit(x), PCA(k).fit(x)
    np.testing.assert_allclose(ours.get_covariance(), theirs.get_covariance(), atol=1e-12)
    np.testing.assert_allclose(ours.get_precision(), theirs.get_precision(), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-9)
    assert ours.score(x) == pytest.approx(theirs.score(x), rel=1e-10)


def test_full_model_covariance_is_the_sample_covariance():
    x = sample()
    np.testing.assert_allclose(PCA().fit(x).get_covariance(), np.cov(x.T), atol=1e-14)


# ---- parts, weights, states --------------------------------------------------------------------


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_parts_in_any_order_equal_the_whole(sizes, random):
    x = sample(sum(sizes) + 2, 5, offset=50.0)
    parts = np.split(x, np.cumsum(sizes))
    random.shuffle(parts)
    whole, streamed = PCA(3).fit(x), PCA(3)
    for part in parts:
        streamed.partial_fit(part) if len(part) else None
    assert_same_fit(streamed, whole, rtol=1e-9, atol=1e-9)


def test_merge_trees_equal_the_whole():
    x = sample(1000, 6, offset=100.0)
    rng = np.random.default_rng(3)
    states = [Moments().update(part) for part in np.array_split(x, 13)]
    while len(states) > 1:
        i, j = rng.choice(len(states), 2, replace=False)
        merged = states[i].copy().merge(states[j])
        states = [s for n, s in enumerate(states) if n not in (i, j)] + [merged]
    merged = PCA.from_moments(states[0], 4)
    assert_same_fit(merged, PCA(4).fit(x), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(merged.transform(x), PCA(4).fit_transform(x), atol=1e-9)


def test_from_moments_leaves_the_state_alone():
    state = Moments().update(sample(50))
    pca = PCA.from_moments(state, n_components=2, whiten=True)
    assert (pca.n_components, pca.whiten, pca.n_samples_) == (2, True, 50)
    pca.partial_fit(sample(50, seed=9))
    assert (state.count, pca.moments_.count, pca.n_samples_) == (50, 100, 100)


def test_partial_fit_updates_attributes_on_use():
    x = sample(100)
    pca = PCA(2).partial_fit(x[:1])
    assert not hasattr(pca, "components_")
    with pytest.raises(ValueError, match="n_samples = 1"):
        pca.transform(x)
    first = pca.partial_fit(x[1:50]).components_
    second = pca.partial_fit(x[50:]).components_
    assert not np.array_equal(first, second)
    assert_same_fit(pca, PCA(2).fit(x), rtol=1e-10)
    pca.fit(x[:50])
    assert pca.n_samples_ == 50
    pca.partial_fit(x[50:])
    assert_same_fit(pca, PCA(2).fit(x), rtol=1e-10)


def test_refused_part_leaves_the_fit_unchanged():
    x = sample(40)
    pca = PCA(2).partial_fit(x)
    before = pca.components_.copy()
    bad = x.copy()
    bad[30, 3] = np.nan
    for part in (bad, x[:, :4], x * 1j):
        with pytest.raises(SubspanError):
            pca.partial_fit(part)
    np.testing.assert_array_equal(pca.components_, before)
    assert pca.moments_.count == 40


@pytest.mark.parametrize("shape", [(80, 6), (20, 600)])
def test_integer_weights_are_repetition(shape):
    x = sample(*shape, offset=5.0)
    weights = np.random.default_rng(2).integers(0, 4, size=len(x))
    weighted = PCA(3).fit(x, sample_weight=weights)
    repeated = PCA(3).fit(x.repeat(weights, axis=0))
    assert weighted.n_samples_ == np.count_nonzero(weights)
    for name in ("components_", "explained_variance_", "mean_", "singular_values_"):
        np.testing.assert_allclose(
            getattr(weighted, name), getattr(repeated, name), rtol=1e-9, atol=1e-9, err_msg=name
        )


def test_fractional_weights():
    x, w = sample(), np.random.default_rng(4).uniform(0.1, 3.0, size=300)
    pca = PCA().fit(x, sample_weight=w)
    mean, variances, vh = reference(x, w)
    np.testing.assert_allclose(pca.mean_, mean, atol=1e-13)
    np.testing.assert_allclose(pca.explained_variance_, variances, rtol=1e-10)
    np.testing.assert_allclose(pca.components_, vh, atol=1e-9)


# ---- wide data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_gram_route_equals_covariance_route(dtype, offset):
    x = (sample(20, 530, offset=offset)).astype(dtype)
    wide = PCA(15).fit(x)
    plain = PCA(15, solver="covariance", precision="float64").fit(x)
    assert not hasattr(wide, "moments_")
    assert plain.moments_.count == 20
    _, variances, _ = reference(x)
    tight = 1e-9 if dtype is np.float64 else 1e-6
    for pca in (wide, plain):
        np.testing.assert_allclose(pca.explained_variance_, variances[:15], rtol=tight)
        assert pca.noise_variance_ == pytest.approx(variances[15:].mean(), rel=1e-6)
    np.testing.assert_allclose(wide.components_, plain.components_, atol=20 * tight)
    np.testing.assert_allclose(wide.transform(x), plain.transform(x), atol=1e3 * tight)


def test_gram_route_with_rank_deficiency():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(12, 4)) @ rng.normal(size=(4, 700)) + 3.0
    pca = PCA().fit(x)
    assert pca.n_components_ == 12
    np.testing.assert_allclose(pca.components_ @ pca.components_.T, np.eye(12), atol=1e-12)
    assert (pca.explained_variance_[4:] == 0).all()
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(x)), x, atol=1e-11)


def test_gram_route_says_that_it_keeps_no_state():
    x = sample(20, 530)
    pca = PCA(3).fit(x)
    with pytest.raises(InvalidArgumentError, match='solver="covariance"'):
        pca.partial_fit(x)
    with pytest.raises(AttributeError, match='solver="covariance"'):
        _ = pca.moments_
    assert PCA(3).partial_fit(x).partial_fit(x).n_samples_ == 40


@pytest.mark.parametrize("d", [6, 600])
def test_rows_of_weight_zero_may_hold_anything(d):
    x, w = sample(15, d), np.ones(15)
    want = PCA(3).fit(x[:12])
    x[12:], w[12:] = np.nan, 0.0
    assert_same_fit(PCA(3).fit(x, sample_weight=w), want, rtol=1e-10)
    # more components than rows that count: the others are an orthonormal completion
    many = min(d, 14)
    pca = PCA(many).fit(x, sample_weight=w)
    v = pca.components_
    np.testing.assert_allclose(v @ v.T, np.eye(many), atol=1e-12)
    assert (pca.explained_variance_[11:] == 0).all()
    with pytest.raises(ValueError, match="n_samples = 1"):
        PCA().fit(x, sample_weight=2.0 * (np.arange(15) == 3))


def test_states_that_are_no_covariance_are_refused():
    state = Moments().update(sample(50, 4)).state_dict()
    state["m2"] -= np.eye(4) * state["m2"][0, 0]
    with pytest.raises(InvalidArgumentError, match="positive semidefinite"):
        PCA.from_moments(Moments.from_state_dict(state))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gram_route_for_torch(dtype):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(sample(15, 600)).to(getattr(torch, dtype))
    w = torch.linspace(0.5, 2.0, 15)
    pca = PCA(3).fit(x, sample_weight=w)
    want = PCA(3, solver="covariance", precision="float64").fit(x.double(), sample_weight=w)
    np.testing.assert_allclose(pca.explained_variance_, want.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(pca.components_, want.components_, atol=1e-6)
    assert pca.transform(x).dtype == x.dtype
