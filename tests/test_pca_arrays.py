"""subspan.PCA on arrays of every library, dtype and layout, and on degenerate data."""

import tracemalloc

import numpy as np
import pytest
from pca_oracle import ATTRIBUTES, assert_same_fit, reference, sample
from subspan import PCA, Moments
from subspan.errors import DtypeError, InvalidArgumentError

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
