"""Low-rank factors: certificates against plain SVDs, optimality, invariances, every refusal."""

import numpy as np
import pytest
import subspan
from subspan.compression import (
    Dense,
    LowRank,
    activation_svd,
    fisher_svd,
    truncated_svd,
    whitened_svd,
)
from subspan.errors import DtypeError, InvalidArgumentError

SHAPES = [(12, 20), (20, 12), (16, 16), (1, 9), (9, 1)]


def problem(rng, m, n, rows=60, batch=()):
    """Weights, and inputs whose columns differ by orders of magnitude."""
    w = rng.normal(size=(*batch, m, n))
    mix = rng.normal(size=(*batch, n, n)) * 10.0 ** -np.linspace(0, 3, n)
    return w, rng.normal(size=(*batch, rows, n)) @ mix


def grams(x):
    return x.swapaxes(-1, -2) @ x


def error(w, made, x):
    return np.linalg.norm((w - made) @ x.swapaxes(-1, -2), axis=(-2, -1))


def weighted(w, made, h, g):
    d = w - made
    return np.trace(h @ d @ g @ d.T)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_truncated_svd_has_the_tail_as_error(rng, m, n):
    w = rng.normal(size=(3, m, n))
    found = truncated_svd(w)
    s = np.linalg.svd(w, compute_uv=False)
    tails = np.sqrt(np.cumsum(np.square(s[..., ::-1]), axis=-1)[..., ::-1])
    assert np.allclose(found.values, s, rtol=1e-10)
    assert np.allclose(np.sqrt(found.tails[..., :-1]), tails, rtol=1e-10)
    assert np.allclose(np.sqrt(found.errors()[..., :-1]), tails, rtol=1e-10)
    assert (found.tails[..., -1] == 0).all()
    assert np.allclose(found.total, np.linalg.norm(w, axis=(1, 2)))
    assert np.allclose(found.left @ found.right, w)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_whitened_error_is_the_tail_of_singular_values(rng, m, n):
    w, x = problem(rng, m, n)
    found = whitened_svd(w, grams(x))
    s = np.linalg.svd(w @ x.T, compute_uv=False)[: min(m, n)]
    for r in range(1, min(m, n)):
        tail = np.sqrt(np.square(s[r:]).sum())
        made = found.left[:, :r] @ found.right[:r]
        assert np.sqrt(found.tails[r]) == pytest.approx(tail, rel=1e-9)
        assert error(w, made, x) == pytest.approx(tail, rel=1e-9)
        assert np.sqrt(found.errors(grams(x))[r]) == pytest.approx(tail, rel=1e-9)
    assert np.allclose(found.left.T @ found.left, np.eye(min(m, n)), atol=1e-12)


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12), (16, 16)])
def test_whitened_beats_the_others_in_output_error(rng, m, n):
    for _ in range(5):
        w, x = problem(rng, m, n)
        g, scale = grams(x), np.abs(x).mean(0)
        best = np.sqrt(whitened_svd(w, g).tails)
        for other in (
            truncated_svd(w), activation_svd(w, scale), activation_svd(w, scale, alpha=1.0),
            fisher_svd(w, rng.uniform(0.1, 1, m)),
        ):  # fmt: skip
            curve = np.sqrt(other.errors(g))
            assert (best[1:-1] < curve[1:-1]).all()
            r = min(m, n) // 2
            cut = other.left[:, :r] @ other.right[:r]
            assert curve[r] == pytest.approx(error(w, cut, x), rel=1e-8)


def test_a_gram_of_ones_is_the_truncated_svd(rng):
    w = rng.normal(size=(9, 14))
    a, b = (f.cut(rank=4).to_dense() for f in (truncated_svd(w), whitened_svd(w, np.eye(14))))
    assert np.allclose(a, b, atol=1e-12)
    same = activation_svd(w, rng.uniform(1, 9, 14), alpha=0.0).cut(rank=4).to_dense()
    assert np.allclose(a, same, atol=1e-12)
    assert np.allclose(a, fisher_svd(w, np.full(9, 0.3)).cut(rank=4).to_dense(), atol=1e-12)
    assert np.allclose(a, fisher_svd(w, np.full(14, 2.0), axis=1).cut(rank=4).to_dense())


