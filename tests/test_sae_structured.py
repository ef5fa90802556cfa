"""Nested, orthogonal, choice and pursuit autoencoders: dense formulas, invariants, recovery."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sae_oracle import (  # noqa: E402
    assert_same_gradients,
    dense_auxk,
    dense_batch_topk,
    gradients,
    module,
    pre_activations,
    rows,
)
from subspan import set_num_threads  # noqa: E402
from subspan.errors import InvalidArgumentError  # noqa: E402
from subspan.sae import (  # noqa: E402
    SAE,
    FeatureChoiceSAE,
    MatchingPursuitSAE,
    MatryoshkaSAE,
    OrthogonalSAE,
    make_sae,
)

DEAD = torch.arange(36) % 3 == 0
SIZES = (4, 8, 24)


def dense_matryoshka(sae, x, dead=None):
    code = dense_batch_topk(pre_activations(sae, x), int(sae.k * len(x)))
    errors = [(sae.b_dec - x).square().mean()] if sae.bias_term else []
    for stop in np.cumsum(sae.group_sizes):
        made = code[:, :stop] @ sae.w_dec[:stop] + sae.b_dec
        errors.append((made - x).square().mean())
    loss = sum(errors) / len(errors) * float(sae.loss_scale)
    if dead is not None:
        loss = loss + sae.aux_coefficient * dense_auxk(sae, x, x - made, dead)
    return loss


def dense_crowding(w, parts):
    unit = w / w.norm(dim=-1, keepdim=True)
    found = []
    for part in parts:
        cosines = unit[part] @ unit[part].t() - 2 * torch.eye(len(part), dtype=w.dtype)
        found.append(cosines.max(dim=1).values.square().mean())
    return sum(found) / len(found)


def dense_pursuit(sae, x):
    rest = x - sae.b_dec if sae.pre_bias else x
    for _ in range(sae.k):
        products = rest @ sae.w_dec.t()
        best = products.argmax(-1)
        c = products.gather(-1, best[:, None]).relu()
        rest = rest - c * sae.w_dec[best]
    return rest.square().mean() * float(sae.loss_scale)


@pytest.mark.parametrize("dead", [None, DEAD])
@pytest.mark.parametrize("bias_term", [True, False])
def test_nested_losses_and_gradients(bias_term, dead):
    sae = module("matryoshka", k=4.5, group_sizes=SIZES, bias_term=bias_term)
    sae.loss_scale.fill_(1.7)
    x = rows()
    ours, theirs = sae.loss(x, dead=dead), dense_matryoshka(sae, x, dead)
    assert torch.allclose(ours.total, theirs, rtol=1e-12)
    assert_same_gradients(sae, ours.total, theirs)
    assert torch.allclose(ours.reconstruction, sae(x)[0], rtol=1e-12)


def test_one_group_without_the_bias_is_batch_topk():
    a = module("matryoshka", k=4, group_sizes=(36,), bias_term=False)
    b = module("batch_topk", k=4)
    x = rows()
    assert torch.allclose(a.loss(x).total, b.loss(x).total, rtol=1e-14)
    ours, theirs = gradients(a, a.loss(x).total), gradients(b, b.loss(x).total)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-12) for name in ours)


def test_default_groups_cover_all_latents():
    assert MatryoshkaSAE(8, 64, k=2).group_sizes == (4, 4, 8, 16, 32)
    for n in (1, 3, 17):
        assert sum(MatryoshkaSAE(8, n, k=1).group_sizes) == n
    with pytest.raises(InvalidArgumentError, match="group_sizes must have the sum n_latents = 64"):
        MatryoshkaSAE(8, 64, k=2, group_sizes=(4, 4))
    with pytest.raises(InvalidArgumentError, match="group_sizes must be >= 1"):
        MatryoshkaSAE(8, 64, k=2, group_sizes=(0, 64))


@pytest.mark.parametrize(("size", "parts"), [(36, 1), (8192, 1), (12, 3), (10, 4), (2, 18)])
def test_crowding_and_its_gradient(size, parts):
    from subspan.sae.modules._crowding import Crowding

    w = torch.randn((36, 10), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w.requires_grad_()
    ours = Crowding(36, size, 7)
    assert len(ours.parts) == parts
    assert sorted(torch.cat(ours.parts).tolist()) == list(range(36))
    value, wanted = ours.of(w.detach()), dense_crowding(w, ours.parts)
    assert torch.allclose(value, wanted, rtol=1e-12)
    found = torch.zeros_like(w)
    ours.add_(found, torch.tensor(0.7, dtype=torch.float64), w.detach())
    (theirs,) = torch.autograd.grad(0.7 * wanted, w)
    assert torch.allclose(found, theirs, atol=1e-14)


def test_orthonormal_directions_are_not_crowded_and_twins_are():
    from subspan.sae.modules._crowding import Crowding

    assert float(Crowding(8, 8192, 0).of(torch.eye(8))) == 0
    twins = torch.eye(8)[[0, 1, 2, 3, 3, 4, 5, 6]] * 2
    assert float(Crowding(8, 8192, 0).of(twins)) == pytest.approx(2 / 8)
    zero = torch.zeros(3, 2)
    found = torch.zeros(3, 2)
    crowding = Crowding(3, 8192, 0)
    assert float(crowding.of(zero)) == 0
    crowding.add_(found, torch.ones(()), zero)
    assert float(found.abs().max()) == 0


def test_orthogonal_losses_and_gradients():
    from subspan.sae.modules._crowding import Crowding

    sae = module("orthogonal", k=4, every=3, chunk_size=12)
    plain, x = module("batch_topk", k=4), rows()
    out = sae.loss(x, dead=DEAD, step=6)
    parts = Crowding(36, 12, sae.seed * 1_000_003 + 6).parts
    wanted = 0.25 * 3 * dense_crowding(sae.w_dec, parts)
    assert torch.allclose(out.terms["orthogonality"], wanted, rtol=1e-12)
    ours = gradients(sae, out.total)
    base = gradients(plain, plain.loss(x, dead=DEAD).total)
    extra = torch.autograd.grad(wanted, sae.w_dec)[0]
    assert torch.allclose(ours["w_dec"], base["w_dec"] + extra, atol=1e-14)
    assert torch.equal(ours["w_enc"], base["w_enc"])
    without = sae.loss(x, dead=DEAD, step=7)
    assert sorted(without.terms) == ["auxk", "reconstruction"]
    assert not torch.equal(Crowding(36, 12, sae.seed * 1_000_003 + 7).parts[0], parts[0])
    assert sae.export().architecture == "batch_topk"


@pytest.mark.parametrize("pre_bias", [True, False])
def test_pursuit_losses_and_gradients(pre_bias):
    sae = module("matching_pursuit", n=30, k=5, pre_bias=pre_bias)
    sae.loss_scale.fill_(1.7)
    x = rows()
    ours, theirs = sae.loss(x), dense_pursuit(sae, x)
    assert torch.allclose(ours.total, theirs, rtol=1e-12)
    assert_same_gradients(sae, ours.total, theirs)
    if pre_bias:
        assert torch.allclose(ours.reconstruction, sae(x)[0], rtol=1e-12)


def test_gradients_of_the_coefficients_too():
    """A loss of code and rest, by differences; some pursuits end early."""
    sae = module("matching_pursuit", d=6, n=4, k=4)
    with torch.no_grad():
        sae.w_dec.abs_().mul_(1.1)  # at norm 1 the rest is orthogonal to the last: a kink
    x = rows(9, 6)
    assert bool((sae.encode(x).values == 0).any())
    weights = torch.randn((9, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(w_dec):
        from subspan.sae.modules.pursuit import _Pursuit

        rest, values, _ = _Pursuit.apply(x, w_dec, 4, "exact")
        return (values * weights).sum() + (rest.square() * 0.3).sum()

    assert torch.autograd.gradcheck(loss, sae.w_dec.detach().clone().requires_grad_())


def test_pursuit_of_orthonormal_directions_is_topk():
    q = torch.linalg.qr(rows(10))[0]
    a = MatchingPursuitSAE(10, 10, k=3, dtype="float64")
    b = make_sae("topk", 10, 10, k=3, dtype="float64")
    with torch.no_grad():
        a.w_dec.copy_(q)
        b.w_dec.copy_(q)
        b.w_enc.copy_(q.t())
    ours, theirs = a.encode(rows()), b.encode(rows())
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.allclose(ours.values, theirs.values)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("matryoshka", {"k": 5}),
        ("orthogonal", {"k": 5, "every": 1, "chunk_size": 64}),
        ("mutual_choice", {"k": 5}),
        ("feature_choice", {"k": 5, "profile": "zipf"}),
        ("matching_pursuit", {"k": 4}),
    ],
)
def test_bits_do_not_depend_on_threads(architecture, options):
    x = torch.randn((1600, 24), generator=torch.Generator().manual_seed(0))
    seen = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            set_num_threads(count)
            sae = make_sae(architecture, 24, 200, seed=4, **options).initialize(x)
            adam = torch.optim.Adam(sae.parameters(), lr=1e-2)
            for step in range(2):
                adam.zero_grad()
                out = sae.loss(x, step=step, dead=torch.arange(200) < 9)
                out.total.backward()
                sae.remove_parallel_gradient_()
                adam.step()
                sae.normalize_decoder_()
                sae.update_threshold_(out.code)
            state = [*sae.state_dict().values(), out.total.detach()]
            seen.append(b"".join(v.contiguous().numpy().tobytes() for v in state))
    finally:
        torch.set_num_threads(before)
        set_num_threads(None)
    assert all(bits == seen[0] for bits in seen)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("matryoshka", {"k": 4, "group_sizes": SIZES}),
        ("mutual_choice", {"k": 4}),
        ("feature_choice", {"k": 4}),
        ("matching_pursuit", {"k": 3}),
    ],
)
def test_there_and_back(architecture, options):
    sae = module(architecture, **options)
    x = rows(30)
    sae.update_threshold_(sae.loss(x).code)
    sae.eval()
    a = sae.export()
    assert a.architecture == architecture
    assert torch.allclose(a.reconstruct(x), sae(x)[0].detach(), rtol=1e-12)
    again = SAE.from_autoencoder(a.to_numpy())
    assert type(again) is type(sae)
    assert torch.allclose(again.eval()(x)[0], sae(x)[0], rtol=1e-12)
    loaded = make_sae(architecture, 10, 36, dtype="float64", **options)
    loaded.load_state_dict(sae.state_dict())
    assert torch.equal(loaded.eval()(x)[0], sae(x)[0])


@pytest.mark.parametrize(
    ("architecture", "options", "text"),
    [
        ("matching_pursuit", {"k": 0}, "k must be >= 1"),
        ("orthogonal", {"k": 4, "every": 0}, "every must be >= 1"),
        ("orthogonal", {"k": 4, "chunk_size": 1}, "chunk_size must be >= 2"),
        ("orthogonal", {"k": 4, "orthogonality": -1.0}, "orthogonality must be in"),
        ("mutual_choice", {"k": 4, "zipf_slack": -1.0}, "zipf_slack must be in"),
        ("feature_choice", {"k": 4, "profile": "flat"}, "profile must be one of"),
        ("feature_choice", {"k": 37}, "k must be in"),
        ("batch_topk", {"k": 4, "threshold_rate": 0}, "threshold_rate must be in"),
    ],
)
def test_options_out_of_range_are_refused(architecture, options, text):
    with pytest.raises(InvalidArgumentError, match=text):
        make_sae(architecture, 10, 36, **options)


def test_rows_that_are_not_finite_are_named():
    x = rows(40)
    x[3, 7] = np.nan
    for sae in (
        MatryoshkaSAE(10, 36, k=4),
        OrthogonalSAE(10, 36, k=4),
        FeatureChoiceSAE(10, 36, k=4),
        MatchingPursuitSAE(10, 36, k=4),
    ):
        with pytest.raises(InvalidArgumentError, match="NaN in row 3, column 7"):
            sae.loss(x)
