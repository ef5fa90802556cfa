"""Measures of sparse autoencoders: definitions, merging, and the forms of other libraries."""

import itertools

import numpy as np
import pytest
from subspan import RaggedCode, SparseCode, topk_encode
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.sae.metrics import (
    CodeStatistics,
    absorption,
    explained_variance,
    kl_recovered,
    loss_recovered,
)

RNG = np.random.default_rng(5)


def dense(code, n):
    return code.to_dense(n).reshape(-1, n)


def problem(rows=200, d=12, n=30, k=4, mean=3.0, dtype=np.float64):
    x = (RNG.normal(size=(rows, d)) + mean).astype(dtype)
    w = RNG.normal(size=(d, n)).astype(dtype) / d**0.5
    code = topk_encode(x, w, k=k, activation="identity")
    x_hat = (x + 0.5 * RNG.normal(size=x.shape)).astype(dtype)
    return x, code, x_hat


def by_definition(x, f, x_hat, window=None, fires_above=0.0):
    """Every measure from dense codes, in float64."""
    x, f, x_hat = (np.asarray(each, np.float64) for each in (x, f, x_hat))
    e = x - x_hat
    size, size_hat = np.linalg.norm(x, axis=1), np.linalg.norm(x_hat, axis=1)
    fires = np.abs(f) > fires_above
    last = fires[-window:] if window else fires
    square = (x**2).sum(axis=1).mean()
    return {
        "explained_variance": 1 - (e**2).sum() / ((x - x.mean(axis=0)) ** 2).sum(),
        "residual_variance": 1 - e.var(axis=0).sum() / x.var(axis=0).sum(),
        "saelens_compat": 1
        - (e**2).sum(axis=1).mean() / (square - ((x**2).mean(axis=0).mean()) ** 2),
        "saelens_legacy": (1 - (e**2).sum(axis=1) / ((x - x.mean(axis=0)) ** 2).sum(axis=1)).mean(),
        "mse": (e**2).sum(axis=1).mean(),
        "nmse": (e**2).sum() / (x**2).sum(),
        "openai_nmse": ((e**2).mean(axis=1) / (x**2).mean(axis=1)).mean(),
        "cosine": ((x * x_hat).sum(axis=1) / (size * size_hat)).mean(),
        "l2_ratio": (size_hat / size).mean(),
        "relative_bias": (x_hat**2).sum(axis=1).mean() / (x * x_hat).sum(axis=1).mean(),
        "l0": (f != 0).sum(axis=1).mean(),
        "l1": np.abs(f).sum(axis=1).mean(),
        "dead_fraction": (~last.any(axis=0)).mean(),
        "density": fires.mean(axis=0),
        "mean_activation": (np.abs(f) * fires).sum(axis=0) / np.maximum(fires.sum(axis=0), 1),
        "max_activation": np.abs(f).max(axis=0),
    }


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-12)])
@pytest.mark.parametrize(("window", "fires_above"), [(None, 0.0), (20, 0.0), (7, 2.0)])
def test_measures_are_their_definitions(dtype, tolerance, window, fires_above):
    x, code, x_hat = problem(dtype=dtype)
    stats = CodeStatistics(30, fires_above=fires_above).update(x, code, x_hat)
    found = stats.results(window=window)
    wanted = by_definition(x, dense(code, 30), x_hat, window, fires_above)
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(found, name), value, tolerance, 1e-14, err_msg=name)
    assert set(found.scalars()) >= {name for name, value in wanted.items() if np.ndim(value) == 0}
    assert found.dead_window == (window or 200)
    assert found.fires_above == fires_above


@pytest.mark.parametrize("cuts", [[1], [50, 51], [10, 120, 199]])
def test_batches_and_merging_change_nothing(cuts):
    x, code, x_hat = problem()
    parts = [(x[s], SparseCode(code.values[s], code.indices[s]), x_hat[s]) for s in slices(cuts)]
    whole = CodeStatistics(30).update(x, code, x_hat).results(window=30)
    one = CodeStatistics(30)
    for part in parts:
        one.update(*part)
    several = [CodeStatistics(30).update(*part) for part in parts]
    last = several[-1].merge(CodeStatistics(30))  # nothing comes after
    for each in reversed(several[:-1]):
        last = each.merge(last)
    for found in (one.results(window=30), last.results(window=30)):
        for name in vars(whole):
            if name != "saelens_legacy":  # which is defined by batches
                np.testing.assert_allclose(
                    getattr(found, name), getattr(whole, name), 1e-12, err_msg=name
                )


