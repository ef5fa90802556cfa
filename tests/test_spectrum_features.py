"""subspan.spectrum from features: LiDAR, active fraction, layers."""

import numpy as np
import pytest
from subspan import Moments, spectrum
from subspan.errors import DtypeError, InvalidArgumentError


def views(n=60, q=6, d=10, *, rank=10, seed=0, scale=3.0):
    """Return rows and classes: means in a space of `rank` dimensions, unit noise within."""
    rng = np.random.default_rng(seed)
    means = scale * rng.normal(size=(n, rank)) @ np.linalg.qr(rng.normal(size=(d, rank)))[0].T
    groups = np.repeat(np.arange(n), q)
    return means[groups] + rng.normal(size=(n * q, d)), groups


def slow_lidar(x, groups, delta=1e-4, eps=1e-8):
    """Both scatters formed, the product's eigenvalues."""
    names = np.unique(groups)
    means = np.array([x[groups == g].mean(axis=0) for g in names])
    apart = x - means[np.searchsorted(names, groups)]
    within = apart.T @ apart / (len(x) - len(names)) + delta * np.eye(x.shape[1])
    between = np.cov(means.T).reshape(within.shape)
    values = np.sort(np.linalg.eigvals(np.linalg.solve(within, between)).real)[::-1]
    p = np.maximum(values, 0) / np.maximum(values, 0).sum() + eps
    return np.exp(-np.sum(p * np.log(p)))


# ---- LiDAR -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 6, 10), (5, 9, 12), (2, 4, 3), (8, 20, 1)])
@pytest.mark.parametrize("delta", [1e-4, 0.0, 2.0])
def test_lidar_is_its_definition(shape, delta):
    n, q, d = shape
    x, groups = views(n, q, d, rank=min(d, 3))
    got = spectrum.lidar(x, groups, delta=delta)
    assert got.shape == ()
    assert got == pytest.approx(slow_lidar(x, groups, delta), rel=1e-9)
    assert 1 - 1e-6 <= got <= min(d, n - 1) + 1e-5
    assert spectrum.lidar(x, groups, delta=delta, eps=0.0) == pytest.approx(
        slow_lidar(x, groups, delta, 1e-300), rel=1e-9
    )


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_equal_spread_in_r_directions_gives_r(rank):
    means = np.concatenate([np.eye(8)[:rank], -np.eye(8)[:rank]]) * 4.0
    within = np.concatenate([np.eye(8), -np.eye(8)])  # isotropic, exactly
    x = (means[:, None] + within).reshape(-1, 8)
    groups = np.repeat(np.arange(2 * rank), 16)
    assert spectrum.lidar(x, groups) == pytest.approx(rank, rel=1e-5)
    assert spectrum.lidar(np.tile(within, (3, 1)), np.repeat([0, 1, 2], 16)) == 0.0


def test_lidar_does_not_see_the_basis():
    x, groups = views(rank=4)
    want = spectrum.lidar(x, groups)
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    assert spectrum.lidar(x @ rotation + 30.0, groups) == pytest.approx(want, rel=1e-9)
    mix = rng.normal(size=(10, 10)) + 3 * np.eye(10)
    exact = spectrum.lidar(x, groups, delta=0.0)
    assert spectrum.lidar(x @ mix, groups, delta=0.0) == pytest.approx(exact, rel=1e-8)
    order = rng.permutation(len(x))
    names = np.array([f"image {g}" for g in groups])
    assert spectrum.lidar(x[order], names[order]) == pytest.approx(want, rel=1e-9)
    assert spectrum.lidar(1e3 * x, groups, delta=1e2) == pytest.approx(
        spectrum.lidar(x, groups, delta=1e-4), rel=1e-9
    )


