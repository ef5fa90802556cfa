"""Cached keys and values in fewer dimensions, and the rank of a weight that data use."""

import numpy as np
import pytest
import subspan
from subspan.compression import cache_basis, utilised_rank, whitened_svd
from subspan.errors import InvalidArgumentError


def moments(x):
    return subspan.Moments(precision="float64").update(x.reshape(-1, x.shape[-1]))


def attention(q, k, v):
    scores = q @ k.T / k.shape[-1] ** 0.5
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("aware", [False, True])
def test_all_dimensions_are_exact(rng, centred, aware):
    k = rng.normal(size=(50, 16)) @ rng.normal(size=(16, 16)) + 3
    q = rng.normal(size=(30, 16)) @ rng.normal(size=(16, 16))
    basis = cache_basis(moments(k), moments(q) if aware else None, centred=centred)
    assert basis.rank == 16
    codes = basis.encode(k)
    assert np.allclose(basis.decode(codes), k, atol=1e-9)
    assert np.allclose(basis.scores(q, codes), q @ k.T, atol=1e-8)


@pytest.mark.parametrize("aware", [False, True])
def test_planted_keys_of_eight_dimensions_give_exact_attention(rng, aware):
    k = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 64)) + rng.normal(size=64)
    v, q = rng.normal(size=(60, 12)), rng.normal(size=(20, 64))
    basis = cache_basis(moments(k), moments(q) if aware else None).cut(8)
    codes = basis.encode(k)
    assert codes.shape == (60, 8)
    assert codes.nbytes == 60 * 8 * 8  # what is allocated is what is said
    assert np.allclose(attention(q, basis.decode(codes), v), attention(q, k, v), atol=1e-8)
    short = cache_basis(moments(k), centred=True).cut(7)
    assert np.abs(short.decode(short.encode(k)) - k).max() > 1e-2


def test_the_error_falls_with_the_dimensions_and_is_predicted(rng):
    k = rng.normal(size=(80, 24)) @ (rng.normal(size=(24, 24)) * 0.8 ** np.arange(24))
    basis = cache_basis(moments(k))
    assert (np.diff(basis.tails) < 0).all()
    for r in (1, 5, 12, 24):
        cut = basis.cut(r)
        rest = np.square(cut.decode(cut.encode(k)) - k).sum(1).mean()
        assert rest == pytest.approx(basis.tails[r], rel=1e-8, abs=1e-12)


def test_keys_that_know_the_queries_keep_the_scores(rng):
    k = rng.normal(size=(200, 16)) * np.linspace(3, 0.5, 16)
    q = rng.normal(size=(150, 16)) * np.linspace(0.05, 3, 16)  # looks where keys are small
    plain = cache_basis(moments(k), centred=False)
    aware = cache_basis(moments(k), moments(q), centred=False)
    for r in (2, 6, 10):
        lost = []
        for basis in (plain.cut(r), aware.cut(r)):
            rest = basis.scores(q, basis.encode(k)) - q @ k.T
            lost.append(np.square(rest).mean())
        assert lost[1] < 0.8 * lost[0]
        assert lost[1] == pytest.approx(aware.tails[r], rel=1e-2)


def test_stacks_of_heads_are_their_heads_and_keep_library_and_dtype(rng):
    torch = pytest.importorskip("torch")
    k = rng.normal(size=(3, 40, 8)).astype(np.float32)
    basis = cache_basis([moments(head) for head in k]).cut(5)
    codes = basis.encode(torch.from_numpy(k))
    assert codes.dtype == torch.float32
    assert codes.shape == (3, 40, 5)
    for head in range(3):
        alone = cache_basis(moments(k[head])).cut(5)
        assert np.array_equal(alone.encode(k[head]), codes[head].numpy())
    half = basis.encode(k.astype(np.float16))
    assert half.nbytes == 3 * 40 * 5 * 2


def test_what_caches_refuse(rng):
    k = rng.normal(size=(40, 8))
    basis = cache_basis(moments(k))
    with pytest.raises(InvalidArgumentError, match=r"rank must be in 1\.\.8, got 9"):
        basis.cut(9)
    with pytest.raises(InvalidArgumentError, match="states must be Moments, one for each head"):
        cache_basis([k])
    with pytest.raises(InvalidArgumentError, match="must have rows, got none"):
        cache_basis([moments(k), subspan.Moments()])
    with pytest.raises(InvalidArgumentError, match=r"outputs must be \(8, 8\)"):
        cache_basis(moments(k), moments(rng.normal(size=(9, 7))))
    with pytest.raises(
        InvalidArgumentError, match=r"states must be \('tokens', 8\), got \(40, 7\)"
    ):
        basis.encode(k[:, :7])
    with pytest.raises(InvalidArgumentError, match="codes must have 2 axes"):
        basis.decode(k[None])


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12)])
def test_inputs_of_a_subspace_use_just_that_rank(rng, m, n):
    w = rng.normal(size=(m, n))
    x = rng.normal(size=(90, 5)) @ rng.normal(size=(5, n))
    found = utilised_rank(w, x.T @ x, energy=1.0 - 1e-12)
    assert np.linalg.matrix_rank(w) == min(m, n)
    assert (found.inputs, found.outputs, found.rank) == (5, 5, 5)
    assert found.utilisation == 5 / min(m, n)
    made = found.projected.to_dense()
    assert np.linalg.matrix_rank(made) == 5
    assert np.linalg.norm(x @ (w - made).T) < 1e-8
    other = rng.normal(size=(90, n))
    assert np.linalg.norm(other @ (w - made).T) > 1.0


def test_less_energy_is_less_rank_with_the_error_that_is_told(rng):
    w = rng.normal(size=(16, 24))
    x = rng.normal(size=(200, 24)) * 0.7 ** np.arange(24)
    g = x.T @ x
    ranks = []
    for energy in (0.5, 0.9, 0.99, 0.9999):
        found = utilised_rank(w, g, energy=energy)
        rest = np.linalg.norm(x @ (w - found.projected.to_dense()).T)
        assert found.projected.error == pytest.approx(rest, rel=1e-9)
        assert found.projected.relative_error <= 2 * np.sqrt(1 - energy) * np.linalg.cond(w)
        best = whitened_svd(w, g)
        assert np.sqrt(best.tails[found.rank]) <= rest * (1 + 1e-9)  # of this rank, none is better
        values = np.sort(np.linalg.eigvalsh(g))[::-1]
        assert found.inputs == int(np.argmax(values.cumsum() >= energy * values.sum())) + 1
        ranks.append(found.rank)
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]
    with pytest.raises(InvalidArgumentError, match="energy must be in"):
        utilised_rank(w, g, energy=1.5)
    with pytest.raises(InvalidArgumentError, match="weight must have 2 axes"):
        utilised_rank(w[None], g)