def slices(cuts):
    ends = [0, *cuts, 200]
    return [slice(a, b) for a, b in itertools.pairwise(ends)]


def test_an_empty_update_is_nothing():
    x, code, x_hat = problem()
    nothing = SparseCode(code.values[:0], code.indices[:0])
    stats = CodeStatistics(30).update(x[:0], nothing, x_hat[:0]).update(x, code, x_hat)
    assert (
        stats.results().scalars() == CodeStatistics(30).update(x, code, x_hat).results().scalars()
    )


def test_ragged_codes_and_repeated_indices():
    """Matching pursuit may pick a latent twice: it is one entry, and what cancels is none."""
    x = RNG.normal(size=(3, 4))
    twice = SparseCode(
        np.array([[1.0, 2.0, 3.0], [1.0, -1.0, 0.0], [0.5, 0.5, 4.0]]),
        np.array([[2, 0, 2], [1, 1, 4], [4, 3, 4]]),
    )
    ragged = RaggedCode(
        np.array([2.0, 4.0, 0.5, 4.5]), np.array([0, 2, 3, 4]), np.array([0, 2, 2, 4])
    )
    one, other = (CodeStatistics(6).update(x, code, x).results() for code in (twice, ragged))
    assert one.scalars() == other.scalars()
    assert one.l0 == 4 / 3
    assert one.l1 == 11 / 3
    assert one.dead_fraction == 2 / 6
    np.testing.assert_array_equal(one.max_activation, [2, 0, 4, 0.5, 4.5, 0])


def test_torch_and_leading_axes():
    torch = pytest.importorskip("torch")
    x, code, x_hat = problem(dtype=np.float32)
    wanted = CodeStatistics(30).update(x, code, x_hat).results()
    shape = (10, 20, -1)
    tensors = [torch.from_numpy(each).reshape(shape) for each in (x, *code, x_hat)]
    tensors[1].requires_grad_(True)
    found = CodeStatistics(30).update(tensors[0], SparseCode(*tensors[1:3]), tensors[3]).results()
    assert found.scalars() == wanted.scalars()


def test_a_mean_far_from_zero_does_not_cancel():
    x = (RNG.normal(size=(5000, 8)) + 1e4).astype(np.float32)
    x_hat = x + np.float32(0.5) * RNG.normal(size=x.shape).astype(np.float32)
    wide, wide_hat = x.astype(np.float64), x_hat.astype(np.float64)
    truth = 1 - ((wide - wide_hat) ** 2).sum() / ((wide - wide.mean(axis=0)) ** 2).sum()
    assert abs(explained_variance(x, x_hat) - truth) < 1e-10


def test_forms_of_explained_variance():
    """The mean explains nothing, and a constant error is one; other forms say otherwise."""
    x = RNG.normal(size=(8000, 64)) + 3
    x_hat = x + 0.5 * RNG.normal(size=x.shape)
    assert abs(explained_variance(x, x_hat) - 0.75) < 0.01
    assert abs(explained_variance(x, x_hat, form="saelens_compat") - 0.970) < 0.002
    mean = np.broadcast_to(x.mean(axis=0), x.shape)
    assert abs(explained_variance(x, mean)) < 1e-9
    assert explained_variance(x, mean, form="saelens_compat") > 0.87
    assert explained_variance(x, x + 1, form="residual_variance") > 1 - 1e-9
    assert abs(explained_variance(x, x + 1)) < 0.01
    two, two_hat = np.array([[2.0, 0.0], [0.0, 4.0]]), np.array([[2.0, 1.0], [0.0, 3.0]])
    assert explained_variance(two, two_hat) == pytest.approx(0.8, abs=1e-15)


def test_what_is_zero_over_zero_is_nan():
    x = np.full((3, 2), 4.0)
    assert np.isnan(explained_variance(x, x))
    zero = np.zeros((3, 2))
    none = RaggedCode(np.zeros(0), np.zeros(0, np.int64), np.zeros(4, np.int64))
    found = CodeStatistics(5).update(zero, none, zero).results()
    assert found.dead_fraction == 1
    assert found.cosine == found.l2_ratio == found.l0 == 0
    for name in ("explained_variance", "nmse", "openai_nmse", "relative_bias", "saelens_legacy"):
        assert np.isnan(getattr(found, name)), name


