"""TopK and BatchTopK: the loss and all gradients against dense autograd; recovery; bad input."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sae_oracle import (  # noqa: E402
    assert_same_gradients,
    dense_auxk,
    dense_batch_topk,
    dense_topk,
    dictionary_data,
    gradients,
    module,
    pre_activations,
    rows,
)
from subspan import RaggedCode, set_num_threads, topk_encode  # noqa: E402
from subspan.errors import DtypeError, InvalidArgumentError  # noqa: E402
from subspan.sae import SAE, BatchTopKSAE, TopKSAE, make_sae  # noqa: E402

DEAD = torch.arange(36) % 3 == 0


def dense_codes(sae, x):
    z = pre_activations(sae, x)
    if isinstance(sae, TopKSAE):
        return dense_topk(z, sae.k)
    return dense_batch_topk(z, int(sae.k * len(x)))


def dense_loss(sae, x, dead=None):
    made = dense_codes(sae, x) @ sae.w_dec + sae.b_dec
    loss = (made - x).square().mean() * float(sae.loss_scale)
    if dead is not None:
        loss = loss + sae.aux_coefficient * dense_auxk(sae, x, x - made, dead)
    return loss


@pytest.mark.parametrize("dead", [None, DEAD])
@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_loss_and_gradients_are_those_of_dense_autograd(architecture, pre_bias, dead):
    sae = module(architecture, k=4, k_aux=5, pre_bias=pre_bias)
    sae.loss_scale.fill_(1.7)
    x = rows()
    ours, theirs = sae.loss(x, dead=dead), dense_loss(sae, x, dead)
    assert torch.allclose(ours.total, theirs, rtol=1e-12)
    assert sorted(ours.terms) == (
        ["reconstruction"] if dead is None else ["auxk", "reconstruction"]
    )
    assert torch.allclose(sum(ours.terms.values()), ours.total)
    found = assert_same_gradients(sae, ours.total, theirs)
    assert all(g.abs().max() > 0 for g in found.values())
    assert torch.allclose(ours.code.to_dense(36), dense_codes(sae, x))
    assert torch.allclose(ours.reconstruction, dense_codes(sae, x) @ sae.w_dec + sae.b_dec)


def test_the_auxiliary_loss_leaves_live_latents_alone():
    sae = module("topk", k=4)
    x = rows()
    with_dead, without = sae.loss(x, dead=DEAD), sae.loss(x)
    a, b = gradients(sae, with_dead.total), gradients(sae, without.total)
    assert torch.equal(a["w_enc"][:, ~DEAD], b["w_enc"][:, ~DEAD])
    assert torch.equal(a["b_enc"][~DEAD], b["b_enc"][~DEAD])
    assert torch.equal(a["w_dec"][~DEAD], b["w_dec"][~DEAD])
    assert not torch.equal(a["w_enc"][:, DEAD], b["w_enc"][:, DEAD])


@pytest.mark.parametrize("dead", [1, 3, 36])
def test_fewer_dead_than_k_aux(dead):
    sae = module("topk", k=4, k_aux=5)
    mask = torch.arange(36) < dead
    assert_same_gradients(sae, sae.loss(rows(), dead=mask).total, dense_loss(sae, rows(), mask))
    nothing = sae.loss(rows(), dead=torch.zeros(36, dtype=torch.bool))
    assert list(nothing.terms) == ["reconstruction"]


def test_a_rest_that_does_not_vary_has_no_auxiliary_loss():
    sae = module("topk", k=4)
    x = rows()
    for same in (x[:1], x[:1].expand(7, -1), x[1:2].expand(100, -1)):
        out = sae.loss(same, dead=DEAD)
        assert out.terms["auxk"] == 0
        assert all(torch.isfinite(g).all() for g in gradients(sae, out.total).values())
    exact = TopKSAE(4, 4, k=4, dtype="float64")
    with torch.no_grad():
        for w in (exact.w_enc, exact.w_dec):
            w.copy_(torch.eye(4))
    out = exact.loss(rows(6, 4).abs(), dead=torch.ones(4, dtype=torch.bool))
    assert float(out.total.detach()) == 0


def test_all_latents_for_all_rows():
    sae = module("topk", k=36)
    assert_same_gradients(sae, sae.loss(rows()).total, dense_loss(sae, rows()))


def test_one_row_of_a_batch_is_topk():
    a, b = module("topk", k=4), module("batch_topk", k=4)
    x = rows(1)
    assert torch.allclose(a.loss(x).total, b.loss(x).total, rtol=1e-14)


def test_half_a_latent_for_each_row():
    sae = module("batch_topk", k=0.5)
    assert len(sae.loss(rows()).code.values) == 7


def test_no_latents_where_nothing_is_positive():
    sae = module("batch_topk", k=4)
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    out = sae.loss(rows())
    assert len(out.code.values) == 0
    sae.update_threshold_(out.code)
    assert int(sae.threshold_batches) == 0
    assert not bool(sae.fired(out.code).any())


def test_the_threshold_selects_as_many(rng):
    x, _ = dictionary_data(rng, 6000)
    x = torch.from_numpy(x)
    sae = BatchTopKSAE(16, 64, k=5, threshold_rate=0.1).initialize(x[:2000])
    assert isinstance(sae.eval().encode(x), RaggedCode)  # of the batch, as there is no threshold
    sae.train()
    smallest = []
    for batch in x[:4000].split(500):
        code = sae.loss(batch).code
        sae.update_threshold_(code)
        smallest.append(float(code.values[code.values > 0].min().detach()))
    assert np.isclose(float(sae.threshold), np.mean(smallest))
    held_out = sae.eval().encode(x[4000:])
    assert abs(len(held_out.values) / 2000 / 5 - 1) < 0.05
    code = sae.train().loss(x[:500]).code
    sae.update_threshold_(code)
    last = float(code.values[code.values > 0].min().detach())
    assert np.isclose(float(sae.threshold), np.mean(smallest) + (last - np.mean(smallest)) / 9)


def test_what_was_active():
    sae = module("topk", k=4)
    code = sae.encode(rows())
    wanted = (code.to_dense(36) != 0).any(0)
    assert torch.equal(sae.fired(code), wanted)
    assert torch.equal(sae.fired(code, above=0.5), (code.to_dense(36) > 0.5).any(0))


def test_norms_and_their_gradients():
    sae = module("topk", k=4)
    sae.loss(rows()).total.backward()
    before = sae.w_dec.grad.clone()
    sae.remove_parallel_gradient_()
    assert (sae.w_dec.grad * sae.w_dec).sum(-1).abs().max() < 1e-14
    along = before - sae.w_dec.grad
    assert torch.allclose(along, (before * sae.w_dec).sum(-1, keepdim=True) * sae.w_dec)
    with torch.no_grad():
        sae.w_dec.mul_(3)
        sae.w_dec[2] = 0
    sae.normalize_decoder_()
    norms = sae.w_dec.norm(dim=-1)
    assert norms[2] == 0
    assert torch.allclose(norms[[0, 1, 3]], torch.ones(3, dtype=torch.float64))
    free = module("topk", k=4, unit_norm=False)
    kept = free.w_dec.detach().clone()
    free.normalize_decoder_()
    assert torch.equal(free.w_dec, kept)


@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_bits_do_not_depend_on_threads(architecture):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((1600, 24), generator=generator)
    dead = torch.arange(200) % 5 == 0
    seen = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            set_num_threads(count)
            sae = make_sae(architecture, 24, 200, k=6, seed=4).initialize(x)
            adam = torch.optim.Adam(sae.parameters(), lr=1e-2)
            for _ in range(2):
                adam.zero_grad()
                out = sae.loss(x, dead=dead)
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


def test_nothing_of_batch_times_latents_is_stored():
    """By torch's own account of memory: the largest tensor is a gradient, or rows of the batch."""
    d, n, batch = 16, 512, 2048
    sae = TopKSAE(d, n, k=4)
    x = torch.randn((batch, d), generator=torch.Generator().manual_seed(0))
    dead = torch.arange(n) < 20
    with torch.profiler.profile(profile_memory=True) as profile:
        sae.loss(x, dead=dead).total.backward()
    sizes = [e.cpu_memory_usage for e in profile.events()]
    largest = max(batch * d, d * n, batch * 8 * 2) * 4
    assert 0 < max(sizes) < 3 * largest < batch * n * 4