@pytest.mark.parametrize(("m", "n"), [(10, 24), (24, 10), (30, 24)])
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_singular_grams_never_fail(rng, m, n, rows):
    w, x = problem(rng, m, n, rows=rows)
    found = whitened_svd(w, grams(x))
    r = np.linalg.matrix_rank(x @ w.T)
    made = found.left[:, :r] @ found.right[:r]
    assert error(w, made, x) <= 1e-10 * error(w, 0 * w, x)
    assert np.sqrt(found.tails[r]) <= 1e-7 * found.total
    assert np.allclose(found.left.T @ found.left, np.eye(min(m, n)), atol=1e-10)
    nothing = whitened_svd(w, np.zeros((n, n)))
    assert nothing.total == 0
    assert nothing.cut(rank=1).relative_error == 0


def test_a_ridge_counts_what_was_not_seen(rng):
    w, x = problem(rng, 12, 20, rows=4)
    g = grams(x)
    plain, ridged = (whitened_svd(w, g, ridge=ridge).cut(rank=4) for ridge in (0.0, 1e-2))
    assert plain.error < ridged.error  # of the rows seen
    assert ridged.error == pytest.approx(error(w, ridged.to_dense(), x), rel=1e-9)
    unseen = [np.linalg.norm(w - one.to_dense()) for one in (plain, ridged)]
    assert unseen[1] < unseen[0]


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12)])
def test_affine_is_never_worse_and_its_bias_keeps_the_mean(rng, m, n):
    w, x = problem(rng, m, n)
    x = x + 5 * rng.normal(size=n)
    moments = subspan.Moments().update(x)
    plain, affine = (whitened_svd(w, moments, affine=on) for on in (False, True))
    for r in range(1, m * n // (m + n)):
        a, b = plain.cut(rank=r), affine.cut(rank=r)
        rest = x @ (w - b.to_dense()).T - b.bias
        assert np.linalg.norm(rest) <= error(w, a.to_dense(), x) * (1 + 1e-9)
        assert np.linalg.norm(rest) == pytest.approx(b.error * np.sqrt(len(x)), rel=1e-8)
        assert np.allclose(rest.mean(0), 0, atol=1e-9)
    assert b.storage().n_bytes == 2 * (r * (m + n) + m)


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12)])
def test_two_sided_is_best_in_the_weighted_norm(rng, m, n):
    w, x = problem(rng, m, n)
    mix = rng.normal(size=(m, m)) * np.linspace(0.1, 3, m)
    g, h = grams(x), mix @ mix.T
    both, one = whitened_svd(w, g, outputs=h), whitened_svd(w, g)
    curve, other = both.errors(g, h), one.errors(g, h)
    for r in range(1, 8):
        made = both.left[:, :r] @ both.right[:r]
        assert curve[r] == pytest.approx(weighted(w, made, h, g), rel=1e-8)
        assert curve[r] < other[r]
        assert both.tails[r] == pytest.approx(curve[r], rel=0.05)  # H there has 1e-4 added
        # a neighbour of the same rank does not do better
        near = made + 1e-4 * (rng.normal(size=(m, 1)) @ made[:1] + made[:, :1] @ w[:1])
        u, s, v = np.linalg.svd(near)
        assert weighted(w, (u[:, :r] * s[:r]) @ v[:r], h, g) > curve[r] * (1 - 1e-3)
    flat = whitened_svd(w, g, outputs=np.eye(m)).cut(rank=4).to_dense()
    assert np.allclose(flat, one.cut(rank=4).to_dense(), atol=1e-10)


def test_fisher_is_best_in_its_norm(rng):
    w, i = rng.normal(size=(14, 10)), rng.uniform(0.01, 2, 14)
    found = fisher_svd(w, i).cut(rank=3)

    def norm(made):
        return np.linalg.norm(i[:, None] * (w - made))

    assert found.error == pytest.approx(norm(found.to_dense()), rel=1e-10)
    assert found.error < norm(truncated_svd(w).cut(rank=3).to_dense())
    for _ in range(200):
        a = rng.normal(size=(14, 3))
        b = np.linalg.lstsq(i[:, None] * a, i[:, None] * w, rcond=None)[0]
        assert found.error <= norm(a @ b)
    turned = fisher_svd(w.T, i, axis=1).cut(rank=3)
    assert np.allclose(turned.to_dense(), found.to_dense().T)
    # a row that does not matter is given up, and nothing is divided by zero
    i[0] = 0
    assert np.isfinite(fisher_svd(w, i).cut(rank=3).to_dense()).all()


