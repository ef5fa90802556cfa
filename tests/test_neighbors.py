"""subspan.neighbors: against scikit-learn, dense references, and one search of the whole."""

import pickle

import numpy as np
import pytest
from matrices import same_bits
from neighbor_oracle import METRICS, distances_of, nearest, restricted
from subspan import KNN, knn
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.neighbors import KnnBuilder, NearestNeighbors, knn_graph

# ---- NearestNeighbors --------------------------------------------------------------------------


@pytest.fixture(params=["euclidean", "sqeuclidean", "cosine"])
def both(request, rng):
    """Return ours and scikit-learn's, fitted on the same rows, and queries."""
    theirs = pytest.importorskip("sklearn.neighbors").NearestNeighbors
    x, queries = rng.normal(size=(300, 12)) + 2, rng.normal(size=(40, 12)) + 2
    ours = NearestNeighbors(7, radius=0.9, metric=request.param).fit(x)
    reference = theirs(n_neighbors=7, radius=0.9, metric=request.param, algorithm="brute")
    return ours, reference.fit(x), queries


def test_kneighbors_is_that_of_sklearn(both):
    ours, theirs, queries = both
    for how in ({}, {"n_neighbors": 3}):
        for x in (queries, None, queries.tolist()):
            got, wanted = ours.kneighbors(x, **how), theirs.kneighbors(x, **how)
            np.testing.assert_allclose(got[0], wanted[0], atol=1e-12)
            np.testing.assert_array_equal(got[1], wanted[1])
            alone = ours.kneighbors(x, **how, return_distance=False)
            np.testing.assert_array_equal(alone, wanted[1])


def test_radius_neighbors_is_that_of_sklearn(both):
    ours, theirs, queries = both
    middle = float(np.median(theirs.kneighbors(queries)[0][:, -1]))
    for radius in (None, middle):
        for x in (queries, None):
            got = ours.radius_neighbors(x, radius)
            wanted = theirs.radius_neighbors(x, radius, sort_results=True)
            assert all(part.dtype == object for part in got)
            for a, b, i, j in zip(got[0], wanted[0], got[1], wanted[1], strict=True):
                np.testing.assert_allclose(a, b, atol=1e-12)
                np.testing.assert_array_equal(i, j)
            alone = ours.radius_neighbors(x, radius, return_distance=False)
            assert all((i == j).all() for i, j in zip(alone, got[1], strict=True))
    assert sum(map(len, got[0])) > 100


def test_graphs_are_those_of_sklearn(both):
    ours, theirs, queries = both
    radius = float(np.median(theirs.kneighbors(queries)[0][:, -1]))
    for mode in ("connectivity", "distance"):
        for x in (queries, None):
            for got, wanted in (
                (ours.kneighbors_graph(x, 4, mode), theirs.kneighbors_graph(x, 4, mode)),
                (
                    ours.radius_neighbors_graph(x, radius, mode),
                    theirs.radius_neighbors_graph(x, radius, mode),
                ),
            ):
                assert got.shape == wanted.shape
                assert got.nnz == wanted.nnz
                assert got.dtype == wanted.dtype
                np.testing.assert_allclose(got.toarray(), wanted.toarray(), atol=1e-12)
    stored = NearestNeighbors(2).fit(np.ones((4, 3))).kneighbors_graph(mode="distance")
    assert stored.nnz == 8


@pytest.mark.filterwarnings("ignore")  # of the checks themselves, which plant odd estimators
@pytest.mark.parametrize("params", [{}, {"metric": "cosine"}, {"precision": "fast"}])
def test_check_estimator(params):
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    results = checks.check_estimator(NearestNeighbors(**params), on_skip=None, on_fail="raise")
    assert len(results) > 30
    assert not [r["check_name"] for r in results if r["status"] not in ("passed", "skipped")]


def test_it_is_an_estimator(rng):
    base = pytest.importorskip("sklearn.base")
    from sklearn.utils.validation import check_is_fitted

    made = NearestNeighbors(3, metric="cosine")
    assert repr(base.clone(made)) == "NearestNeighbors(metric='cosine', n_neighbors=3)"
    with pytest.raises(ValueError, match=r"\[NearestNeighbors\] kneighbors must come after fit"):
        made.kneighbors()
    x = rng.normal(size=(50, 4))
    check_is_fitted(made.fit(x))
    assert (made.n_samples_fit_, made.n_features_in_) == (50, 4)
    again = pickle.loads(pickle.dumps(made))
    same_bits(*zip(again.kneighbors(), made.kneighbors(), strict=True))
    assert not hasattr(made, "transform")


