"""Factors led by float32: as good as float64's where they are used, and known where not."""

import numpy as np
import pytest
import subspan
from subspan.compression import Dense, whitened_svd
from subspan.compression._decompose import leading
from subspan.compression.storage import useful_rank
from subspan.errors import InvalidArgumentError

SHAPES = [(40, 72), (72, 40), (56, 56), (24, 150), (150, 24)]


def problem(rng, m, n, count=3, spread=1.5, rows=300, shared=False):
    w = rng.normal(size=(count, m, n)).astype(np.float32)
    mix = rng.normal(size=(n, n)) * 10.0 ** -np.linspace(0, spread, n)
    x = rng.normal(size=(1 if shared else count, rows, n)) @ mix
    return w, x.mT @ x


def exact_tails(w, g):
    """Squared errors of the best of every rank, from singular values in float64."""
    values, vectors = np.linalg.eigh(g)
    root = vectors * np.sqrt(np.maximum(values, 0))[..., None, :]
    s = np.linalg.svd(w.astype(np.float64) @ root, compute_uv=False)
    sums = np.cumsum(np.square(s)[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, 0 * sums[..., :1]], axis=-1)


def output_error(w, made, g):
    d = w.astype(np.float64) - made
    return np.sqrt(np.sum((d @ g) * d, axis=(-2, -1)))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_errors_are_the_best_to_a_thousandth(rng, m, n, shared):
    w, g = problem(rng, m, n, shared=shared)
    most = useful_rank(m, n)
    pairs, good = leading(w, g if not shared else g[:1], most)
    assert good.all()
    assert pairs.left.dtype == pairs.right.dtype == np.float32
    found = whitened_svd(w, g[0] if shared else g, precision="auto")
    assert found.left.shape == (3, m, most)
    assert found.right.shape == (3, most, n)
    assert found.values.shape == (3, min(m, n))
    assert np.array_equal(found.left, pairs.left)  # the same as alone
    best = np.sqrt(exact_tails(w, g))
    assert np.allclose(np.sqrt(found.tails)[:, : most + 1], best[:, : most + 1], rtol=1e-3)
    for r in (1, most // 2, most):
        made = found.left[..., :r].astype(np.float64) @ found.right[:, :r]
        assert (output_error(w, made, g) <= best[:, r] * 1.001).all()
        assert np.allclose(output_error(w, made, g), np.sqrt(found.tails[:, r]), rtol=2e-3)
    one = whitened_svd(w[1], g[0] if shared else g[1], precision="auto")
    assert np.array_equal(one.left, found.left[1])  # bits do not depend on the stack


@pytest.mark.parametrize(("m", "n"), [(40, 72), (72, 40)])
def test_what_float32_cannot_hold_is_float64(rng, m, n):
    w, g = problem(rng, m, n, spread=8.0)
    _, good = leading(w, g, 20)
    assert not good.any()
    found = whitened_svd(w, g, precision="auto", rank=20)
    exact = whitened_svd(w, g, rank=20)
    assert np.array_equal(found.values, exact.values)
    assert np.array_equal(found.left, exact.left)
    assert np.allclose(np.sqrt(exact.tails)[:, :15], np.sqrt(exact_tails(w, g))[:, :15], rtol=1e-6)
    # only those of a stack that need it
    easy, h = problem(rng, m, n)
    both = whitened_svd(
        np.concatenate([w, easy]), np.concatenate([g, h]), precision="auto", rank=20
    )
    assert np.array_equal(both.left[:3], exact.left)
    assert np.array_equal(both.left[3:], leading(easy, h, 20)[0].left)


def test_the_change_is_measured_and_not_assumed(rng):
    """Weights that cancel the loudest direction: rounding is large beside what is left."""
    w, g = problem(rng, 30, 60, spread=0.0)
    loud = rng.normal(size=60)
    loud /= np.linalg.norm(loud)
    w = (w - (w @ loud)[..., None] * loud).astype(np.float32)
    assert leading(w, g, 12)[1].all()
    assert not leading(w, g + 1e11 * np.outer(loud, loud), 12)[1].any()


@pytest.mark.parametrize(("m", "n"), [(40, 72), (72, 40)])
def test_scales_do_not_matter(rng, m, n):
    w, g = problem(rng, m, n)
    plain = whitened_svd(w, g, precision="auto")
    for a, b in ((2.0**-20, 2.0**60), (2.0**12, 2.0**-200)):
        found = whitened_svd(np.float32(a) * w, b * g, precision="auto")
        assert np.array_equal(found.left, plain.left)
        assert np.allclose(found.values, plain.values * a * np.sqrt(b), rtol=1e-12)
    for size in (1e30, 1e-30):  # squares that float32 has no numbers for
        big = np.float32(size) * w
        found = whitened_svd(big, g, precision="auto", rank=9)
        best = np.sqrt(exact_tails(big, g))
        assert np.allclose(np.sqrt(found.tails)[:, :10], best[:, :10], rtol=1e-6)


@pytest.mark.parametrize(("m", "n"), [(40, 72), (72, 40), (30, 30)])
@pytest.mark.parametrize("rows", [0, 1, 12, 25])
def test_singular_grams_never_fail(rng, m, n, rows):
    w, g = problem(rng, m, n, rows=rows)
    found = whitened_svd(w, g, precision="auto", rank=12)
    made = found.left.astype(np.float64) @ found.right
    best = np.sqrt(exact_tails(w, g))
    assert np.isfinite(made).all()
    assert (output_error(w, made, g) <= best[:, 12] * 1.001 + 1e-5 * best[:, 0]).all()


def test_affine_and_moments(rng):
    w, x = rng.normal(size=(20, 48)).astype(np.float32), rng.normal(size=(400, 48)) + 3
    moments = subspan.Moments().update(x)
    a, b = (whitened_svd(w, moments, affine=True, precision=p).cut(rank=9)
            for p in ("auto", "float64"))  # fmt: skip
    assert a.error == pytest.approx(b.error, rel=1e-3)
    rest = x @ (w - a.to_dense()).T - a.bias
    assert np.linalg.norm(rest) == pytest.approx(a.error * np.sqrt(400), rel=1e-3)
    assert np.allclose(rest.mean(0), 0, atol=1e-4)


def test_float64_weights_and_weighted_outputs_stay_in_float64(rng):
    w, g = problem(rng, 20, 36)
    wide = w.astype(np.float64)
    a, b = (whitened_svd(wide, g, rank=9, precision=p) for p in ("auto", "float64"))
    assert np.array_equal(a.left, b.left)
    for options in ({"outputs": np.diag(np.arange(1.0, 21))}, {"ridge": 1e-3}):
        a, b = (whitened_svd(w, g, rank=9, precision=p, **options) for p in ("auto", "float64"))
        assert np.array_equal(a.left, b.left)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_torch_and_half(rng, dtype):
    torch = pytest.importorskip("torch")
    w, g = problem(rng, 24, 40)
    made = torch.from_numpy(w).to(getattr(torch, dtype))
    found = whitened_svd(made, torch.from_numpy(g), precision="auto", rank=7)
    assert found.left.dtype == made.dtype
    same = whitened_svd(made.float().numpy(), g, precision="auto", rank=7)
    assert np.array_equal(found.values, same.values)
    assert torch.equal(found.left, torch.from_numpy(same.left).to(made.dtype))


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize(("m", "n"), [(14, 20), (20, 14)])
def test_errors_of_a_part_of_the_pairs(rng, m, n, outputs):
    w, g = problem(rng, m, n)
    h = np.cov(rng.normal(size=(m, 50))) if outputs else None
    whole, part = (whitened_svd(w.astype(np.float64), g, rank=r) for r in (None, 6))
    other = np.cov(rng.normal(size=(n, 50)))
    for gram in (None, g, other):
        assert np.allclose(part.errors(gram, h), whole.errors(gram, h)[:, :7], rtol=1e-9)
    assert np.allclose(part.tails, whole.tails)
    assert np.array_equal(part.cut(rank=4).to_dense(), whole.cut(rank=4).to_dense())
    assert part[1].cut(rank=6).rank == 6


def test_what_is_refused(rng):
    w, g = problem(rng, 20, 30)
    found = whitened_svd(w, g, rank=5, precision="auto")
    with pytest.raises(
        InvalidArgumentError, match="rank must be at most 5, the pairs that are the"
    ):
        found.cut(rank=6)
    assert isinstance(found.cut(rank=12), Dense)  # 12 pairs take as much as the weight
    with pytest.raises(InvalidArgumentError, match="rank must be at most 5"):
        found.cut(kept=0.6)
    with pytest.raises(InvalidArgumentError, match="precision must be one of 'float64', 'auto'"):
        whitened_svd(w, g, precision="float32")
    with pytest.raises(InvalidArgumentError, match=r"rank must be in 1\.\.20"):
        whitened_svd(w, g, rank=21)
    w[1, 2, 3] = np.nan
    with pytest.raises(InvalidArgumentError, match="weight of 'b' must be finite"):
        whitened_svd(w, g, precision="auto", names=["a", "b", "c"])