def test_lidar_of_batches_states_and_classes_of_other_sizes():
    x, groups = views()
    batch = np.stack([x, x @ np.diag(np.arange(1.0, 11)), x**3]).reshape(3, 1, *x.shape)
    got = spectrum.lidar(batch, groups)
    assert got.shape == (3, 1)
    for index in np.ndindex(3, 1):
        assert got[index] == pytest.approx(spectrum.lidar(batch[index], groups), rel=1e-12)
    states = [Moments(precision="float64").update(x, groups=groups) for x in batch[:, 0]]
    np.testing.assert_allclose(spectrum.lidar(states), got[:, 0], rtol=1e-9)
    assert spectrum.lidar(states[0]).shape == ()
    parts = Moments(precision="float64").update(x[:100], groups=groups[:100])
    parts.merge(Moments(precision="float64").update(x[100:], groups=groups[100:]))
    assert spectrum.lidar(parts) == pytest.approx(got[0, 0], rel=1e-9)
    uneven = np.sort(np.random.default_rng(2).integers(0, 40, len(x)))
    assert spectrum.lidar(x, uneven) == pytest.approx(slow_lidar(x, uneven), rel=1e-9)
    alone = np.minimum(groups, 30)  # one class of many rows, and others
    assert spectrum.lidar(x, alone) == pytest.approx(slow_lidar(x, alone), rel=1e-9)


def test_lidar_of_torch():
    torch = pytest.importorskip("torch")
    x, groups = views()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        got = spectrum.lidar(torch.from_numpy(x).to(dtype), torch.from_numpy(groups))
        assert got.dtype == np.float64
        assert got == pytest.approx(float(spectrum.lidar(x, groups)), rel=tolerance)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"groups": None}, InvalidArgumentError, "groups must name the class of each row"),
        ({"groups": np.zeros(5)}, InvalidArgumentError, r"groups must have shape \(360,\)"),
        ({"groups": np.zeros(360)}, InvalidArgumentError, "at least 2 classes, got 1"),
        ({"groups": np.arange(360)}, InvalidArgumentError, "classes of 2 or more rows, got 360"),
        ({"delta": -1.0}, InvalidArgumentError, "delta must be in"),
        ({"eps": "0"}, DtypeError, "eps must be a number"),
        ({"x": np.ones(3)}, InvalidArgumentError, "2 or more axes"),
        ({"x": [[1.0, 2.0]]}, DtypeError, "x must be an array or Moments, got list"),
        ({"x": np.full((360, 2), np.nan)}, InvalidArgumentError, "finite, got NaN"),
        ({"x": np.ones((360, 2)), "delta": 0.0}, InvalidArgumentError, "positive definite, got 0"),
        ({"x": Moments()}, DtypeError, "groups must be None for Moments"),
        ({"x": Moments(), "groups": None}, InvalidArgumentError, "must have had groups"),
    ],
)
def test_lidar_refuses(arguments, error, text):
    x, groups = views()
    with pytest.raises(error, match=text):
        spectrum.lidar(**{"x": x, "groups": groups, **arguments})


# ---- active fraction -------------------------------------------------------------------------


def test_active_fraction_is_the_dimension_over_the_width():
    s = np.random.default_rng(0).lognormal(size=(3, 4, 20))
    want = spectrum.dimension_for(s, 0.99) / 20
    np.testing.assert_array_equal(spectrum.active_fraction(s), want)
    np.testing.assert_array_equal(spectrum.active_fraction(s, width=80), want / 4)
    np.testing.assert_array_equal(spectrum.active_fraction(s**2, kind="variance"), want)
    x = np.random.default_rng(1).normal(size=(200, 5)) @ np.ones((5, 50)).cumsum(axis=0)
    x += np.random.default_rng(2).normal(size=(200, 5)) @ np.eye(5, 50)
    assert spectrum.active_fraction(np.linalg.svd(x)[1], 1.0 - 1e-12) == 6 / 50  # rank-6 data
    assert spectrum.active_fraction(np.ones(10), 0.5) == 0.5
    assert spectrum.active_fraction(np.zeros(10)) == 0.0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"share": 0.0}, InvalidArgumentError),
        ({"share": 1.1}, InvalidArgumentError),
        ({"width": 2}, InvalidArgumentError),
        ({"width": 3.0}, DtypeError),
        ({"s": [np.nan]}, InvalidArgumentError),
    ],
)
def test_active_fraction_refuses(arguments, error):
    with pytest.raises(error, match=r"\[active_fraction\]"):
        spectrum.active_fraction(**{"s": np.ones(3), **arguments})