def test_dtypes_and_libraries_of_the_estimator(rng):
    torch = pytest.importorskip("torch")
    x, queries = rng.normal(size=(80, 5)), rng.normal(size=(9, 5))
    narrow = NearestNeighbors(3).fit(x.astype(np.float32))
    assert narrow.kneighbors(queries.astype(np.float32))[0].dtype == np.float32
    mixed = narrow.kneighbors(queries)  # of two precisions: the wider one
    same_bits(*zip(mixed, knn(queries, x.astype(np.float32).astype(float), k=3), strict=True))
    tensors = NearestNeighbors(3).fit(torch.from_numpy(x))
    got = tensors.kneighbors(torch.from_numpy(queries))
    assert all(isinstance(part, torch.Tensor) for part in got)
    same_bits(*((a.numpy(), b) for a, b in zip(got, knn(queries, x, k=3), strict=True)))
    assert tensors.kneighbors_graph().shape == (80, 80)
    assert len(tensors.radius_neighbors(radius=2.0)[0]) == 80
    whole = NearestNeighbors(2).fit(np.arange(6).reshape(3, 2))
    assert whole.kneighbors()[0].dtype == np.float64
    with pytest.raises(DtypeError, match=r"kneighbors\] X must be of the library and on the dev"):
        tensors.kneighbors(queries)


def test_names_of_columns(rng):
    frames = pytest.importorskip("pandas")
    frame = frames.DataFrame(rng.normal(size=(20, 2)), columns=["a", "b"])
    made = NearestNeighbors(2).fit(frame)
    assert list(made.feature_names_in_) == ["a", "b"]
    assert made.kneighbors(frame)[1][:, 0].tolist() == list(range(20))
    with pytest.raises(InvalidArgumentError, match=r"X must have the columns of fit in their ord"):
        made.kneighbors(frame[["b", "a"]])
    with pytest.warns(UserWarning, match="fitted on columns with names"):
        made.kneighbors(frame.to_numpy())
    assert not hasattr(made.fit(frame.to_numpy()), "feature_names_in_")


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda n: n.kneighbors(n_neighbors=20), ValueError, r"n_neighbors must be in 1\.\.19"),
        (lambda n: n.kneighbors(n.x, 21), ValueError, r"1\.\.20, .* got 21 \(n_samples_fit = 20\)"),
        (lambda n: n.kneighbors(n.x, 0), ValueError, r"n_neighbors must be >= 1, got 0"),
        (lambda n: n.kneighbors(n.x, 1.5), TypeError, r"n_neighbors must be an integer"),
        (lambda n: n.kneighbors(n.x[:, :2]), ValueError, "X has 2 features, but NearestNeighbors"),
        (lambda n: n.kneighbors(n.x * np.nan), ValueError, "X must be finite, got NaN in row 0"),
        (
            lambda n: n.kneighbors_graph(mode="x"),
            ValueError,
            r"kneighbors_graph\] mode must be one",
        ),
        (lambda n: n.radius_neighbors_graph(mode=""), ValueError, r"_graph\] mode must be one of"),
        (lambda n: n.radius_neighbors(radius=-1.0), ValueError, r"radius must be a number >= 0"),
        (lambda n: n.set_params(metric="l1").fit(n.x), ValueError, r"fit\] metric must be one of"),
        (lambda n: n.set_params(n_neighbors=0).fit(n.x), ValueError, r"n_neighbors must be >= 1"),
        (lambda n: n.set_params(precision="").fit(n.x), ValueError, r"precision must be one of"),
        (lambda n: n.set_params(radius="").fit(n.x), TypeError, r"radius must be a number"),
        (lambda n: n.set_params(leaf_size=3), ValueError, r"set_params\] parameter must be one of"),
        (lambda n: n.fit(n.x[:0]), ValueError, r"X must have rows, got 0 sample"),
    ],
)
def test_refusals_of_the_estimator(call, kind, text):
    class Fixed(NearestNeighbors):
        x = np.arange(60.0).reshape(20, 3)

    with pytest.raises(kind, match=text):
        call(Fixed().fit(Fixed.x))