def test_fisher_keeps_the_loss_where_some_outputs_do_not_matter(rng):
    """Logits read half of the hidden units: the others are large, and of no use."""
    w, read = rng.normal(size=(24, 16)), rng.normal(size=(5, 24))
    read[:, 12:] = 0
    w[12:] *= 5
    x = rng.normal(size=(400, 16))
    labels = (x @ w.T @ read.T).argmax(1)

    def logp(weight):
        z = x @ weight.T @ read.T
        return (
            z
            - z.max(1, keepdims=True)
            - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1))[:, None]
        )

    residual = np.exp(logp(w)) - np.eye(5)[labels]
    gradients = np.einsum("tm,tn->tmn", residual @ read, x)  # of each sample
    importance = np.sqrt(np.square(gradients).mean(0).sum(1))
    losses = []
    for factors in (truncated_svd(w), fisher_svd(w, importance)):
        made = factors.left[:, :6] @ factors.right[:6]
        losses.append(-logp(made)[np.arange(400), labels].mean())
    assert losses[1] < 0.5 * losses[0]


def test_rescaled_inputs_leave_the_left_factor_alone(rng):
    w, x = problem(rng, 8, 12)
    c = rng.uniform(0.1, 10, 12)
    one = activation_svd(w, np.abs(x).mean(0), alpha=1.0)
    two = activation_svd(w / c, np.abs(x * c).mean(0), alpha=1.0)
    signs = np.sign((one.left * two.left).sum(0))
    assert np.allclose(one.left, two.left * signs, atol=1e-8)
    assert np.allclose(one.values, two.values)


@pytest.mark.parametrize("batch", [(3,), (2, 2)])
def test_a_stack_is_its_matrices_bit_for_bit(rng, batch):
    w, x = problem(rng, 9, 13, batch=batch)
    g, shared = grams(x), grams(x[(0,) * len(batch)])
    h = np.cov(rng.normal(size=(9, 30)))
    for make, of in (
        (lambda w, g: truncated_svd(w), g),  # noqa: ARG005
        (whitened_svd, g),
        (lambda w, g: whitened_svd(w, g, outputs=h), g),
        (lambda w, g: whitened_svd(w, shared), g),  # noqa: ARG005
    ):
        whole = make(w, of)
        for place in np.ndindex(*batch):
            alone, part = make(w[place], of[place]), whole[place]
            for name in ("left", "right", "values"):
                assert np.array_equal(getattr(alone, name), getattr(part, name))
    cut = whole.cut(kept=0.8)
    assert cut.to_dense().shape == w.shape
    assert cut.error.shape == batch


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_libraries_and_dtypes(rng, dtype):
    torch = pytest.importorskip("torch")
    w, x = problem(rng, 9, 14)
    put = torch.from_numpy(w).to(getattr(torch, dtype))
    found = whitened_svd(put, torch.from_numpy(grams(x))).cut(rank=4)
    assert found.left.dtype == found.right.dtype == put.dtype
    wide = put.double().numpy()
    eps = float(torch.finfo(put.dtype).eps)
    alone = whitened_svd(wide, grams(x)).cut(rank=4)
    assert found.error == pytest.approx(alone.error, rel=1e-12)
    measured = error(wide, (found.left.double() @ found.right.double()).numpy(), x)
    assert measured == pytest.approx(alone.error, rel=1e-9 + 50 * eps)
    if dtype != "bfloat16":
        same = whitened_svd(put.numpy()[:, ::-1], grams(x)[::-1, ::-1]).cut(rank=4)
        assert same.left.dtype == dtype
        assert same.error == pytest.approx(alone.error, rel=1e-9)


def test_moments_and_grams_agree(rng):
    w, x = problem(rng, 7, 11, batch=(2,))
    moments = [subspan.Moments().update(one) for one in x]
    a, b = whitened_svd(w, moments), whitened_svd(w, grams(x) / 60)
    assert np.allclose(a.values, b.values)
    assert np.allclose(whitened_svd(w, moments[0]).values[0], a.values[0])


