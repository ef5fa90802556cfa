"""subspan.erasure: LEACE, its oracle, INLP: what they erase and keep, how they are learnt."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subspan import Moments
from subspan.erasure import INLP, LEACE, OracleLEACE
from subspan.errors import DtypeError, InvalidArgumentError

ERASERS = [LEACE(), LEACE("orthogonal"), INLP(tol=1e-12)]
EPS = np.finfo(np.float64).eps


def rows(n=300, d=7, *, classes=3, seed=0, spread=1.0):
    """Return correlated rows far from the origin, whose mean depends on their label."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, classes, n)
    mix = rng.normal(size=(d, d)) * np.logspace(0, -spread, d)
    return (rng.normal(size=(n, d)) + 2.0 * rng.normal(size=(classes, d))[z]) @ mix + 9.0, z


def values(n=300, d=7, k=2, *, seed=0):
    """Return correlated rows and real columns that they tell about linearly."""
    x, _ = rows(n, d, seed=seed)
    rng = np.random.default_rng(seed + 1)
    z = (x - x.mean(axis=0)) @ rng.normal(size=(d, k)) + rng.normal(size=(n, k))
    return x, z * np.logspace(0, 6, k) + 100.0


def one_hot(z):
    return (z[:, None] == np.unique(z)).astype(float)


def cross(x, z, weights=None):
    """Cross-covariance, each entry over the standard deviations: correlations."""
    w = np.ones(len(x)) if weights is None else weights
    x = x - np.average(x, axis=0, weights=w)
    z = z - np.average(z, axis=0, weights=w)
    return (x * w[:, None]).T @ z / w.sum() / np.sqrt(np.average(z**2, axis=0, weights=w))


def moved(before, after, metric=None):
    change = after - before
    return float(np.mean(np.sum((change if metric is None else change @ metric) * change, axis=1)))


def scale_of(x):
    return np.linalg.norm(x - x.mean(axis=0), 2) / np.sqrt(len(x))


# ---- nothing linear is left ------------------------------------------------------------------


@pytest.mark.parametrize("eraser", ERASERS, ids=repr)
@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_class_means_are_equal_afterwards(eraser, classes, spread):
    x, z = rows(classes=classes, spread=spread)
    erased = eraser.fit(x, z).transform(x)
    left = np.abs(cross(erased, one_hot(z))).max() / scale_of(x)
    limit = 1e-6 if isinstance(eraser, INLP) else 200 * EPS * 10**spread
    assert left <= limit
    assert np.abs(cross(x, one_hot(z))).max() / scale_of(x) > 1e-2
    np.testing.assert_allclose(erased.mean(axis=0), x.mean(axis=0), rtol=1e-12)
    assert eraser.rank_ >= min(classes - 1, 7)
    if not isinstance(eraser, INLP):
        assert eraser.rank_ == classes - 1
    assert eraser.classes_.tolist() == list(range(classes))


@pytest.mark.parametrize("eraser", [*ERASERS, OracleLEACE()], ids=repr)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_columns_of_any_scale_are_erased(eraser, k):
    x, z = values(k=k)
    erased = eraser.fit_transform(x, z)
    assert getattr(eraser, "rank_", k) >= k
    assert np.abs(cross(erased, z)).max() / scale_of(x) <= (
        1e-5 if isinstance(eraser, INLP) else 2e-13
    )


def test_no_linear_classifier_beats_the_constant_one():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, z = rows(300, classes=3)
    share = np.bincount(z) / len(z)
    entropy = -np.sum(share * np.log(share))
    for eraser in ERASERS:
        erased = eraser.fit_transform(x, z)
        model = linear_model.LogisticRegression(C=1e6, max_iter=500).fit(erased, z)
        chance = model.predict_proba(erased)
        loss = -np.mean(np.log(chance[np.arange(len(z)), z]))
        assert loss == pytest.approx(entropy, abs=1e-4)
        assert np.abs(chance - share).max() < 1e-2
        least = linear_model.Ridge(1e-9).fit(erased, one_hot(z))
        assert least.score(erased, one_hot(z)) <= 1e-6
    before = linear_model.LogisticRegression(max_iter=500).fit(x, z)
    assert before.score(x, z) > share.max() + 0.2


