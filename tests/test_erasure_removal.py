"""subspan.erasure: removal of heads and coordinates, against a search with refitted probes."""

import numpy as np
import pytest
from subspan import Moments
from subspan.erasure import CoordinateRemoval, HeadRemoval
from subspan.errors import DtypeError, InvalidArgumentError

DOMAINS = np.array(["news", "code", "mail"])


def sample(n=450, d=12, *, classes=2, seed=0):
    """Rows with the task in columns 0 to 2, the same everywhere, and in 6 to 8, by domain."""
    rng = np.random.default_rng(seed)
    z, domain = rng.integers(0, classes, n), rng.integers(0, 3, n)
    x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.1 * rng.normal(size=(d, d)))
    x[:, :3] += 2.0 * z[:, None]
    x[:, 6:9] += 6.0 * (z * np.array([1.0, -1.0, 0.5])[domain])[:, None]
    return x + 5.0, z, DOMAINS[domain]


def brute_force(x, z, domains, columns, ridge=1e-3, weights=None):
    """Mean R^2 on each domain of the ridge probe of the others, refitted from the rows."""
    weights = np.ones(len(x)) if weights is None else weights
    target = (z[:, None] == np.unique(z)).astype(float) if z.ndim == 1 else z
    scores = []
    for domain in np.unique(domains):
        out = domains == domain
        w = weights[~out] / weights[~out].sum()
        mean, centre = w @ x[~out], w @ target[~out]
        apart = x[~out] - mean
        whole = (apart * w[:, None]).T @ apart
        kept = apart[:, columns]
        gram = (kept * w[:, None]).T @ kept
        gram += ridge * np.trace(whole) / x.shape[1] * np.eye(len(columns))
        probe = np.linalg.solve(gram, (kept * w[:, None]).T @ (target[~out] - centre))
        v = weights[out] / weights[out].sum()
        error = target[out] - centre - (x[out] - mean)[:, columns] @ probe
        spread = target[out] - v @ target[out]
        scores.append(1 - np.sum(v @ error**2) / np.sum(v @ spread**2))
    return np.mean(scores)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", ["labels", "values"])
