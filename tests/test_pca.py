"""subspan.PCA: accuracy against float64 references, parity with scikit-learn, refusals."""

import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import subspan
from hypothesis import given, settings
from hypothesis import strategies as st
from subspan import PCA, Moments
from subspan.errors import DtypeError, InvalidArgumentError, SubspanError

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


# ---- degenerate data ---------------------------------------------------------------------------


def test_constant_columns_and_rank_deficiency():
    x = sample(50, 4)
    x = np.column_stack([x, np.full(50, 1e6), x[:, 0], np.zeros(50)])
    pca = PCA().fit(x)
    np.testing.assert_allclose(pca.components_ @ pca.components_.T, np.eye(7), atol=1e-13)
    assert (pca.explained_variance_[4:] == 0).all()
    assert (pca.explained_variance_[:4] > 0).all()
    white = PCA(whiten=True).fit(x)
    z = white.transform(x)
    np.testing.assert_allclose(np.cov(z[:, :4].T), np.eye(4), atol=1e-9)
    np.testing.assert_array_equal(z[:, 4:], 0.0)
    np.testing.assert_allclose(white.inverse_transform(z), x, atol=1e-9)


@pytest.mark.parametrize("precision", ["auto", "float64"])
@pytest.mark.parametrize(("rank", "d"), [(4, 8), (8, 64), (30, 120)])
def test_float32_rank_deficiency(rank, d, precision):
    """Float32 products leave eigenvalues of about -1e-7 of the largest where there is none."""
    rng = np.random.default_rng(8)
    x = (rng.normal(size=(2000, rank)) @ rng.normal(size=(rank, d)) + 10.0).astype(np.float32)
    x = np.concatenate([x, x], axis=1)
    pca = PCA(precision=precision).fit(x)
    _, variances, _ = reference(x)
    assert np.max(np.abs(pca.explained_variance_ - variances)) <= 1e-6 * variances[0]
    assert (pca.explained_variance_ >= 0).all()
    v = pca.components_.astype(np.float64)
    np.testing.assert_allclose(v @ v.T, np.eye(2 * d), atol=1e-6)
    np.testing.assert_allclose(pca.inverse_transform(pca.transform(x)), x, atol=1e-3)
    merged = PCA.from_moments(Moments(precision=precision).update(x))
    np.testing.assert_allclose(merged.explained_variance_, pca.explained_variance_, rtol=1e-6)
    z = PCA(whiten=True, n_components=rank).fit(x).transform(x).astype(np.float64)
    np.testing.assert_allclose(np.cov(z.T), np.eye(rank), atol=1e-4)


def test_equal_rows_have_no_variance():
    pca = PCA().fit(np.full((5, 3), 7.0))
    np.testing.assert_array_equal(pca.explained_variance_, 0.0)
    np.testing.assert_array_equal(pca.explained_variance_ratio_, 0.0)
    np.testing.assert_allclose(pca.components_ @ pca.components_.T, np.eye(3), atol=1e-15)
    assert PCA(0.5).fit(np.full((5, 3), 7.0)).n_components_ == 1


def test_one_feature():
    x = np.arange(5.0)[:, None] * -2
    pca = PCA().fit(x)
    np.testing.assert_array_equal(pca.components_, [[1.0]])
    assert pca.explained_variance_[0] == pytest.approx(10.0)
    np.testing.assert_allclose(pca.transform(x), x - x.mean())


def test_likelihood_needs_variance_in_every_direction():
    x = np.column_stack([sample(50, 3), np.ones(50)])
    for k in (3, 4):
        with pytest.raises(InvalidArgumentError, match="variance in every direction"):
            PCA(k).fit(x).score(x)
    assert np.isfinite(PCA(2).fit(x).score(x))