# ---- knn_graph ---------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["directed", "union", "mutual"])
@pytest.mark.parametrize("k", [1, 6, 80])
def test_graphs(kind, metric, k, rng):
    pytest.importorskip("scipy")
    x = rng.integers(0, 3, (60, 4)).astype(float)  # duplicates, ties
    x[x.sum(axis=1) == 0] = 1  # whose cosine is as exact
    found = knn(x, k=k, metric=metric)
    edges = np.zeros((60, 60), bool)
    rows = np.nonzero(found.indices >= 0)
    edges[rows[0], found.indices[rows]] = True
    edges = {"directed": edges, "union": edges | edges.T, "mutual": edges & edges.T}[kind]
    graph = knn_graph(x, k, kind=kind, metric=metric)
    ones = knn_graph(x, k, kind=kind, metric=metric, mode="connectivity")
    np.testing.assert_array_equal(ones.toarray(), edges)
    assert graph.nnz == ones.nnz == edges.sum()
    all_pairs = knn(x, k=60, metric=metric, exclude_self=False)
    dense = np.empty((60, 60))
    np.put_along_axis(dense, all_pairs.indices, all_pairs.distances, axis=1)
    np.testing.assert_array_equal(graph.toarray(), np.where(edges, dense, 0))
    np.testing.assert_array_equal(graph.indices, np.nonzero(edges)[1])
    if kind != "directed":
        assert (graph != graph.T).nnz == 0


def test_graphs_of_few_rows_and_other_libraries(rng):
    torch = pytest.importorskip("torch")
    for kind in ("directed", "union", "mutual"):
        assert knn_graph(np.ones((0, 3)), 2, kind=kind).shape == (0, 0)
        assert knn_graph(np.ones((1, 3)), 2, kind=kind).nnz == 0
        assert knn_graph(np.ones((2, 3), np.float32), 2, kind=kind).dtype == np.float32
    x = rng.normal(size=(30, 3)).astype(np.float32)
    plain, tensor = knn_graph(x, 4), knn_graph(torch.from_numpy(x), 4)
    assert (plain != tensor).nnz == 0
    with pytest.raises(InvalidArgumentError, match=r"\[knn_graph\] kind must be one of"):
        knn_graph(x, 4, kind="both")
    with pytest.raises(InvalidArgumentError, match=r"\[knn_graph\] mode must be one of"):
        knn_graph(x, 4, mode="weights")
    with pytest.raises(InvalidArgumentError, match="k must be >= 1, got 0"):
        knn_graph(x, 0)


# ---- KnnBuilder --------------------------------------------------------------------------------