def test_the_search_is_that_of_refitted_probes(size, kind):
    x, z, domains = sample(classes=3)
    if kind == "values":
        rng = np.random.default_rng(1)
        z = np.column_stack([z + rng.normal(size=len(z)), rng.normal(size=len(z)) * 3])
    steps = 12 // size - 1
    removal = HeadRemoval(12 // size, n_remove=steps).fit(x, z, domains=domains)
    blocks, removed = np.arange(12).reshape(-1, size), []
    scores = [brute_force(x, z, domains, np.arange(12))]
    for step in range(steps):
        left = [b for b in range(len(blocks)) if b not in removed]
        found = [
            brute_force(x, z, domains, np.setdiff1d(np.arange(12), blocks[[*removed, b]]))
            for b in left
        ]
        removed.append(left[int(np.argmax(found))])
        scores.append(max(found))
        assert removal.removed_[step] == removed[step]
    np.testing.assert_allclose(removal.scores_, scores, rtol=1e-8, atol=1e-9)
    assert removal.coordinates_.tolist() == blocks[removed].ravel().tolist()
    assert removal.domains_.tolist() == sorted(DOMAINS)


def test_a_planted_block_is_found_and_helps_elsewhere():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, z, domains = sample(600)
    removal = HeadRemoval(4).fit(x, z, domains=domains)
    assert removal.removed_[0] == 2
    assert removal.scores_[0] < 0.2
    assert removal.scores_[-1] > 0.5
    assert (np.diff(removal.scores_) > 0).all()
    clean = removal.transform(x)
    accuracy = {}
    for name, rows in (("before", x), ("after", clean)):
        for domain in DOMAINS:
            out = domains == domain
            probe = linear_model.LogisticRegression(max_iter=1000).fit(rows[~out], z[~out])
            accuracy[name, domain] = (
                probe.score(rows[out], z[out]),
                probe.score(rows[~out], z[~out]),
            )
    for domain in DOMAINS:
        assert accuracy["after", domain][0] > 0.85
        assert accuracy["after", domain][1] > accuracy["before", domain][1] - 0.05
    assert min(accuracy["before", domain][0] for domain in DOMAINS) < 0.6


def test_transform_fills_and_leaves_the_rest_bit_for_bit():
    x, z, domains = sample(60)
    for fill in ("zero", "mean"):
        removal = HeadRemoval(4, n_remove=2, fill=fill).fit(x, z, domains=domains)
        out = removal.transform(x)
        gone = removal.coordinates_
        kept = np.setdiff1d(np.arange(12), gone)
        np.testing.assert_array_equal(out[:, kept], x[:, kept])
        want = np.zeros(6) if fill == "zero" else x.mean(axis=0)[gone]
        np.testing.assert_allclose(out[:, gone], np.tile(want, (60, 1)), rtol=1e-13, atol=0)
    given = CoordinateRemoval([3, 0], fill="mean").fit(x)
    assert given.removed_.tolist() == given.coordinates_.tolist() == [3, 0]
    assert not hasattr(given, "scores_")
    np.testing.assert_allclose(given.transform(x)[:, [0, 3]].std(axis=0), 0, atol=1e-14)
    heads = HeadRemoval(6, heads=(1,)).fit(x, z)
    assert heads.coordinates_.tolist() == [2, 3]
    again = HeadRemoval.from_moments(Moments().update(x, groups=z), 6, (1,))
    np.testing.assert_array_equal(again.transform(x), heads.transform(x))
    assert HeadRemoval(4, n_remove=0).fit(x, z, domains=domains).transform(x).tolist() == x.tolist()


def test_parts_and_weights():
    x, z, domains = sample(120)
    w = np.random.default_rng(2).integers(0, 3, 120)
    whole = CoordinateRemoval(n_remove=4).fit(x, z, w, domains=domains)
    parts = CoordinateRemoval(n_remove=4)
    for domain in DOMAINS:  # one domain after the other
        rows = domains == domain
        parts.update(x[rows], z[rows], w[rows], domains=domains[rows])
    np.testing.assert_array_equal(parts.removed_, whole.removed_)
    np.testing.assert_allclose(parts.scores_, whole.scores_, rtol=1e-9)
    assert parts.n_samples_ == whole.n_samples_ == np.count_nonzero(w)
    assert whole.scores_[0] == pytest.approx(
        brute_force(x, z, domains, np.arange(12), weights=w), rel=1e-9
    )
    ghost = np.where(domains == "mail", 0, w)  # a domain of weight 0 is not there
    two = CoordinateRemoval(n_remove=1).fit(x, z, ghost, domains=domains)
    assert two.domains_.tolist() == ["code", "news"]
    again = CoordinateRemoval(n_remove=4).partial_fit(x, z, w, domains=domains)
    np.testing.assert_array_equal(
        again.transform(x),
        CoordinateRemoval(n_remove=4).fit_transform(x, z, w, domains=domains),
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_torch_rows(dtype):
    torch = pytest.importorskip("torch")
    x, z, domains = sample(150)
    t = torch.from_numpy(x).to(getattr(torch, dtype))
    removal = HeadRemoval(4, n_remove=1).fit(t, torch.from_numpy(z), domains=domains)
    out = removal.transform(t)
    assert (out.dtype, removal.removed_.tolist()) == (t.dtype, [2])
    assert torch.equal(out[:, :6], t[:, :6])
    assert not out[:, 6:9].any()
    leaf = t.clone().requires_grad_()
    removal.transform(leaf).sum().backward()
    assert leaf.grad.sum(0).tolist() == [150.0] * 6 + [0.0] * 3 + [150.0] * 3


@pytest.mark.filterwarnings("ignore")  # of the checks themselves, which plant odd estimators
def test_check_estimator():
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    results = checks.check_estimator(CoordinateRemoval([0]), on_skip=None, on_fail="raise")
    assert len(results) > 50
    assert not [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: HeadRemoval(5), InvalidArgumentError, "n_heads must divide the number of columns"),
        (lambda: HeadRemoval(0), InvalidArgumentError, "n_heads must be >= 1"),
        (lambda: HeadRemoval(2.0), DtypeError, "n_heads must be an integer"),
        (lambda: HeadRemoval(4, [4]), InvalidArgumentError, r"heads must be in 0\.\.3, got 4"),
        (lambda: HeadRemoval(4, [1, 1]), InvalidArgumentError, r"heads must be distinct"),
        (lambda: HeadRemoval(4, 1), DtypeError, "heads must be a sequence of integers, got 1"),
        (lambda: HeadRemoval(4, "1"), DtypeError, "heads must be a sequence of integers"),
        (lambda: HeadRemoval(4, [0.5]), DtypeError, "heads must be an integer"),
        (lambda: HeadRemoval(4, [0], n_remove=1), InvalidArgumentError, "n_remove must be None"),
        (lambda: HeadRemoval(4, n_remove=4), InvalidArgumentError, r"n_remove must be in 0\.\.3"),
        (lambda: HeadRemoval(4, fill="one"), InvalidArgumentError, "fill must be one of"),
        (lambda: HeadRemoval(4, ridge=0.0), InvalidArgumentError, "ridge must be in"),
        (lambda: HeadRemoval(4, concept="x"), InvalidArgumentError, "concept must be one of"),
        (lambda: CoordinateRemoval([12]), InvalidArgumentError, r"coordinates must be in 0\.\.11"),
        (lambda: CoordinateRemoval(n_remove=12), InvalidArgumentError, r"n_remove must be in"),
    ],
)
def test_bad_parameters(make, error, text):
    x, z, domains = sample(30)
    with pytest.raises(error, match=rf"^\[\w+\] .*{text}"):
        make().fit(x, z, domains=domains)


def test_bad_data():
    x, z, domains = sample(30)
    removal = CoordinateRemoval(n_remove=1)
    cases = [
        ({"domains": None}, "domains must be given to choose what to remove, got None"),
        ({"domains": domains[:5]}, r"domains must have shape \(30,\)"),
        ({"domains": np.ones((30, 2))}, "domains must have one axis to be labels"),
        ({"domains": np.zeros(30, int)}, "domains must have at least 2 values, got 1"),
        ({"domains": z, "y": z}, "y must vary in every domain, got a single value in 0"),
        ({"domains": domains, "y": None}, "requires y to be passed"),
        ({"domains": domains, "X": np.ones((30, 3))}, "X must have variance outside of every"),
    ]
    for arguments, text in cases:
        with pytest.raises(InvalidArgumentError, match=text):
            removal.fit(**{"X": x, "y": z, **arguments})
        assert not hasattr(removal, "removed_")
    state = Moments(precision="float64").update(x, groups=z)
    with pytest.raises(InvalidArgumentError, match="domains must have at least 2 values, got 0"):
        CoordinateRemoval.from_moments(state)
    with pytest.raises(ValueError, match="Call fit"):
        removal.transform(x)
    removal.update(x, z, domains=domains)
    with pytest.raises(InvalidArgumentError, match="domains must be given"):
        removal.update(x, z)
    with pytest.raises(InvalidArgumentError, match="row 0, column 2"):
        removal.transform(np.where(np.arange(12) == 2, np.nan, x))