# ---- libraries, dtypes, layouts ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_torch_rows_give_torch_scores(dtype):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(sample(200, 6, offset=2.0)).to(getattr(torch, dtype))
    pca = PCA(3).fit(x)
    exact = PCA(3, precision="float64").fit(x.double())
    for name in ATTRIBUTES:
        value = getattr(pca, name)
        if isinstance(value, np.ndarray):
            assert value.dtype == (np.float64 if dtype == "float64" else np.float32)
        np.testing.assert_allclose(value, getattr(exact, name), rtol=3e-5, atol=3e-5)
    z = pca.transform(x)
    assert isinstance(z, torch.Tensor)
    assert (z.dtype, z.device, tuple(z.shape)) == (x.dtype, x.device, (200, 3))
    half = {"bfloat16": 2e-2, "float16": 2e-3, "float32": 1e-5, "float64": 1e-12}[dtype]
    torch.testing.assert_close(z.double(), exact.transform(x.double()), rtol=half, atol=half)
    back = pca.inverse_transform(z)
    assert (back.dtype, tuple(back.shape)) == (x.dtype, (200, 6))
    # a fit on numpy serves torch, and the other way round
    assert isinstance(pca.transform(x.double().numpy()), np.ndarray)


def test_torch_scores_are_differentiable():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(sample(30, 5)).requires_grad_()
    pca = PCA(2, whiten=True).fit(x)
    assert torch.autograd.gradcheck(pca.transform, (x,))
    with torch.no_grad():
        assert not pca.transform(x).requires_grad


def test_weights_of_another_library_are_refused():
    torch = pytest.importorskip("torch")
    x, w = sample(30, 5), np.ones(30)
    with pytest.raises(DtypeError, match="library and on the device of X"):
        PCA().fit(torch.from_numpy(x), sample_weight=w)
    with pytest.raises(DtypeError, match="library and on the device of X"):
        PCA().fit(x, sample_weight=torch.from_numpy(w))
    assert_same_fit(
        PCA().fit(torch.from_numpy(x), sample_weight=torch.from_numpy(w)), PCA().fit(x), rtol=1e-9
    )
    assert PCA().fit(torch.from_numpy(x), sample_weight=[1.0] * 30).n_samples_ == 30


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_layouts_and_memory_maps(dtype, tmp_path):
    x = sample(101, 7, offset=1.0).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    strided = np.zeros((202, 21), dtype=dtype)
    strided[::2, ::3] = x
    want = PCA(3, precision="float64").fit(x)
    views = {
        "fortran": np.asfortranarray(x),
        "strided": strided[::2, ::3],
        "reversed": x[::-1, ::-1].copy()[::-1, ::-1],
        "memmap": np.load(tmp_path / "x.npy", mmap_mode="r"),
    }
    for name, view in views.items():
        got = PCA(3, precision="float64").fit(view)
        assert_same_fit(got, want, rtol=1e-6, atol=1e-7)
        scores = got.transform(view)
        assert type(scores) is np.ndarray, name
        assert scores.dtype == dtype
        np.testing.assert_allclose(scores, want.transform(x), rtol=1e-5, atol=1e-6)


def test_other_libraries_get_their_own_arrays():
    strict = pytest.importorskip("array_api_strict")
    x = sample(40, 5)
    z = PCA(2).fit(strict.asarray(x)).transform(strict.asarray(x))
    assert type(z) is type(strict.asarray(x))
    np.testing.assert_array_equal(np.from_dlpack(z), PCA(2).fit_transform(x))


def test_integers_lists_and_objects_become_float64():
    x = np.random.default_rng(0).integers(0, 255, size=(40, 5))
    want = PCA(2).fit(x.astype(np.float64))
    for other in (x, x.astype(np.uint8), x.tolist(), x.astype(object)):
        got = PCA(2).fit(other)
        assert got.components_.dtype == np.float64
        assert_same_fit(got, want, rtol=1e-12)
    assert want.transform(x).dtype == np.float64