def blocks_of(n, rng):
    """Borders of blocks, of one row and of none too."""
    return np.sort([*rng.integers(0, n, 5), 1, 1, n // 2])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
def test_blocks_find_what_the_whole_does(metric, dtype, rng):
    y = (4 * rng.standard_normal((700, 9))).astype(dtype)
    y[::3] = y[:1]
    if dtype != "int8":
        y[5::50] = np.nan
    x = y[rng.permutation(700)[:80]]
    for k in (1, 10, 800):
        whole = knn(x, y, k=k, metric=metric)
        builder = KnnBuilder(x, k, metric)
        for block in np.split(y, blocks_of(700, rng)):
            builder.add_block(block)
        same_bits(*zip(builder.result(), whole, strict=True))
        order = rng.permutation(700)  # blocks of any rows, in any order
        builder = KnnBuilder(x, k, metric)
        for ids in np.split(order, blocks_of(700, rng)):
            builder.add_block(y[ids], ids)
        same_bits(*zip(builder.result(), whole, strict=True))


@pytest.mark.parametrize("metric", METRICS)
def test_builders_merge(metric, rng):
    y = rng.integers(0, 3, (500, 5)).astype(np.float32)
    x = y[:60]
    whole = knn(x, y, k=20, metric=metric)
    parts = np.split(rng.permutation(500), [100, 130, 400])
    builders = [KnnBuilder(x, 20, metric).add_block(y[ids], ids) for ids in parts]
    before = builders[1].result()
    for merged in ((0, 1, 2, 3), (3, 1, 0, 2)):
        total = KnnBuilder(x, 20, metric)
        for i in merged:
            total.merge(builders[i])
        same_bits(*zip(total.result(), whole, strict=True))
    same_bits(*zip(builders[1].result(), before, strict=True))
    first = KnnBuilder(x, 20, metric).add_block(y[:300])  # numbered from 0
    rest = KnnBuilder(x, 20, metric).add_block(y[300:], np.arange(300, 500))
    same_bits(*zip(rest.merge(first).result(), whole, strict=True))


@pytest.mark.parametrize("metric", METRICS)
def test_a_builder_leaves_a_row_itself_out(metric, rng):
    x = np.repeat(rng.standard_normal((100, 6)).astype(np.float32), 3, axis=0)
    for k in (1, 5, 299, 305):
        builder = KnnBuilder(x, k, metric, exclude_self=True)
        for block in np.split(x, [1, 90, 200]):
            builder.add_block(block)
        same_bits(*zip(builder.result(), knn(x, k=k, metric=metric), strict=True))


def test_a_builder_of_torch(rng):
    torch = pytest.importorskip("torch")
    y = torch.from_numpy(rng.standard_normal((200, 4)).astype(np.float32))
    ids = torch.from_numpy(rng.permutation(200))
    builder = KnnBuilder(y[:9], 3).add_block(y[ids[:50]], ids[:50]).add_block(y[ids[50:]], ids[50:])
    got, wanted = builder.result(), knn(y[:9], y, k=3)
    assert isinstance(got, KNN)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    empty = KnnBuilder(y[:2], 2).result()
    assert empty.indices.tolist() == [[-1, -1]] * 2
    assert torch.isinf(empty.distances).all()


def test_refusals_of_the_builder():
    x = np.ones((4, 3))
    builder = KnnBuilder(x, 2)
    for call, kind, text in (
        (lambda: KnnBuilder(x, 0), InvalidArgumentError, r"\[KnnBuilder\] k must be >= 1, got 0"),
        (lambda: KnnBuilder(x[0], 1), InvalidArgumentError, r"\[KnnBuilder\] x must have 2 axes"),
        (lambda: KnnBuilder([1], 1), DtypeError, r"\[KnnBuilder\] x must be an array"),
        (lambda: KnnBuilder(x, 1, "ip"), InvalidArgumentError, "metric must be one of"),
        (lambda: builder.add_block(x[:, :2]), InvalidArgumentError, "y must have d = 3 columns"),
        (lambda: builder.add_block(x[0]), InvalidArgumentError, r"add_block\] y must have 2 axes"),
        (lambda: builder.add_block(x, np.arange(3)), InvalidArgumentError, r"int64 of shape \(4,"),
        (
            lambda: builder.add_block(x, np.arange(4.0)),
            InvalidArgumentError,
            "got float64 of shape",
        ),
        (lambda: builder.add_block(x, np.arange(4) - 1), InvalidArgumentError, "ids must be >= 0"),
        (lambda: builder.add_block(x, np.array([3, 1, 3, 0])), InvalidArgumentError, "distinct"),
        (lambda: builder.merge(KnnBuilder(x, 3)), InvalidArgumentError, "of the same x, k, metric"),
        (lambda: builder.merge(None), InvalidArgumentError, "other must be a KnnBuilder"),
    ):
        with pytest.raises(kind, match=text):
            call()
    builder.add_block(x)
    with pytest.raises(InvalidArgumentError, match="two builders that numbered their rows from 0"):
        builder.merge(KnnBuilder(x, 2).add_block(x))
    assert repr(builder) == (
        "KnnBuilder(x of shape (4, 3), k=2, metric='euclidean', exclude_self=False; "
        "4 rows searched)"
    )


def test_the_oracle_knows_its_own_neighbours():
    x = np.array([[0.0], [1.0], [3.0]])
    distances = restricted(distances_of(x, x, "euclidean"), exclude_self=True)
    assert nearest(distances, 1)[1].tolist() == [[1], [0], [1]]
