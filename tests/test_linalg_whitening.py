"""subspan.linalg.Whitening: the covariance of whitened rows, the three maps, shrinkage."""

import pickle

import numpy as np
import pytest
from subspan import Moments
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.linalg import Whitening

KINDS = ("pca", "zca", "cholesky")
EPS = np.finfo(np.float64).eps


def sample(n=400, d=8, *, spread=1.0, offset=3.0, seed=0):
    """Return rows whose standard deviations span 10^spread, mixed by a random rotation."""
    rng = np.random.default_rng(seed)
    mix, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return (rng.normal(size=(n, d)) * np.logspace(0, -spread, d)) @ mix + offset


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("d", [1, 2, 30])
def test_whitened_rows_have_identity_covariance(kind, spread, d):
    x = sample(d=d, spread=spread)
    white = Whitening(kind, eps_rel=0.0).fit(x)
    y = white.transform(x)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-9 * 10**spread)
    tolerance = 50 * d * EPS * 10 ** (2 * spread)  # kappa of the covariance is 10^(2 spread)
    assert np.max(np.abs(np.cov(y.T).reshape(d, d) - np.eye(d))) <= tolerance
    np.testing.assert_allclose(white.inverse_transform(y), x, rtol=0, atol=1e-12 * 10**spread)
    np.testing.assert_allclose(white.whitening_ @ white.unwhitening_, np.eye(d), atol=tolerance)
    assert (white.rank_, white.eps_, white.shrinkage_) == (d, 0.0, 0.0)


def test_the_three_maps():
    x = sample()
    c = np.cov(x.T)
    values, vectors = np.linalg.eigh(c)
    root = (vectors / np.sqrt(values)) @ vectors.T
    zca = Whitening("zca", eps_rel=0.0).fit(x)
    np.testing.assert_allclose(zca.whitening_, root, atol=1e-11)
    np.testing.assert_allclose(zca.whitening_, zca.whitening_.T, atol=1e-12)
    cholesky = Whitening("cholesky").fit(x)
    np.testing.assert_array_equal(cholesky.whitening_, np.tril(cholesky.whitening_))
    np.testing.assert_allclose(cholesky.unwhitening_, np.linalg.cholesky(c), atol=1e-13)
    pca = Whitening().fit(x)
    np.testing.assert_allclose(pca.eigenvalues_, values[::-1], rtol=1e-11)
    np.testing.assert_allclose(
        np.abs(pca.whitening_),
        np.abs(vectors[:, ::-1].T / np.sqrt(values[::-1])[:, None]),
        atol=1e-10,
    )
    # all maps are rotations of one another: the Mahalanobis norm is one
    norms = [np.sum(w.transform(x) ** 2, axis=1) for w in (zca, cholesky, pca)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-9)
    np.testing.assert_allclose(norms[2], norms[0], rtol=1e-9)


def test_zca_stays_closest_to_the_rows():
    x = sample(spread=0.5)
    centred = x - x.mean(axis=0)
    moved = {
        kind: np.sum((Whitening(kind, eps_rel=0.0).fit_transform(x) - centred) ** 2)
        for kind in KINDS
    }
    assert moved["zca"] == min(moved.values())


def test_zca_does_not_depend_on_the_basis():
    x = sample()
    rotation, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(8, 8)))
    a, b = Whitening("zca").fit_transform(x), Whitening("zca").fit_transform(x @ rotation)
    np.testing.assert_allclose(a @ rotation, b, atol=1e-10)