def test_shrinkage_shows_in_the_relative_bias():
    x, code, _ = problem()
    assert CodeStatistics(30).update(x, code, x).results().relative_bias == pytest.approx(1)
    assert CodeStatistics(30).update(x, code, 0.7 * x).results().relative_bias == pytest.approx(0.7)


def test_density_histogram():
    x, code, x_hat = problem(rows=1000, n=30, k=3)
    indices = np.where(code.indices == 7, 8, code.indices)
    found = CodeStatistics(30).update(x, SparseCode(code.values, indices), x_hat).results()
    counts, edges = found.density_histogram(20)
    assert counts.sum() == 30
    assert counts[0] == round(found.dead_fraction * 30) >= 1
    assert (edges[0], edges[-1], len(edges)) == (-10, 0, 21)
    assert found.denser_than(0.01) == (found.density > 0.01).mean()
    counts, _ = found.density_histogram([-3.0, -1.0, 0.0], floor=1e-2)
    assert counts.sum() == 30


def test_losses():
    assert loss_recovered(3.0, 3.5, 8.0) == pytest.approx(0.9)
    assert loss_recovered(3.0, 9.0, 8.0) == pytest.approx(-0.2)
    assert np.isnan(loss_recovered(3.0, 3.0, 3.0))
    assert kl_recovered(0.5, 5.0) == pytest.approx(0.9)
    assert np.isnan(kl_recovered(0.0, 0.0))


# ---- absorption --------------------------------------------------------------------------------


def planted(rows=400, d=16, share=0.5):
    """A parent in half of the rows, and a child that comes with it in some of those."""
    directions = np.linalg.qr(RNG.normal(size=(d, d)))[0]
    parent, child, other = directions[:3]
    has = RNG.random(rows) < 0.5
    special = has & (RNG.random(rows) < share)
    x = has[:, None] * parent + special[:, None] * child + 0.3 * other
    return x, has, special, parent, child, other


def codes_of(active, w_dec, x):
    """The code of the rows by least squares over the active latents of each row."""
    f = np.zeros(active.shape)
    for row, latents in enumerate(active):
        at = np.flatnonzero(latents)
        f[row, at] = np.linalg.lstsq(w_dec[at].T, x[row], rcond=None)[0]
    rows, latents = np.nonzero(f)
    offsets = np.searchsorted(rows, np.arange(len(f) + 1))
    return RaggedCode(f[rows, latents], latents, offsets)


def test_absorption_of_a_planted_hierarchy():
    x, has, special, parent, child, other = planted()
    both = (parent + child) / 2**0.5
    w_dec = np.stack([parent, both, other])
    active = np.stack([has & ~special, special, np.ones(len(x), bool)], axis=1)
    found = absorption(x, codes_of(active, w_dec, x), w_dec, probe=parent, main=[0], present=has)
    np.testing.assert_array_equal(found.full, special)
    np.testing.assert_allclose(found.fraction, special, atol=1e-12)
    assert found.full_rate == pytest.approx(special.sum() / has.sum())

    # Latents that are the concepts themselves absorb nothing.
    w_dec = np.stack([parent, child, other])
    active = np.stack([has, special, np.ones(len(x), bool)], axis=1)
    code = codes_of(active, w_dec, x)
    found = absorption(x, code, w_dec, probe=parent, main=[0], present=has)
    assert found.full_rate == found.mean_fraction == 0


def test_absorption_in_part_and_its_conditions():
    parent, child = np.eye(2)
    w_dec = np.array([parent, [0.6, 0.8], [0.05, 0.99875]])
    x = np.tile(parent + child, (4, 1))
    values = np.array([[0.4, 1.0], [0.9, 1.0], [0.0, 0.5], [0.0, 1.0]])
    code = SparseCode(values, np.array([[0, 1], [0, 1], [0, 1], [0, 2]]))
    call = {"probe": 5 * parent, "main": np.array([0]), "present": np.ones(4, bool)}
    found = absorption(x, code, w_dec, **call)
    # 0: main carries 0.4, the other 0.6: 0.6 / 1. 1: main 0.9, of 0.6 only 0.1 is missing.
    # 2: the other carries 0.3 < 0.4. 3: it points elsewhere.
    np.testing.assert_allclose(found.fraction, [0.6, 0.1, 0, 0], atol=1e-12)
    assert not found.full.any()
    assert found.mean_fraction == pytest.approx(0.7 / 4)
    strict = absorption(x, code, w_dec, **call, min_share=0.25)
    np.testing.assert_array_equal(strict.full, [False, False, True, False])
    # Lengths of the rows of the dictionary do not matter.
    longer = SparseCode(values / 3, code.indices)
    again = absorption(x, longer, 3 * w_dec, **call)
    np.testing.assert_allclose(again.fraction, found.fraction, atol=1e-12)
    none = absorption(x, code, w_dec, **call | {"present": np.zeros(4, bool)})
    assert np.isnan(none.full_rate)
    assert np.isnan(none.mean_fraction)