@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_there_and_back(architecture):
    sae = module(architecture, k=4)
    x = rows()
    sae.update_threshold_(sae.loss(x).code)
    sae.scale.fill_(1.5)
    a = sae.export()
    assert a.architecture == architecture
    sae.eval()
    assert torch.equal(a.reconstruct(x), sae(x)[0].detach())
    again = SAE.from_autoencoder(a.to_numpy(), seed=1)
    assert type(again) is type(sae)
    assert torch.equal(again.eval()(x)[0], sae(x)[0])
    loaded = make_sae(architecture, 10, 36, k=4, dtype="float64")
    loaded.load_state_dict(sae.state_dict())
    assert torch.equal(loaded.eval()(x)[0], sae(x)[0])
    with torch.no_grad():
        sae.w_dec.zero_()
    assert a.w_dec.abs().max() > 0


def test_leading_axes_and_other_dtypes():
    sae = module("topk", k=4)
    x = rows(12).reshape(3, 4, 10)
    made, code = sae(x)
    assert made.shape == x.shape
    assert code.values.shape == (3, 4, 4)
    out = sae.loss(x)
    assert out.reconstruction.shape == x.shape
    assert torch.equal(out.reconstruction, made)
    assert sae(x.float())[0].dtype == torch.float64


def test_certified_products_give_the_same_bits():
    x = torch.randn((300, 32), generator=torch.Generator().manual_seed(0))
    a, b = (TopKSAE(32, 256, k=4, precision=p) for p in ("exact", "certified"))
    assert torch.equal(a.encode(x).values, b.encode(x).values)
    assert torch.equal(a.encode(x).values, topk_encode(x, a.w_enc, a.b_enc, k=4).values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_rows_that_are_not_finite_are_named(architecture, bad):
    sae, x = module(architecture, k=4), rows()
    x[3, 7] = bad
    with pytest.raises(InvalidArgumentError, match=r"\[SAE.loss\] X must be finite, .* row 3, col"):
        sae.loss(x)
    with pytest.raises(InvalidArgumentError, match=r"\[SAE.initialize\] X must be finite"):
        sae.initialize(x)


def test_weights_that_diverged_are_named():
    sae = module("topk", k=4)
    with torch.no_grad():
        sae.w_dec.fill_(torch.nan)
    with pytest.raises(InvalidArgumentError, match="weights diverged"):
        sae.loss(rows())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 37}, r"k must be in 1\.\.36, got 37"),
        ({"k": 0}, r"k must be in 1\.\.36, got 0"),
        ({"k": 4, "k_aux": 37}, r"k_aux must be in 1\.\.36"),
        ({"k": 4, "aux_coefficient": -1}, r"aux_coefficient must be in"),
        ({"k": 4, "precision": "fast"}, "precision must be one of"),
        ({"k": 4, "seed": -1}, "seed must be >= 0"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(InvalidArgumentError, match=rf"\[TopKSAE\] {text}"):
        TopKSAE(10, 36, **options)


def test_arguments_that_do_not_fit_are_refused():
    sae = module("topk", k=4)
    with pytest.raises(InvalidArgumentError, match=r"x must have shape \(\.\.\., 10\)"):
        sae.loss(rows(4, 9))
    with pytest.raises(InvalidArgumentError, match="x must have rows, got none"):
        sae.loss(rows(0))
    with pytest.raises(InvalidArgumentError, match="x_sample must have rows, got none"):
        sae.initialize(rows(0))
    with pytest.raises(DtypeError, match="x must be a torch tensor of floats, got ndarray"):
        sae.encode(rows().numpy())
    with pytest.raises(DtypeError, match="x must be a torch tensor of floats, got a tensor of int"):
        sae.encode(rows().long())
    with pytest.raises(InvalidArgumentError, match=r"dead must have shape \(36,\)"):
        sae.loss(rows(), dead=torch.zeros(35, dtype=torch.bool))
    with pytest.raises(DtypeError, match="dead must be a tensor of bool, got one of int64"):
        sae.loss(rows(), dead=torch.zeros(36, dtype=torch.int64))
    with pytest.raises(DtypeError, match="dtype must be float16"):
        TopKSAE(10, 36, k=4, dtype="int8")
    with pytest.raises(InvalidArgumentError, match="architecture must be one of"):
        make_sae("vae", 10, 36)
    with pytest.raises(InvalidArgumentError, match="architecture must be 'batch_topk' for"):
        BatchTopKSAE.from_autoencoder(sae.export())