def test_rank_deficiency_and_constant_columns():
    x = sample(d=5)
    x = np.column_stack([x, np.full(len(x), 7.0), x[:, 1]])
    pca = Whitening("pca").fit(x)
    assert pca.rank_ == 5
    y = pca.transform(x)
    np.testing.assert_allclose(np.cov(y.T), np.eye(5), atol=1e-10)
    np.testing.assert_allclose(pca.inverse_transform(y), x, atol=1e-11)
    zca = Whitening("zca", eps_rel=0.0).fit(x)
    y = zca.transform(x)
    assert (zca.rank_, y.shape) == (5, x.shape)
    projector = zca.unwhitening_ @ zca.whitening_
    np.testing.assert_allclose(np.cov(y.T), projector, atol=1e-10)
    np.testing.assert_allclose(zca.inverse_transform(y), x, atol=1e-11)
    with pytest.raises(InvalidArgumentError, match="full rank"):
        Whitening("cholesky").fit(x)
    for kind in ("zca", "cholesky"):
        regular = Whitening(kind, eps_rel=1e-6).fit(x)
        assert regular.rank_ == 7
        np.testing.assert_allclose(regular.inverse_transform(regular.transform(x)), x, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_eps_bounds_the_gain(kind):
    x = sample(spread=4.0)
    white = Whitening(kind, eps_rel=1e-2).fit(x)
    values = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    e = 1e-2 * values.mean()
    assert white.eps_ == pytest.approx(e, rel=1e-9)
    got = np.linalg.eigvalsh(np.cov(white.transform(x).T))[::-1]
    np.testing.assert_allclose(got, values / (values + e), rtol=1e-7, atol=1e-12)
    assert np.linalg.norm(white.whitening_, 2) <= (values[-1] + e) ** -0.5 * (1 + 1e-9)


def test_fewer_components():
    x = sample()
    full, part = Whitening().fit(x), Whitening(n_components=3).fit(x)
    np.testing.assert_allclose(part.transform(x), full.transform(x)[:, :3], atol=1e-12)
    zca = Whitening("zca", n_components=3).fit(x)
    assert np.linalg.matrix_rank(zca.whitening_) == 3
    assert list(part.get_feature_names_out()) == ["whitening0", "whitening1", "whitening2"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_fixed_shrinkage(kind, rho):
    x = sample()
    c = np.cov(x.T)
    shrunk = (1 - rho) * c + rho * np.trace(c) / 8 * np.eye(8)
    w = Whitening(kind, shrinkage=rho, eps_rel=0.0).fit(x)
    np.testing.assert_allclose(w.whitening_ @ shrunk @ w.whitening_.T, np.eye(8), atol=1e-11)
    np.testing.assert_allclose(w.eigenvalues_, np.linalg.eigvalsh(shrunk)[::-1], rtol=1e-10)


def test_oas_is_the_published_formula():
    for n, d in ((20, 8), (400, 8), (10, 30)):
        x = sample(n, d)
        s = np.cov(x.T)
        tr_s2, tr2_s = np.sum(s * s), np.trace(s) ** 2
        rho = ((1 - 2 / d) * tr_s2 + tr2_s) / ((n + 1 - 2 / d) * (tr_s2 - tr2_s / d))
        white = Whitening(shrinkage="oas").fit(x)
        assert white.shrinkage_ == pytest.approx(min(1.0, rho), rel=1e-10)
        assert white.rank_ == d  # shrinkage makes any number of rows full rank
    assert Whitening(shrinkage="oas").fit(sample(d=1)).shrinkage_ == 1.0


def test_oas_improves_few_rows():
    rng = np.random.default_rng(6)
    truth = np.diag(np.linspace(0.5, 1.5, 40))
    x = rng.normal(size=(50, 40)) @ np.sqrt(truth)
    error = {}
    for shrinkage in (None, "oas"):
        w = Whitening(shrinkage=shrinkage).fit(x).whitening_
        error[shrinkage] = np.linalg.norm(w @ truth @ w.T - np.eye(40))
    assert error["oas"] < 0.2 * error[None]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_merge_and_weights(kind):
    x = sample(301)
    whole = Whitening(kind).fit(x)
    parts = Whitening(kind)
    for part in np.array_split(x, 7):
        parts.partial_fit(part)
    state = Moments(precision="float64")
    for part in np.array_split(x, 5)[::-1]:
        state.merge(Moments(precision="float64").update(part))
    merged = Whitening.from_moments(state, kind)
    counts = np.random.default_rng(1).integers(0, 4, size=len(x))
    weighted = Whitening(kind).fit(x, sample_weight=counts)
    repeated = Whitening(kind).fit(x.repeat(counts, axis=0))
    for a, b in ((parts, whole), (merged, whole), (weighted, repeated)):
        np.testing.assert_allclose(a.whitening_, b.whitening_, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(a.mean_, b.mean_, rtol=1e-12)


def test_float32_far_from_the_origin():
    x = sample(5000, spread=2.0, offset=1000.0).astype(np.float32)
    y = Whitening("zca", eps_rel=0.0).fit(x).transform(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(np.cov(y.T.astype(np.float64)), np.eye(8), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_torch_rows(kind, dtype):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(sample()).to(getattr(torch, dtype))
    white = Whitening(kind).fit(x)
    y = white.transform(x)
    assert (y.dtype, y.device, y.shape) == (x.dtype, x.device, x.shape)
    exact = Whitening(kind).fit(x.double()).transform(x.double())
    tolerance = {"bfloat16": 2e-2, "float16": 3e-3, "float32": 3e-4, "float64": 1e-12}[dtype]
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance)
    assert white.inverse_transform(y).dtype == x.dtype


def test_torch_gradient():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(sample(20, 4)).requires_grad_()
    assert torch.autograd.gradcheck(Whitening("zca").fit(x.detach()).transform, (x,))


def test_pickle():
    x = sample()
    white = Whitening("zca").fit(x)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(white)).transform(x), white.transform(x)
    )


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"kind": "ica"}, "kind"),
        ({"n_components": 0}, r"1\.\.8"),
        ({"n_components": 9}, r"1\.\.8"),
        ({"n_components": 0.9}, r"1\.\.8"),
        ({"kind": "cholesky", "n_components": 2}, "must be None"),
        ({"eps_rel": -1e-9}, "eps_rel"),
        ({"eps_rel": np.inf}, "eps_rel"),
        ({"shrinkage": 1.1}, "shrinkage"),
        ({"shrinkage": "ledoit_wolf"}, "fourth moments"),
        ({"precision": "float32"}, "precision"),
    ],
)
def test_bad_parameters(params, match):
    with pytest.raises(InvalidArgumentError, match=match):
        Whitening(**params).fit(sample())


def test_bad_rows():
    x = sample()
    white = Whitening().fit(x)
    with pytest.raises(InvalidArgumentError, match="expecting 8 features"):
        white.transform(x[:, :3])
    x[5, 2] = np.nan
    for call in (white.transform, Whitening().fit, white.inverse_transform):
        with pytest.raises(InvalidArgumentError, match="row 5, column 2"):
            call(x)
    with pytest.raises(InvalidArgumentError, match="must have variance"):
        Whitening().fit(np.ones((5, 2)))
    with pytest.raises(InvalidArgumentError, match="n_samples = 1"):
        Whitening().fit(np.ones((1, 2)))
    with pytest.raises(DtypeError, match="must be a subspan"):
        Whitening.from_moments(np.ones((5, 2)))
    with pytest.raises(ValueError, match="Call fit"):
        Whitening().transform(x)


@pytest.mark.filterwarnings("ignore")  # of the checks themselves, which plant odd estimators
@pytest.mark.parametrize("params", [{}, {"kind": "zca"}, {"shrinkage": "oas"}])
def test_check_estimator(params):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    results = checks.check_estimator(Whitening(**params), on_skip=None, on_fail="raise")
    assert len(results) > 50
    assert not [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")]