def test_only_the_top_absorbers_count():
    w_dec = np.tile([1.0, 0.0], (6, 1))
    code = SparseCode(np.full((1, 5), 0.2), np.arange(1, 6)[None])
    x = np.array([[1.0, 0.0]])
    call = {"probe": np.array([1.0, 0.0]), "main": [0], "present": [True]}
    call["present"] = np.array([True])
    assert absorption(x, code, w_dec, **call).mean_fraction == 1  # 3 x 0.2 >= 0.4
    assert absorption(x, code, w_dec, **call, top=1).mean_fraction == 0
    assert absorption(x, code, w_dec, **call).full_rate == 0  # the largest has 0.2


# ---- refusals ----------------------------------------------------------------------------------


def test_refusals():
    x, code, x_hat = problem()
    stats = CodeStatistics(30)
    bad = x.copy()
    bad[3, 2] = np.nan
    for arguments, error, text in [
        ((x[:-1], code, x_hat), InvalidArgumentError, "x must have 200 rows"),
        ((x, code, x_hat[:-1]), InvalidArgumentError, "x_hat must have 200 rows"),
        ((x, code, x_hat[:, :-1]), InvalidArgumentError, "x_hat must have the shape of x"),
        ((bad, code, x_hat), InvalidArgumentError, "x must be finite"),
        ((x, code, bad), InvalidArgumentError, "x_hat must be finite"),
        ((x, dense(code, 30), x_hat), DtypeError, "SparseCode or RaggedCode, got ndarray"),
        ((x, SparseCode(code.values * np.inf, code.indices), x_hat), ValueError, "finite"),
        ((x, SparseCode(code.values, code.indices + 30), x_hat), ValueError, r"0\.\.29"),
        ((x.tolist(), code, x_hat), DtypeError, "x must be an array"),
    ]:
        with pytest.raises(error, match=text):
            stats.update(*arguments)
    assert stats.n_rows == 0
    with pytest.raises(InvalidArgumentError, match="got 0 rows"):
        stats.results()
    stats.update(x, code, x_hat)
    for other in (CodeStatistics(31), CodeStatistics(30, fires_above=1.0)):
        with pytest.raises(InvalidArgumentError, match="n_latents and fires_above"):
            stats.merge(other)
    narrow = CodeStatistics(30).update(x[:, :3], code, x_hat[:, :3])
    with pytest.raises(InvalidArgumentError, match="of width 12, got 3"):
        stats.merge(narrow)
    with pytest.raises(InvalidArgumentError, match="window must be >= 1"):
        stats.results(window=0)
    with pytest.raises(InvalidArgumentError, match="n_latents must be >= 1"):
        CodeStatistics(0)
    with pytest.raises(InvalidArgumentError, match="form must be one of"):
        explained_variance(x, x_hat, form="r2")
    with pytest.raises(InvalidArgumentError, match="must have rows"):
        explained_variance(x[:0], x_hat[:0])
    with pytest.raises(InvalidArgumentError, match="clean must be in"):
        loss_recovered(np.nan, 1.0, 2.0)
    with pytest.raises(InvalidArgumentError, match="spliced must be in"):
        kl_recovered(-1.0, 2.0)
    w_dec = RNG.normal(size=(30, 12))
    good = {"probe": w_dec[0], "main": [0], "present": np.ones(200, bool)}
    for change, text in [
        ({"probe": np.zeros(12)}, "not zero"),
        ({"probe": np.ones(5)}, "d = 12 columns"),
        ({"main": [30]}, r"0\.\.29"),
        ({"main": [0.5]}, "indices of latents"),
        ({"present": np.ones(3, bool)}, r"shape \(200,\)"),
        ({"top": 0}, "top must be >= 1"),
    ]:
        with pytest.raises(InvalidArgumentError, match=text):
            absorption(x, code, w_dec, **good | change)