def test_blocks_do_not_change_scores(monkeypatch):
    x = sample(257, 12, offset=10.0)
    pca = PCA(4).fit(x)
    whole = pca.transform(x)
    monkeypatch.setattr("subspan._rows._HOST_BLOCK", 12 * 7)
    np.testing.assert_allclose(pca.transform(x), whole, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(
        PCA(4, solver="gram").fit(x).transform(x), whole, rtol=1e-8, atol=1e-9
    )


def test_transform_takes_one_block_of_memory():
    x = np.random.default_rng(0).normal(size=(200_000, 50)).astype(np.float32)  # 40 MB
    pca = PCA(2).fit(x[:1000])
    tracemalloc.start()
    try:
        pca.transform(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6


# ---- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, 13, 1.5, 1.0, 0.0, "mle", True, np.nan, [2]])
def test_bad_n_components(k):
    with pytest.raises(InvalidArgumentError, match=r"n_components must be an int in 1\.\.12"):
        PCA(k).fit(sample())
    with pytest.raises(InvalidArgumentError, match="n_components must be"):
        PCA(k).partial_fit(sample())


def test_n_components_beyond_the_rows():
    with pytest.raises(InvalidArgumentError, match=r"1\.\.8 "):
        PCA(9).fit(sample(8, 12))
    # in a stream more rows may come
    assert PCA(9).partial_fit(sample(8, 12)).partial_fit(sample(8, 12)).n_components_ == 9


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(300, 12), (20, 600)])
def test_nonfinite_values_are_named_by_place(bad, shape):
    x = sample(*shape)
    pca = PCA(2).fit(x)
    broken = x.copy()
    broken[17, 5] = bad
    for call in (PCA(2).fit, PCA(2).fit_transform, pca.transform):
        with pytest.raises(InvalidArgumentError, match="row 17, column 5"):
            call(broken)
    z = pca.transform(x)
    z[3, 1] = bad
    with pytest.raises(InvalidArgumentError, match="row 3, column 1"):
        pca.inverse_transform(z)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.ones(5), InvalidArgumentError, "Reshape your data"),
        (np.ones((2, 3, 4)), InvalidArgumentError, "2-D"),
        (np.float64(1), InvalidArgumentError, "2-D"),
        (np.ones((0, 3)), InvalidArgumentError, "must have rows"),
        (np.ones((3, 0)), InvalidArgumentError, "must have columns"),
        (np.ones((1, 3)), InvalidArgumentError, "n_samples = 1"),
        (np.ones((4, 3)) * 1j, InvalidArgumentError, "Complex data not supported"),
        (np.array([["a", "b"], ["c", "d"]]), InvalidArgumentError, "numbers"),
        (np.array([[{}, 1], [2, 3]], dtype=object), DtypeError, "numbers"),
    ],
)
def test_bad_rows(x, error, match):
    with pytest.raises(error, match=match):
        PCA().fit(x)


def test_sparse_rows():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(DtypeError, match="sparse"):
        PCA().fit(sparse.eye(4).tocsr())
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match="sparse"):
        PCA().fit(torch.eye(4).to_sparse())


@pytest.mark.parametrize(
    "weights",
    [
        np.ones(11),
        np.ones((12, 1)),
        -np.ones(12),
        np.zeros(12),
        np.full(12, np.nan),
        np.full(12, 1 / 12),
        np.full(12, np.inf),
    ],
)
@pytest.mark.parametrize("d", [3, 600])
def test_bad_weights(weights, d):
    with pytest.raises(InvalidArgumentError, match="sample_weight"):
        PCA().fit(sample(12, d), sample_weight=weights)


def test_other_bad_arguments():
    x = sample()
    pca = PCA(2).fit(x)
    for method in (pca.transform, pca.partial_fit, pca.score):
        with pytest.raises(InvalidArgumentError, match="11 features, but PCA is expecting 12"):
            method(x[:, :11])
    with pytest.raises(InvalidArgumentError, match="3 features, but PCA is expecting 2"):
        pca.inverse_transform(x[:, :3])
    for params in ({"precision": "half"}, {"solver": "arpack"}, {"whiten": "yes"}):
        with pytest.raises(InvalidArgumentError, match=next(iter(params))):
            PCA(**params).fit(x)
    with pytest.raises(DtypeError, match=r"must be a subspan\.Moments, got ndarray"):
        PCA.from_moments(x)
    with pytest.raises(InvalidArgumentError, match="2 rows"):
        PCA.from_moments(Moments().update(x[:1]))
    with pytest.raises(InvalidArgumentError, match="parameter must be one of"):
        pca.set_params(k=3)


def test_use_before_fit():
    sklearn_exceptions = pytest.importorskip("sklearn.exceptions")
    pca = PCA()
    assert not hasattr(pca, "components_")
    assert not hasattr(pca, "moments_")
    for call in (pca.transform, pca.inverse_transform, pca.score):
        with pytest.raises(sklearn_exceptions.NotFittedError, match="Call fit"):
            call(sample())