def test_cuts(rng):
    w = rng.normal(size=(20, 30)) * 0.8 ** np.arange(30)
    found = truncated_svd(w)
    ranked = found.cut(rank=5)
    assert isinstance(ranked, LowRank)
    assert (ranked.rank, ranked.storage().n_bytes, ranked.note) == (5, 2 * 5 * 50, "")
    assert found.cut(kept=0.5).rank == 6
    assert found.cut(kept=0.5).storage().n_bytes <= 0.5 * w.size * 2
    sizes = np.square(found.values).cumsum() / np.square(found.values).sum()
    assert found.cut(energy=0.9).rank == int(np.argmax(sizes >= 0.9)) + 1
    for grown in (found.cut(rank=12), found.cut(kept=1.0), found.cut(energy=1.0)):
        assert isinstance(grown, Dense)
        assert grown.note.startswith("kept dense: factors of rank")
        assert grown.to_dense() is w
        assert grown.error == 0
        assert grown.storage().n_bytes == 2 * w.size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of rank, kept and energy must be given"),
        ({"rank": 2, "kept": 0.5}, "one of rank, kept and energy must be given"),
        ({"rank": 0}, r"rank must be in 1\.\.9, got 0"),
        ({"rank": 10}, r"rank must be in 1\.\.9, got 10"),
        ({"kept": 0.1}, r"kept must leave room for rank 1 of 9 x 12, got 0\.1\. .* 0\.194"),
        ({"kept": 1.5}, "kept must be in"),
        ({"energy": -0.1}, "energy must be in"),
    ],
)
def test_cuts_that_are_refused(rng, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        truncated_svd(rng.normal(size=(9, 12))).cut(**options)


def test_what_is_refused_names_the_layer(rng):
    w, x = problem(rng, 6, 8, batch=(2,))
    g = grams(x)
    names = ["q_proj", "k_proj"]
    bad = g.copy()
    bad[1, 0, 0] = np.nan
    with pytest.raises(InvalidArgumentError, match="gram of 'k_proj' must be finite"):
        whitened_svd(w, bad, names=names)
    with pytest.raises(InvalidArgumentError, match="gram of matrix 1 must be finite"):
        whitened_svd(w, bad)
    broken = w.copy()
    broken[0, 0, 0] = np.inf
    with pytest.raises(InvalidArgumentError, match="weight of 'q_proj' must be finite"):
        truncated_svd(broken, names=names)
    with pytest.raises(InvalidArgumentError, match=r"gram must be \(8, 8\), one or one for each"):
        whitened_svd(w, np.eye(7))
    with pytest.raises(InvalidArgumentError, match=r"outputs must be \(6, 6\)"):
        whitened_svd(w, g, outputs=np.eye(8))
    with pytest.raises(InvalidArgumentError, match="one Moments or one for each of 2 matrices"):
        whitened_svd(w, [subspan.Moments().update(x[0])] * 3)
    with pytest.raises(InvalidArgumentError, match=r"'q_proj' must have rows, got none\. Run"):
        whitened_svd(w, subspan.Moments(), names=names)
    with pytest.raises(InvalidArgumentError, match="gram must be Moments where affine is set"):
        whitened_svd(w, g, affine=True)
    with pytest.raises(InvalidArgumentError, match="names must be one for each of 2 matrices"):
        truncated_svd(w, names=["one"])
    with pytest.raises(InvalidArgumentError, match="ridge must be in"):
        whitened_svd(w, g, ridge=-1)
    with pytest.raises(InvalidArgumentError, match=r"scale of matrix 0 must be >= 0, got -1"):
        activation_svd(w, -np.ones(8))
    with pytest.raises(InvalidArgumentError, match=r"scale must be \(8,\)"):
        activation_svd(w, np.ones(6))
    with pytest.raises(InvalidArgumentError, match="importance of matrix 0 must be finite"):
        fisher_svd(w, np.full(6, np.nan))
    with pytest.raises(InvalidArgumentError, match="axis must be 0 or 1, got 2"):
        fisher_svd(w, np.ones(6), axis=2)
    with pytest.raises(InvalidArgumentError, match="weight must have 2 or more axes"):
        truncated_svd(np.ones(3))
    with pytest.raises(InvalidArgumentError, match="weight must not be empty"):
        truncated_svd(np.ones((0, 3)))
    with pytest.raises(DtypeError, match="weight must be float16"):
        truncated_svd(np.ones((2, 3), np.int64))
    with pytest.raises(DtypeError, match="weight must be an array"):
        truncated_svd([[1.0]])
    with pytest.raises(InvalidArgumentError, match="index needs a stack of matrices"):
        truncated_svd(w[0])[0]