def test_correlations_are_canonical():
    x, z = values(k=2)
    xc, zc = x - x.mean(axis=0), z - z.mean(axis=0)
    qx, qz = np.linalg.qr(xc)[0], np.linalg.qr(zc / zc.std(axis=0))[0]
    want = np.linalg.svd(qx.T @ qz, compute_uv=False)
    np.testing.assert_allclose(LEACE().fit(x, z).correlations_, want, atol=1e-10)
    np.testing.assert_allclose(INLP().fit(x, z).scores_[0], want[0] ** 2, rtol=1e-4)
    x, z = rows(classes=2)
    r = LEACE().fit(x, z).correlations_
    assert r == pytest.approx(LEACE(concept="values").fit(x, z).correlations_, rel=1e-10)


# ---- the least change ------------------------------------------------------------------------


def feasible(x, z, rng):
    """A random affine map that keeps the mean and leaves no covariance with z."""
    centred = x - x.mean(axis=0)
    c = centred.T @ (z - z.mean(axis=0))
    basis = np.linalg.svd(c, full_matrices=True)
    null = basis[0][:, np.linalg.matrix_rank(c) :]
    change = np.eye(x.shape[1]) + 0.3 * rng.normal(size=(x.shape[1],) * 2)
    return centred @ null @ null.T @ change + x.mean(axis=0)


@pytest.mark.parametrize("seed", range(4))
def test_leace_moves_least_of_all_maps_in_every_metric(seed):
    rng = np.random.default_rng(seed)
    x, z = rows(seed=seed, spread=1.0)
    leace, oracle = LEACE().fit_transform(x, z), OracleLEACE().fit_transform(x, z)
    rivals = [feasible(x, one_hot(z), rng) for _ in range(20)]
    rivals += [eraser.fit_transform(x, z) for eraser in ERASERS[1:]]
    root = rng.normal(size=(7, 7))
    for metric in (None, root @ root.T, np.outer(root[0], root[0])):
        for rival in rivals:
            assert np.abs(cross(rival, one_hot(z))).max() < 1e-5
            assert moved(x, leace, metric) <= moved(x, rival, metric) * (1 + 1e-9)
        assert moved(x, oracle, metric) <= moved(x, leace, metric) * (1 + 1e-12)


