"""Short trainings on planted data: dictionaries, trees, subspaces; and where training starts."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sae_oracle import dictionary_data, match_score, rows, train, tree_data  # noqa: E402
from subspan.errors import InvalidArgumentError  # noqa: E402
from subspan.sae import TopKSAE, geometric_median, make_sae  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Batches so small that a second thread would only wait."""
    threads(1)


def test_true_directions_are_found():
    x, truth = dictionary_data(np.random.default_rng(1), 20_000)
    x = torch.from_numpy(x)
    sae = make_sae("topk", 16, 32, k=3).initialize(x[:4096])
    losses, _ = train(sae, x, steps=600, batch=512, lr=1e-2, dead_after=20)
    assert losses[-1] < losses[0] / 4
    assert match_score(sae.w_dec.detach().numpy(), truth) >= 0.95


def tree():
    x, truth, parents = tree_data(np.random.default_rng(4), 8000)
    return torch.from_numpy(x), truth, parents


def test_pursuit_finds_both_levels_of_a_tree():
    x, truth, parents = tree()
    sae = make_sae("matching_pursuit", 20, 20, k=2).initialize(x[:2000])
    train(sae, x, steps=500, lr=0.1)
    w = sae.w_dec.detach().numpy()
    assert match_score(w, truth) >= 0.95
    found = w[(w @ truth.T).argmax(0)]
    cosines = found @ found.T
    for child, parent in enumerate(parents):
        assert abs(cosines[11 + child, parent]) < 0.2
    siblings = [cosines[11 + a, 11 + b] for a in range(9) for b in range(a) if a // 3 == b // 3]
    assert np.abs(np.array(siblings) - (truth[11] @ truth[12])).max() < 0.2


def test_nested_latents_absorb_less():
    """How often the latent nearest to a parent is not active where a child is, too."""
    x, truth, _ = tree()

    def absorbed(architecture, **options):
        sae = make_sae(architecture, 20, 24, k=1.5, **options).initialize(x[:2000])
        train(sae, x, steps=200, lr=3e-2, dead_after=20)
        near = (sae.w_dec.detach().numpy() @ truth[:3].T).argmax(0)
        pairs = np.repeat(truth[:3], 3, axis=0) * 1.5 + truth[11:] * 1.5
        code = sae.eval().encode(torch.from_numpy(pairs.astype(np.float32))).to_dense(24)
        return float((code[torch.arange(9), np.repeat(near, 3)] <= 0).double().mean())

    assert absorbed("matryoshka", group_sizes=(11, 13)) < absorbed("batch_topk")


def test_the_penalty_keeps_directions_apart():
    x, _, _ = tree()

    def crowd(architecture, **options):
        sae = make_sae(architecture, 20, 32, k=2, **options).initialize(x[:2000])
        train(sae, x, steps=80, lr=1e-2)
        unit = sae.w_dec.detach() / sae.w_dec.detach().norm(dim=-1, keepdim=True)
        return float((unit @ unit.t() - 2 * torch.eye(32)).max(dim=1).values.mean())

    assert crowd("orthogonal", orthogonality=2.0) < crowd("batch_topk") - 0.1


def subspace_data(rng, count, d, rank, m, k):
    """Sparse sums of m directions that span rank of d dimensions, away from the origin."""
    x, _ = dictionary_data(rng, count, d=rank, m=m, k=k)
    basis = np.linalg.qr(rng.standard_normal((d, rank)))[0].T
    return (x @ basis + rng.standard_normal(d)).astype(np.float32), basis


def dead_share(x, n, k, *, steps, lr, init="tied", rank=None, **options):
    sae = TopKSAE(x.shape[1], n, k=k, **options).initialize(x[:4000], init=init, rank=rank)
    train(sae, x, steps=steps, lr=lr, batch=512, dead_after=20)
    return float((~sae.fired(sae.encode(x))).double().mean())


def test_active_directions_lie_in_the_subspace(rng):
    x, basis = subspace_data(rng, 500, 20, 12, 40, 3)
    for rank in (12, None):
        sae = make_sae("topk", 20, 64, k=3).initialize(
            torch.from_numpy(x), init="active_subspace", rank=rank
        )
        w = sae.w_dec.detach().numpy()
        if rank:
            assert np.abs(w - w @ basis.T @ basis).max() < 1e-5
        assert np.abs(np.linalg.norm(w, axis=1) - 1).max() < 1e-6
        assert torch.equal(sae.w_enc.detach().t(), sae.w_dec.detach())
        assert np.linalg.matrix_rank(w, tol=1e-3) <= 12


def test_the_whole_space_leaves_cosines_as_they_are(rng):
    x = torch.from_numpy(rng.standard_normal((400, 16)))
    sae = make_sae("topk", 16, 300, k=3, dtype="float64")
    spreads = []
    for init, rank in (("tied", None), ("active_subspace", 16)):
        w = sae.initialize(x, init=init, rank=rank).w_dec.detach()
        cosines = (w @ w.t())[torch.triu_indices(300, 300, 1).unbind()]
        spreads.append(float(cosines.std()))
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-9)  # an orthogonal map of the same rows
    assert spreads[0] == pytest.approx(1 / 4, rel=0.05)