# ---- scikit-learn protocol ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the checks themselves, which plant odd estimators
@pytest.mark.parametrize(
    "params", [{}, {"n_components": 1, "whiten": True}, {"precision": "float64"}]
)
def test_check_estimator(params):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    results = checks.check_estimator(PCA(**params), on_skip=None, on_fail="raise")
    assert len(results) > 50
    assert not [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")]


def test_clone_pipeline_and_grid_search():
    base = pytest.importorskip("sklearn.base")
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    copy = base.clone(PCA(3, whiten=True).set_output(transform="default"))
    assert repr(copy) == "PCA(n_components=3, whiten=True)"
    x = sample(120)
    y = x @ np.linspace(1, 2, 12)
    pipeline = make_pipeline(StandardScaler(), PCA(), LinearRegression())
    search = GridSearchCV(pipeline, {"pca__n_components": [1, 12]}, cv=3).fit(x, y)
    assert search.best_params_ == {"pca__n_components": 12}
    assert search.score(x, y) == pytest.approx(1.0)
    assert "PCA" in search._repr_html_()
    names = make_pipeline(StandardScaler(), PCA(2)).fit(x).get_feature_names_out()
    assert list(names) == ["pca0", "pca1"]


class Frame:
    """The little of a data frame that estimators look at."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def to_numpy(self):
        return self.values


def test_column_names():
    x = sample(30, 3)
    pca = PCA(2).fit(Frame(x, ["a", "b", "c"]))
    assert list(pca.feature_names_in_) == ["a", "b", "c"]
    np.testing.assert_array_equal(pca.transform(Frame(x, ["a", "b", "c"])), PCA(2).fit_transform(x))
    with pytest.raises(InvalidArgumentError, match="got 'c' instead of 'b' as column 1"):
        pca.transform(Frame(x, ["a", "c", "b"]))
    with pytest.warns(UserWarning, match="fitted on columns with names"):
        pca.transform(x)
    with pytest.warns(UserWarning, match="fitted on columns without names"):
        PCA(2).fit(x).transform(Frame(x, ["a", "b", "c"]))
    assert list(pca.get_feature_names_out(["a", "b", "c"])) == ["pca0", "pca1"]
    with pytest.raises(ValueError, match="length equal"):
        pca.get_feature_names_out(["a"])
    with pytest.raises(ValueError, match="is not equal to feature_names_in_"):
        pca.get_feature_names_out(["a", "b", "x"])
    assert not hasattr(pca.fit(x), "feature_names_in_")


def test_set_output():
    pandas = pytest.importorskip("pandas")
    x = pandas.DataFrame(sample(30, 3), columns=list("abc"), index=range(100, 130))
    z = PCA(2).set_output(transform="pandas").fit_transform(x)
    assert list(z.columns) == ["pca0", "pca1"]
    assert list(z.index) == list(range(100, 130))


def test_set_output_refuses_other_names():
    with pytest.raises(InvalidArgumentError, match="set_output"):
        PCA().set_output(transform="table")


def test_pickle_keeps_the_fit():
    x = sample()
    for pca in (PCA(3).fit(x), PCA(3).partial_fit(x)):
        again = pickle.loads(pickle.dumps(pca))
        assert_same_fit(again, pca, rtol=0, atol=0)
        np.testing.assert_array_equal(again.transform(x), pca.transform(x))
        assert again.partial_fit(x).n_samples_ == 600


def test_works_without_scikit_learn():
    code = (
        "import sys, numpy as np, subspan\n"
        "p = subspan.PCA(1)\n"
        "try: p.transform(np.eye(3))\n"
        "except AttributeError as e: assert isinstance(e, subspan.errors.SubspanError)\n"
        "else: raise SystemExit('no error')\n"
        "p.fit(np.eye(3)).transform(np.eye(3))\n"
        "assert 'sklearn' not in sys.modules and 'torch' not in sys.modules\n"
        "print('ok')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "ok\n", done.stderr


def test_public_name():
    assert subspan.PCA is PCA