def test_the_formula():
    x, z = rows(classes=3)
    s, c = np.cov(x.T), (x - x.mean(axis=0)).T @ one_hot(z) / (len(x) - 1)
    values, vectors = np.linalg.eigh(s)
    root, inverse = (vectors * values**p @ vectors.T for p in (0.5, -0.5))
    u = np.linalg.svd(inverse @ c)[0][:, :2]
    leace = LEACE().fit(x, z)
    want = np.eye(7) - root @ u @ u.T @ inverse
    np.testing.assert_allclose(leace.projection_, want, atol=1e-11)
    np.testing.assert_allclose(leace.filters_ @ leace.patterns_.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(leace.transform(x), (x - x.mean(0)) @ want.T + x.mean(0), atol=1e-10)
    orthogonal = LEACE("orthogonal").fit(x, z)
    p = orthogonal.projection_
    np.testing.assert_allclose(p, np.eye(7) - np.linalg.pinv(c.T, rcond=1e-10) @ c.T, atol=1e-12)
    np.testing.assert_array_equal(orthogonal.filters_, orthogonal.patterns_)
    within = np.concatenate([x[z == g] - x[z == g].mean(0) + x.mean(0) for g in range(3)])
    oracle = OracleLEACE().fit(x, z)
    np.testing.assert_allclose(
        oracle.transform(x, z)[np.argsort(z, kind="stable")], within, atol=1e-12
    )


@pytest.mark.parametrize("eraser", ERASERS, ids=repr)
def test_erasing_twice_is_erasing_once(eraser):
    x, z = rows()
    once = eraser.fit(x, z).transform(x)
    np.testing.assert_allclose(eraser.transform(once), once, atol=1e-10)
    p = eraser.projection_
    np.testing.assert_allclose(p @ p, p, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_leace_follows_affine_maps(seed):
    rng = np.random.default_rng(seed)
    x, z = rows(seed=seed % 97, classes=3)
    a, b = rng.normal(size=(7, 7)) + 3 * np.eye(7), rng.normal(size=7)
    if np.linalg.cond(a) > 1e3:
        return
    got, want = LEACE().fit_transform(x @ a + b, z), LEACE().fit_transform(x, z) @ a + b
    np.testing.assert_allclose(got, want, atol=1e-7 * np.abs(want).max())
    again = LEACE().fit_transform(x, -7 * z + 2)  # other names for the same classes
    np.testing.assert_allclose(again, LEACE().fit_transform(x, z), atol=1e-9)


# ---- spans and ranks -------------------------------------------------------------------------


def test_rank_deficient_covariances():
    x, z = rows(40, 5, classes=2)
    wide = np.column_stack([x, x @ np.arange(5.0), np.full(40, 3.0), x[:, 0]])  # rank 5 of 8
    for eraser in ERASERS:
        erased = eraser.fit_transform(wide, z)
        assert np.abs(cross(erased, one_hot(z))).max() <= 1e-5
        np.testing.assert_allclose(erased[:, 6], 3.0, atol=1e-9)
    few = np.random.default_rng(3).normal(size=(6, 20))  # fewer rows than columns
    erased = LEACE().fit_transform(few, [0, 0, 0, 1, 1, 1])
    assert np.abs(erased[:3].mean(axis=0) - erased[3:].mean(axis=0)).max() <= 1e-12
    constant = LEACE().fit(np.ones((4, 3)), [0, 0, 1, 1])
    assert constant.rank_ == 0
    np.testing.assert_array_equal(constant.transform(np.eye(3)), np.eye(3))
    assert INLP().fit(np.ones((4, 3)), [0, 0, 1, 1]).scores_.tolist() == [0.0]


def test_what_is_not_there_is_not_erased():
    x, _ = rows(400, 4)
    z = np.random.default_rng(5).normal(size=(400, 2))
    design = np.column_stack([np.ones(400), x])
    z[:, 1] -= design @ np.linalg.lstsq(design, z[:, 1], rcond=None)[0]  # no correlation at all
    leace = LEACE().fit(x, z[:, 1])
    assert leace.rank_ == 0
    np.testing.assert_array_equal(leace.transform(x), x)
    assert LEACE().fit(x, np.column_stack([z[:, 0], z[:, 0], np.full(400, 0.1)])).rank_ == 1
    many = LEACE().fit(x, np.arange(400) % 40)  # more classes than columns
    assert many.rank_ == 4
    np.testing.assert_allclose(many.transform(x), np.tile(x.mean(axis=0), (400, 1)), atol=1e-9)


def test_inlp_rounds():
    x, z = rows(500, 9, classes=3)
    inlp = INLP(tol=1e-10).fit(x, z)
    assert (np.diff(inlp.scores_) < 0).all()
    assert inlp.scores_[-1] <= 1e-10
    assert len(inlp.scores_) == len(inlp.round_ranks_) + 1
    assert inlp.round_ranks_.sum() == inlp.rank_
    w = inlp.filters_
    np.testing.assert_allclose(w @ w.T, np.eye(len(w)), atol=1e-12)
    np.testing.assert_allclose(w @ inlp.projection_, 0, atol=1e-12)
    for rounds in (0, 1, 2):  # each round is the ridge probe of the rows that are left
        part = INLP(rounds, tol=0.0, ridge=1e-9).fit(x, z)
        left = part.transform(x)
        centred = left - left.mean(axis=0)
        target = one_hot(z) - one_hot(z).mean(axis=0)
        probe = np.linalg.lstsq(centred, target, rcond=1e-10)[0]
        score = np.linalg.svd(np.linalg.qr(centred, "reduced")[0].T @ target)[1]
        assert len(part.round_ranks_) == rounds
        assert score.shape == (3,)
        follow = INLP(rounds + 1, tol=0.0, ridge=1e-9).fit(x, z).filters_[part.rank_ :]
        span = np.linalg.svd(probe, full_matrices=False)[0][:, :2]
        np.testing.assert_allclose(np.linalg.svd(follow @ span)[1], 1.0, atol=1e-6)
    assert INLP(tol=1.0).fit(x, z).rank_ == 0
    assert np.isfinite(INLP(ridge=0.0, tol=0.0).fit(x, z).scores_).all()


# ---- learning in parts -----------------------------------------------------------------------


@pytest.mark.parametrize("eraser", [LEACE(), INLP(), OracleLEACE()], ids=repr)
@pytest.mark.parametrize("make", [rows, values])
def test_parts_equal_the_whole(eraser, make):
    x, z = make()
    order = np.argsort(z if z.ndim == 1 else z[:, 0])  # classes come one after the other
    x, z = x[order], z[order]
    arguments = (z[:5],) if isinstance(eraser, OracleLEACE) else ()
    want = eraser.fit(x, z).transform(x[:5], *arguments)
    parts = type(eraser)().update(x[:1], z[:1])
    parts = parts.update(x[1:90], z[1:90]).partial_fit(x[90:], z[90:])
    np.testing.assert_allclose(parts.transform(x[:5], *arguments), want, atol=1e-8)
    assert parts.n_samples_ == len(x)
    if isinstance(eraser, LEACE) and make is rows:
        state = Moments(precision="float64").update(x, groups=z)
        again = LEACE.from_moments(state)
        np.testing.assert_allclose(again.transform(x[:5]), want, atol=1e-8)
        again.update(x[:9] + 1, z[:9])
        assert (again.n_samples_, state.count) == (len(x) + 9, len(x))


def test_weights_are_repetitions():
    x, z = rows(60, 4)
    w = np.random.default_rng(1).integers(0, 4, 60)
    for concept in ("labels", "values"):
        for eraser in (LEACE(concept=concept), INLP(concept=concept)):
            got = eraser.fit(x, z, sample_weight=w).transform(x)
            want = eraser.fit(np.repeat(x, w, axis=0), np.repeat(z, w)).transform(x)
            np.testing.assert_allclose(got, want, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_torch_rows_of_any_dtype(dtype):
    torch = pytest.importorskip("torch")
    x, z = rows(spread=0.3)
    t = torch.from_numpy(x).to(getattr(torch, dtype))
    leace = LEACE().fit(t, torch.from_numpy(z))
    out = leace.transform(t)
    assert (out.dtype, out.shape) == (t.dtype, t.shape)
    assert leace.filters_.dtype == (np.float64 if dtype == "float64" else np.float32)
    tolerance = {"float16": 2e-2, "bfloat16": 2e-1, "float32": 1e-4, "float64": 1e-11}[dtype]
    np.testing.assert_allclose(
        out.double().numpy(), LEACE().fit_transform(t.double().numpy(), z), atol=tolerance
    )
    oracle = OracleLEACE().fit(t, z).transform(t, z)
    assert oracle.dtype == t.dtype
    if dtype == "float64":
        leaf = t[:6].clone().requires_grad_()
        assert torch.autograd.gradcheck(leace.transform, (leaf,))
        assert OracleLEACE().fit(t, z).transform(leaf, z[:6]).requires_grad


def test_labels_of_any_kind_and_frames():
    x, z = rows()
    want = LEACE().fit_transform(x, z)
    names = np.array(["b", "c", "a"])[z]
    for y in (names, list(names), names.astype(object), z.astype(np.uint8)):
        leace = LEACE().fit(x, y)
        np.testing.assert_allclose(leace.transform(x), want, atol=1e-9)
    assert LEACE().fit(x, names).classes_.tolist() == ["a", "b", "c"]
    floats = LEACE(concept="labels").fit(x.astype(np.float32), z + 0.1)
    assert floats.classes_.dtype == np.float32
    assert LEACE().fit(x, z > 0).rank_ == 1
    assert LEACE().fit(x, z.astype(float)).rank_ == 1  # a real column, not three classes
    assert not hasattr(LEACE().fit(x, z.astype(float)), "classes_")
    eraser = pickle.loads(pickle.dumps(LEACE().fit(x, z)))
    np.testing.assert_allclose(eraser.transform(x), want, atol=1e-12)
    assert eraser.get_feature_names_out().tolist() == [f"x{i}" for i in range(7)]


@pytest.mark.filterwarnings("ignore")  # of the checks themselves, which plant odd estimators
@pytest.mark.parametrize("eraser", [LEACE(), INLP()], ids=repr)
def test_check_estimator(eraser):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    results = checks.check_estimator(eraser, on_skip=None, on_fail="raise")
    assert len(results) > 50
    assert not [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")]


# ---- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "error", "text"),
    [
        (None, InvalidArgumentError, "requires y to be passed"),
        (np.zeros(5, int), InvalidArgumentError, r"shape \(6,\) or \(6, k\)"),
        (np.zeros((6, 0)), InvalidArgumentError, r"shape \(6,\) or \(6, k\)"),
        (np.zeros((6, 1, 1)), InvalidArgumentError, r"shape \(6,\) or \(6, k\)"),
        (np.zeros(6, int), InvalidArgumentError, "at least 2 classes, got 1 class"),
        (np.full(6, 0.1), InvalidArgumentError, "vary, got rows that are all equal"),
        (np.array([0, 1, 2, np.nan, 4, 5]), InvalidArgumentError, "finite, .* in row 3"),
        (np.array(["a", None, "b", "a", "a", "b"], object), DtypeError, "of one type"),
        (np.array([["a"] * 2] * 6), DtypeError, "real numbers to be values, got <U1"),
        (np.ones(6, complex), DtypeError, "be integers or strings, got complex128"),
    ],
)
def test_concepts_that_are_refused(y, error, text):
    x = np.random.default_rng(0).normal(size=(6, 3))
    for eraser in (LEACE(), INLP(), OracleLEACE()):
        with pytest.raises(error, match=rf"\[{type(eraser).__name__}\.fit\] y must .*{text}"):
            eraser.fit(x, y)
        assert not hasattr(eraser, "mean_")


def test_other_refusals():
    x, z = rows(20, 3)
    for bad, text in (
        (LEACE("oblique"), "method must be one of"),
        (LEACE(concept="classes"), "concept must be one of"),
        (INLP(-1), "n_rounds must be >= 0"),
        (INLP(tol=2.0), r"tol must be in \[0.0, 1.0\]"),
        (INLP(ridge=-1.0), "ridge must be in"),
        (OracleLEACE(concept="x"), "concept must be one of"),
    ):
        with pytest.raises(InvalidArgumentError, match=text):
            bad.fit(x, z)
    with pytest.raises(InvalidArgumentError, match="one axis to be labels"):
        LEACE(concept="labels").fit(x, np.ones((20, 2)))
    with pytest.raises(InvalidArgumentError, match=r"\[LEACE.fit\] X must be finite, got NaN in"):
        LEACE().fit(np.where(np.eye(20, 3), np.nan, x), z)
    with pytest.raises(InvalidArgumentError, match="n_samples = 1"):
        LEACE().fit(x[:1], z[:1])
    leace = LEACE().fit(x, z)
    state = leace.moments_.copy()
    for y, text in (
        (z.astype(float), "labels that are numbers as before, got values of 1 columns"),
        (z.astype(str), "labels that are numbers as before, got labels that are strings"),
    ):
        with pytest.raises(InvalidArgumentError, match=text):
            leace.update(x, y)
    np.testing.assert_array_equal(leace.moments_.m2, state.m2)
    with pytest.raises(
        InvalidArgumentError, match="values of 1 columns as before, got values of 2"
    ):
        LEACE().fit(x, x[:, 0]).update(x, x[:, :2])
    with pytest.raises(InvalidArgumentError, match="expecting 3 features"):
        leace.transform(x[:, :2])
    with pytest.raises(InvalidArgumentError, match="row 2, column 1"):
        leace.transform(np.where(np.arange(60).reshape(20, 3) == 7, np.inf, x))
    with pytest.raises(InvalidArgumentError, match="updates must have had groups"):
        LEACE.from_moments(Moments().update(x))
    oracle = OracleLEACE().fit(x, z)
    with pytest.raises(InvalidArgumentError, match=r"y must have labels of fit, got .*7"):
        oracle.transform(x, np.full(20, 7))
    with pytest.raises(InvalidArgumentError, match="requires y to be passed"):
        oracle.transform(x)
    with pytest.raises(ValueError, match="Call fit"):
        LEACE().transform(x)
    with pytest.raises(ValueError, match="Call fit"):
        OracleLEACE().transform(x, z)
