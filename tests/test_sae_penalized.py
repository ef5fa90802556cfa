"""JumpReLU, Gated and ReLU autoencoders: formulas of their losses and of their gradients."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sae_oracle import (  # noqa: E402
    assert_same_gradients,
    dictionary_data,
    gradients,
    module,
    pre_activations,
    rows,
    train,
)
from subspan import set_num_threads  # noqa: E402
from subspan.errors import InvalidArgumentError  # noqa: E402
from subspan.sae import SAE, Autoencoder, JumpReLUSAE, ReLUSAE, make_sae  # noqa: E402

KINDS = ["jumprelu", "gated", "relu"]


class Heaviside(torch.autograd.Function):
    """H(z - bar) with the estimated gradient of the bar, entry by entry of dense z."""

    @staticmethod
    def forward(ctx, z, bar, width):
        ctx.save_for_backward(z, bar)
        ctx.width = width
        return (z > bar).to(z.dtype)

    @staticmethod
    def backward(ctx, g):
        z, bar = ctx.saved_tensors
        near = ((z - bar).abs() < ctx.width / 2).to(z.dtype)
        return None, (-near * g / ctx.width).sum(0), None


class JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, bar, width):
        ctx.save_for_backward(z, bar)
        ctx.width = width
        return z * (z > bar)

    @staticmethod
    def backward(ctx, g):
        z, bar = ctx.saved_tensors
        near = ((z - bar).abs() < ctx.width / 2).to(z.dtype)
        return g * (z > bar), (-near * g * bar / ctx.width).sum(0), None


def dense_jumprelu(sae, x):
    z, bar = pre_activations(sae, x), sae.threshold
    made = JumpReLU.apply(z, bar, sae.bandwidth) @ sae.w_dec + sae.b_dec
    l0 = Heaviside.apply(z, bar, sae.bandwidth).sum() / len(x)
    if sae.l0_target is not None:
        l0 = (l0 / sae.l0_target - 1) ** 2
    return (made - x).square().sum() / len(x) + sae.sparsity * sae.sparsity_scale * l0


def dense_gated(sae, x):
    u = (x - sae.b_dec if sae.pre_bias else x) @ sae.w_enc
    gate = (u + sae.b_gate).relu()
    code = (u + sae.b_gate > 0) * (u * sae.r_mag.exp() + sae.b_mag).relu()
    error = (code @ sae.w_dec + sae.b_dec - x).square().sum()
    frozen = (gate @ sae.w_dec.detach() + sae.b_dec.detach() - x).square().sum()
    return (error + frozen + sae.sparsity * sae.sparsity_scale * gate.sum()) / len(x)


def dense_relu(sae, x):
    code = pre_activations(sae, x).relu()
    error = (code @ sae.w_dec + sae.b_dec - x).square().sum()
    size = (code * sae.w_dec.norm(dim=-1)).sum()
    return (error + sae.sparsity * sae.sparsity_scale * size) / len(x)


DENSE = {"jumprelu": dense_jumprelu, "gated": dense_gated, "relu": dense_relu}


def made(architecture, **options):
    if architecture == "jumprelu":
        options = {"bandwidth": 0.5, "threshold": 0.4, **options}
    return module(architecture, sparsity=0.3, **options)


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("jumprelu", {}),
        ("jumprelu", {"threshold_space": "linear", "unit_norm": False}),
        ("jumprelu", {"l0_target": 3.0}),
        ("jumprelu", {"bandwidth": 3.0}),  # the window reaches below zero
        ("gated", {}),
        ("relu", {}),
        ("relu", {"unit_norm": True}),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(architecture, options, pre_bias):
    sae = made(architecture, pre_bias=pre_bias, **options)
    sae.sparsity_scale = 0.7
    x = rows()
    ours, theirs = sae.loss(x), DENSE[architecture](sae, x)
    assert torch.allclose(ours.total, theirs, rtol=1e-12)
    assert torch.allclose(sum(ours.terms.values()), ours.total)
    found = assert_same_gradients(sae, ours.total, theirs)
    assert all(g.abs().max() > 0 for g in found.values())


def test_a_threshold_learns_from_its_window_alone():
    sae = made("jumprelu", threshold_space="linear", bandwidth=0.2)
    x = rows(1)
    z = pre_activations(sae, x)[0]
    near = ((z - sae.threshold).abs() < 0.1).detach()
    assert 0 < int(near.sum()) < 36
    learnt = gradients(sae, sae.loss(x).total)["linear_threshold"]
    assert torch.equal(learnt != 0, near)
    l0 = gradients(sae, sae.loss(x).terms["l0"])["linear_threshold"]
    assert torch.allclose(l0, -0.3 / 0.2 * near.to(l0.dtype))


def test_the_space_of_the_threshold_is_a_chain_rule():
    a, b = (made("jumprelu", threshold_space=space) for space in ("log", "linear"))
    with torch.no_grad():
        b.linear_threshold.copy_(a.threshold)
        for name in ("w_enc", "w_dec", "b_enc", "b_dec"):
            getattr(b, name).copy_(getattr(a, name))
    ours = gradients(a, a.loss(rows()).total)["log_threshold"]
    theirs = gradients(b, b.loss(rows()).total)["linear_threshold"]
    assert torch.allclose(ours, theirs * a.threshold)


def test_one_threshold_for_all_is_batch_topk(rng):
    weights = [rng.standard_normal(s) for s in ((10, 36), (36, 10), (10,), (36,))]
    a = Autoencoder("batch_topk", *weights, k=3, threshold=0.8)
    b = Autoencoder("jumprelu", *weights, threshold=np.full(36, 0.8))
    x = rng.standard_normal((20, 10))
    assert np.array_equal(a.reconstruct(x), b.reconstruct(x))
    sae = SAE.from_autoencoder(b)
    assert torch.allclose(sae(torch.from_numpy(x))[0], torch.from_numpy(a.reconstruct(x)))


def test_the_decoder_learns_nothing_from_the_auxiliary_term():
    sae = made("gated")
    found = gradients(sae, sae.loss(rows()).terms["auxiliary"])
    assert float(found["w_dec"].abs().max()) == float(found["r_mag"].abs().max()) == 0
    assert found["w_enc"].abs().max() > 0
    assert found["b_gate"].abs().max() > 0
    main = gradients(sae, sae.loss(rows()).terms["reconstruction"])
    assert float(main["b_gate"].abs().max()) == 0


def test_gates_shrink_less_than_a_penalty(threads):
    """Relative bias E|x̂|^2 / E[x·x̂] is nearer to 1 at no more active latents."""
    threads(1)
    x = torch.from_numpy(dictionary_data(np.random.default_rng(2), 8000)[0])

    def measured(architecture, sparsity):
        sae = make_sae(architecture, 16, 32, sparsity=sparsity).initialize(x)
        train(sae, x, steps=200, lr=1e-2)
        sae.eval()
        made_, code = (y.detach() if torch.is_tensor(y) else y for y in sae(x))
        shrunk = made_.square().sum() / (x * made_).sum()
        return float(shrunk), int((code.values != 0).sum()) / len(x)

    gated, few = measured("gated", 0.4)
    plain, more = measured("relu", 1.0)
    assert few <= more
    assert abs(gated - 1) < 0.02
    assert abs(plain - 1) > 0.1


def test_scaling_a_latent_and_its_direction_changes_nothing():
    sae = made("relu")
    x = rows()
    before = sae.loss(x)
    factors = torch.rand(36, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    with torch.no_grad():
        sae.w_dec.mul_(factors[:, None])
        sae.w_enc.div_(factors)
        sae.b_enc.div_(factors)
    after = sae.loss(x)
    assert torch.allclose(after.total, before.total, rtol=1e-13)
    assert torch.allclose(after.reconstruction, before.reconstruction, rtol=1e-12)
    with torch.no_grad():
        sae.w_dec[3] = 0
    assert torch.isfinite(gradients(sae, sae.loss(x).total)["w_dec"]).all()


@pytest.mark.parametrize("architecture", KINDS)
def test_inputs_are_brought_to_a_norm(architecture):
    x = rows(500) * 30 + 5
    sae = make_sae(architecture, 10, 36, dtype="float64").initialize(x)
    norm = (x * sae.scale).square().sum(-1).mean().sqrt()
    wanted = 10**0.5 if architecture == "relu" else 1.0
    assert torch.allclose(norm, torch.tensor(wanted, dtype=norm.dtype))
    out = sae.loss(x)
    scaled = make_sae(architecture, 10, 36, dtype="float64").initialize(x / 30).loss(x / 30)
    assert torch.allclose(out.total, scaled.total)
    assert torch.allclose(out.reconstruction, scaled.reconstruction * 30)
    sae.eval()
    assert torch.allclose(sae.export().reconstruct(x), sae(x)[0].detach(), rtol=1e-12)
    with pytest.raises(InvalidArgumentError, match="x_sample must not be all zero"):
        sae.initialize(x * 0)


@pytest.mark.parametrize("architecture", KINDS)
def test_there_and_back(architecture):
    sae = made(architecture).eval()
    x = rows()
    a = sae.export()
    assert a.architecture == architecture
    assert torch.allclose(a.reconstruct(x), sae(x)[0].detach(), rtol=1e-13)
    again = SAE.from_autoencoder(a.to_numpy())
    assert type(again) is type(sae)
    assert torch.allclose(again.eval()(x)[0], sae(x)[0], rtol=1e-13)


@pytest.mark.parametrize("architecture", KINDS)
def test_bits_do_not_depend_on_threads(architecture):
    x = torch.randn((1500, 24), generator=torch.Generator().manual_seed(0))
    seen = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            set_num_threads(count)
            options = {"threshold": 0.1, "bandwidth": 0.1} if architecture == "jumprelu" else {}
            sae = make_sae(architecture, 24, 200, seed=4, **options).initialize(x)
            adam = torch.optim.Adam(sae.parameters(), lr=1e-2, betas=(0.0, 0.999))
            for _ in range(2):
                adam.zero_grad()
                out = sae.loss(x)
                out.total.backward()
                sae.remove_parallel_gradient_()
                adam.step()
                sae.normalize_decoder_()
            assert len(out.code.values) > 1 << 15  # more than one thread would sum
            state = [*sae.state_dict().values(), out.total.detach()]
            seen.append(b"".join(v.contiguous().numpy().tobytes() for v in state))
    finally:
        torch.set_num_threads(before)
        set_num_threads(None)
    assert all(bits == seen[0] for bits in seen)


def test_the_number_of_latents_reaches_its_target(threads):
    threads(1)
    x = torch.from_numpy(dictionary_data(np.random.default_rng(2), 4000)[0])
    sae = JumpReLUSAE(
        16, 32, sparsity=1.0, l0_target=4.0, threshold=0.1, bandwidth=0.1
    ).initialize(x)  # fmt: skip
    train(sae, x, steps=250, lr=1e-2)
    assert abs(len(sae.eval().encode(x).values) / len(x) - 4) < 0.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sparsity": -1}, "sparsity must be in"),
        ({"bandwidth": 0}, "bandwidth must be in"),
        ({"threshold": 0}, "threshold must be in"),
        ({"l0_target": 40}, "l0_target must be in"),
        ({"threshold_space": "cubic"}, "threshold_space must be one of"),
        ({"input_norm": -1}, "input_norm must be in"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(InvalidArgumentError, match=rf"\[JumpReLUSAE\] {text}"):
        JumpReLUSAE(10, 36, **options)


def test_rows_that_are_not_finite_are_named():
    x = rows()
    x[3, 7] = np.nan
    for architecture in KINDS:
        with pytest.raises(InvalidArgumentError, match="NaN in row 3, column 7"):
            made(architecture).loss(x)
    with pytest.raises(InvalidArgumentError, match="architecture must be 'relu' for ReLUSAE"):
        ReLUSAE.from_autoencoder(made("gated").export())
