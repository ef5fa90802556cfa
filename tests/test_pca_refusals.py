"""subspan.PCA: refusals, and the protocol of scikit-learn."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import subspan
from pca_oracle import assert_same_fit, sample
from subspan import PCA, Moments
from subspan.errors import DtypeError, InvalidArgumentError

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