def test_tenfold_fewer_latents_die_from_the_active_subspace():
    x = torch.from_numpy(subspace_data(np.random.default_rng(0), 8000, 32, 19, 100, 2)[0])
    options = {"n": 1024, "k": 2, "steps": 100, "lr": 1e-3, "aux_coefficient": 0.0}
    plain = dead_share(x, **options)
    active = dead_share(x, **options, init="active_subspace", rank=19)
    assert 10 * active <= plain


@pytest.mark.slow
def test_tenfold_fewer_of_many_latents_die_from_the_active_subspace():
    x = torch.from_numpy(subspace_data(np.random.default_rng(0), 40_000, 128, 76, 600, 4)[0])
    options = {"n": 4096, "k": 4, "steps": 150, "lr": 1e-3, "aux_coefficient": 0.0}
    plain = dead_share(x, **options)
    active = dead_share(x, **options, init="active_subspace")
    assert 10 * active <= plain


def test_the_auxiliary_loss_revives_latents():
    x = torch.from_numpy(subspace_data(np.random.default_rng(0), 8000, 32, 19, 100, 3)[0])
    options = {"n": 128, "k": 3, "steps": 250, "lr": 1e-2}
    assert dead_share(x, **options) < dead_share(x, **options, aux_coefficient=0.0) - 0.02


def test_the_geometric_median_is_where_directions_cancel(rng):
    x = torch.from_numpy(rng.standard_normal((500, 7)) + 5)
    middle = geometric_median(x, max_iterations=500, tol=1e-12)
    away = x - middle
    pull = (away / away.norm(dim=-1, keepdim=True)).sum(0)
    assert pull.abs().max() < 1e-6
    far = x.clone()
    far[:100] += 1e6  # a fifth of the rows, as far as they like
    assert (geometric_median(far) - middle).norm() < 3


def test_the_geometric_median_may_be_a_row():
    star = torch.tensor([[0.0, 0], [2, 0], [0, 2], [-2, 0], [0, -2]])
    assert geometric_median(star).tolist() == [0, 0]  # where the mean already is
    # The mean is (0.5, 0), a row, yet not the median, which is the heavy row.
    pull = torch.tensor([[0.0, 0], [0, 0], [0, 0], [0.5, 0], [2, 0]])
    assert geometric_median(pull, max_iterations=1000, tol=0).abs().max() < 1e-3
    assert geometric_median(star[:1].expand(9, -1)).tolist() == [0, 0]
    assert geometric_median(star[1:2]).tolist() == [2, 0]


def test_samples_that_do_not_fit_are_refused(rng):
    sae = TopKSAE(10, 36, k=4, dtype="float64")
    x = rows(30)
    with pytest.raises(InvalidArgumentError, match="must have more rows than rank, got 8"):
        sae.initialize(x[:8], init="active_subspace", rank=9)
    flat = x[:, :3] @ torch.from_numpy(rng.standard_normal((3, 10)))
    with pytest.raises(InvalidArgumentError, match="rank must be at most 3"):
        sae.initialize(flat, init="active_subspace", rank=5)
    with pytest.raises(InvalidArgumentError, match=r"rank must be in 1\.\.10, got 11"):
        sae.initialize(x, init="active_subspace", rank=11)
    with pytest.raises(InvalidArgumentError, match="rank must be None for init='tied'"):
        sae.initialize(x, rank=3)
    with pytest.raises(InvalidArgumentError, match="init must be one of"):
        sae.initialize(x, init="zero")
    with pytest.raises(InvalidArgumentError, match="x must be 2-D with rows"):
        geometric_median(x[0])
    with pytest.raises(InvalidArgumentError, match="x must be finite"):
        geometric_median(x * torch.nan)


def test_rows_that_are_all_alike():
    x = rows(1).expand(20, -1)
    sae = TopKSAE(10, 36, k=4, dtype="float64").initialize(x)
    assert torch.allclose(sae.b_dec, x[0])
    assert float(sae.loss(x).total.detach()) < 1e-20