# ---- layers ----------------------------------------------------------------------------------


def test_layers_of_rows_and_states_of_other_widths():
    rng = np.random.default_rng(0)
    rows = {
        "embed": rng.normal(size=(300, 8)),
        "0": (rng.normal(size=(300, 3)) @ rng.normal(size=(3, 12)) + 100.0).astype(np.float32),
        "1": rng.normal(size=(50, 20)) * np.logspace(0, -3, 20),
    }
    found = spectrum.by_layer({**rows, "1": Moments().update(rows["1"])}, shares=(0.5,), tail=1)
    assert found.names == ("embed", "0", "1")
    assert found.widths.tolist() == [8, 12, 20]
    assert found.rows.tolist() == [300, 300, 50]
    for i, x in enumerate(rows.values()):
        values = np.linalg.eigvalsh(np.cov(x.T.astype(float)))[::-1]
        np.testing.assert_allclose(found.spectra[i], values, atol=1e-12 * values[0])
        alone = spectrum.stats(found.spectra[i], kind="variance", shares=(0.5,), tail=1)
        for all_layers, one in zip(found.stats, alone, strict=True):
            np.testing.assert_array_equal(all_layers[i], one)
        assert found.active_fraction[i] == alone.dim_99 / x.shape[1]
    assert found.stats.dim_99[1] <= 3
    assert found.stats.dimensions.shape == (3, 1)


def test_layers_not_centred_are_those_of_rankme():
    x = np.random.default_rng(0).normal(size=(200, 6)) + 4.0
    raw = spectrum.by_layer({"a": x}, centred=False)
    want = spectrum.rankme(np.linalg.svd(x)[1])
    assert raw.stats.rankme[0] == pytest.approx(float(want), rel=1e-9)
    assert raw.stats.rankme[0] < spectrum.by_layer({"a": x}).stats.rankme[0]
    single = spectrum.by_layer({"a": x[:1]}, centred=False)
    assert single.stats.dim_99.tolist() == [1]


def test_layers_of_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(100, 6))
    want = spectrum.by_layer({"a": x}).stats.effective_rank
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        got = spectrum.by_layer({"a": torch.from_numpy(x).to(dtype)}).stats.effective_rank
        np.testing.assert_allclose(got, want, rtol=1e-2)


@pytest.mark.parametrize(
    ("layers", "options", "error", "text"),
    [
        ([np.ones((3, 2))], {}, DtypeError, "layers must be a mapping"),
        ({}, {}, InvalidArgumentError, "at least one layer"),
        ({"a": [[1.0]]}, {}, DtypeError, "layer 'a' must be a Moments or an array, got list"),
        ({"a": np.ones((1, 2))}, {}, InvalidArgumentError, "'a' must have at least 2 rows, got 1"),
        ({"a": Moments()}, {}, InvalidArgumentError, "at least 2 rows, got 0"),
        ({"a": np.ones(3)}, {}, InvalidArgumentError, "by_layer: a. X must be 2-D"),
        ({"a": np.full((3, 2), np.inf)}, {}, InvalidArgumentError, "by_layer: a. X must be finite"),
        ({"a": np.eye(3)}, {"centred": 1}, DtypeError, "centred must be a bool"),
        ({"a": np.eye(3)}, {"shares": (2.0,)}, InvalidArgumentError, "share must be"),
        ({"a": np.eye(3)}, {"tail": -1}, InvalidArgumentError, "tail must be"),
    ],
)
def test_layers_refused(layers, options, error, text):
    with pytest.raises(error, match=text):
        spectrum.by_layer(layers, **options)
