"""Quantisers against their rules, and two widths in a principal basis against the rivals."""

import numpy as np
import pytest
import subspan
from subspan.activations import load_model
from subspan.compression import mixed_basis, quantize, rotate_residual
from subspan.compression._turns import turn
from subspan.errors import InvalidArgumentError, UnsupportedError


def slow(x, bits, symmetric):
    """The published rules, one group at a time."""
    out = []
    for value in x:
        if symmetric:
            top = 2 ** (bits - 1) - 1
            scale = abs(value).max() / top if abs(value).max() > 0 else 1.0
            out.append(np.clip(np.round(value / scale), -top - 1, top) * scale)
            continue
        low, high = min(value.min(), 0.0), max(value.max(), 0.0)
        if low == high:
            low, high = -1.0, 1.0
        scale = (high - low) / (2**bits - 1)
        zero = np.round(-low / scale)
        q = np.clip(np.round(value / scale) + zero, 0, 2**bits - 1)
        out.append((q - zero) * scale)
    return np.array(out)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_rules(rng, bits, symmetric):
    x = rng.normal(size=(6, 24)) * np.arange(6)[:, None] + rng.normal(size=(6, 1))
    x[2] = 0
    found = quantize(x, bits, symmetric=symmetric)
    assert np.allclose(found.dequantize(), slow(x, bits, symmetric), atol=1e-12)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    assert found.values.min() >= low
    assert found.values.max() <= high
    assert (found.zeros is None) == symmetric
    assert np.abs(found.dequantize() - x).max() <= 1.01 * found.scales.max()
    assert not found.dequantize()[2].any()
    grouped = quantize(x, bits, group=8, symmetric=symmetric)
    assert np.allclose(
        grouped.dequantize(), slow(x.reshape(-1, 8), bits, symmetric).reshape(x.shape), atol=1e-12
    )
    zeros = 0 if symmetric else 18
    assert grouped.storage().n_bytes == -(-144 * bits // 8) + 36 + -(-zeros * bits // 8)


@pytest.mark.parametrize("symmetric", [True, False])
def test_clipping_never_costs_and_pays_with_long_tails(rng, symmetric):
    x = rng.laplace(size=(40, 256))
    plain, clipped = (quantize(x, 3, symmetric=symmetric, clip=clip) for clip in (False, True))
    lost = [np.square(found.dequantize() - x).sum(1) for found in (plain, clipped)]
    assert (lost[1] <= lost[0]).all()
    assert lost[1].sum() < 0.85 * lost[0].sum()
    assert (clipped.scales >= 0.5 * plain.scales - 1e-12).all()
    assert clipped.storage() == plain.storage()


def test_torch_rounds_as_numpy_does(rng):
    torch = pytest.importorskip("torch")
    from subspan.compression.modules import Rounding, round_groups

    x = rng.normal(size=(3, 5, 24)) * np.arange(5)[:, None]
    for bits in (2, 4, 8, 16):
        found = round_groups(torch.from_numpy(x), bits).numpy()
        assert np.allclose(found, quantize(x, bits).dequantize(), atol=1e-12)
    cut = x.reshape(3, 5, 3, 8)
    for together in (False, True):
        wanted = []
        for part, bits in ((cut[..., :6], 4), (cut[..., 6:], 8)):
            flat = part.reshape(3, 5, -1) if together else part
            wanted.append(quantize(flat, bits).dequantize().reshape(part.shape))
        made = Rounding(3, 2, (4, 8), together=together)
        found = made(torch.from_numpy(x)).numpy()
        assert np.allclose(found, np.concatenate(wanted, -1).reshape(x.shape), atol=1e-12)
        error = np.linalg.norm(found - x) / np.linalg.norm(x)
        assert made.relative_error == pytest.approx(error)
    half = Rounding(1, 0, (4, 8), together=True)(torch.from_numpy(x).half())
    assert half.dtype == torch.float16
    assert torch.isfinite(half).all()


def test_sixteen_bits_change_nothing_that_matters(rng):
    x = rng.normal(size=(50, 32)) * 0.7 ** np.arange(32)
    assert np.abs(quantize(x, 16).dequantize() - x).max() < 1e-4
    basis = mixed_basis(x.T @ x)
    made = basis.dequantize(*basis.quantize(x, low_bits=16, high_bits=16))
    assert np.abs(made - x).max() < 1e-4


@pytest.mark.parametrize(
    ("d", "even"),
    [(1, True), (2, True), (4, True), (8, True), (12, True), (24, True), (64, True), (72, True),
     (576, True), (3, False), (28, False), (36, False), (100, False)],
)  # fmt: skip
def test_turns_are_orthogonal_and_spread_out(d, even):
    made = turn(d, np.random.default_rng(0))
    assert np.allclose(made @ made.T, np.eye(d), atol=1e-12)
    assert np.allclose(np.abs(made), d**-0.5) == even
    assert not np.array_equal(made, turn(d, np.random.default_rng(1))) or d == 1


@pytest.mark.parametrize("d", [64, 48])
@pytest.mark.parametrize("seed", [0, 1])
def test_mixed_precision_in_a_principal_basis_beats_the_rivals(d, seed):
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(d, d)))
    loud = np.where(np.arange(d) % 11 == 3, 12.0, 1.0)  # channels of outliers, as in models
    x = (rng.normal(size=(4000, d)) * 0.85 ** np.arange(d)) @ axes.T * loud
    seen, x = x[:2000], x[2000:]
    basis = mixed_basis(seen.T @ seen, seed=seed)
    assert basis.high == d // 8
    low, high = basis.quantize(x)
    bits = (low.values.size * low.bits + high.values.size * high.bits) / x.size
    assert bits == 4.5

    def error(made):
        return np.square(made - x).mean()

    around = turn(d, rng)
    ours = error(basis.dequantize(low, high))
    turned = error(quantize(x @ around, 4).dequantize() @ around.T)
    plain = error(quantize(x, 4).dequantize())
    order = np.argsort(seen.var(0))
    kept = np.empty_like(x)
    for part, width in ((order[: -d // 8], 4), (order[-d // 8 :], 8)):
        kept[:, part] = quantize(x[:, part], width).dequantize()
    assert ours < turned < plain
    assert ours < error(kept)


def test_the_basis_is_principal(rng):
    x = rng.normal(size=(300, 16)) * np.linspace(0.1, 4, 16)
    basis = mixed_basis(subspan.Moments(precision="float64").update(x), high_fraction=0.25)
    assert basis.high == 4
    u = basis.rotation
    assert np.allclose(u.T @ u, np.eye(16), atol=1e-10)
    g = x.T @ x
    held = np.trace(u[:, -4:].T @ g @ u[:, -4:])
    assert held == pytest.approx(np.sort(np.linalg.eigvalsh(g))[-4:].sum(), rel=1e-9)
    same = mixed_basis(g, high_fraction=0.25, seed=0)
    assert np.allclose(np.abs(u.T @ same.rotation)[:12, 12:], 0, atol=1e-8)


def test_libraries_and_dtypes(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(2, 5, 16))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        found = quantize(torch.from_numpy(x).to(dtype), 8, group=4)
        assert found.dequantize().dtype == dtype
        assert found.dequantize().shape == (2, 5, 16)
    basis = mixed_basis(np.eye(16))
    made = basis.dequantize(*basis.quantize(torch.from_numpy(x).float()))
    assert made.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: quantize(x, 1), r"bits must be in 2\.\.16, got 1"),
        (lambda x: quantize(x, 4, group=5), r"group must divide the last axis of x \(16\), got 5"),
        (lambda x: quantize(x * np.nan, 4), "x must be finite"),
        (lambda _: quantize(np.array(1.0), 4), "x must have 1 or more axes"),
        (lambda x: mixed_basis(x.T), r"gram must be \(4, 4\)"),
        (mixed_basis, r"gram must be \(16, 16\)"),
        (lambda _: mixed_basis(np.eye(1)), "gram must have two columns or more, got 1"),
        (lambda _: mixed_basis(np.eye(4), high_fraction=2), "high_fraction must be in"),
        (lambda _: mixed_basis(np.full((4, 4), np.inf)), "gram of matrix 0 must be finite"),
        (lambda x: mixed_basis(np.eye(16)).quantize(x * np.inf), "x must be finite"),
    ],
)
def test_what_is_refused(rng, call, message):
    with pytest.raises(InvalidArgumentError, match=message):
        call(np.asarray(rng.normal(size=(4, 16))))


@pytest.mark.parametrize("tied", [False, True])
def test_a_rotated_model_computes_the_same_in_its_principal_basis(tied):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
        attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    model = load_model(transformers.LlamaForCausalLM(config))
    with torch.no_grad():
        for name, p in model.hf.named_parameters():
            if "norm" in name or "bias" in name:
                p.add_(0.3 * torch.randn(p.shape))
    ids = torch.randint(0, 64, (3, 20))
    with torch.no_grad():
        before = model.hf(ids, output_hidden_states=True)
        stream = torch.cat([h.reshape(-1, 32) for h in before.hidden_states[:-1]]).double()
        basis = mixed_basis(stream.T @ stream)
        rotate_residual(model, basis.rotation)
        after = model.hf(ids, output_hidden_states=True)
    assert torch.allclose(before.logits, after.logits, atol=1e-5)
    turned = before.hidden_states[1].double() @ torch.from_numpy(basis.rotation)
    assert torch.allclose(after.hidden_states[1].double(), turned, atol=1e-5)
    power = torch.cat([h.reshape(-1, 32) for h in after.hidden_states[:-1]]).square().mean(0)
    assert power[-basis.high :].min() > power[: -basis.high].max()


def test_what_rotations_refuse(tiny):
    transformers = pytest.importorskip("transformers")
    model = load_model(tiny)
    with pytest.raises(InvalidArgumentError, match=r"rotation must be \(32, 32\), got \(16, 16\)"):
        rotate_residual(model, np.eye(16))
    with pytest.raises(
        InvalidArgumentError, match=r"must be orthogonal to 1e-6, got 3\.0e\+00 off"
    ):
        rotate_residual(model, 2 * np.eye(32))
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=16, bos_token_id=0, eos_token_id=0
    )
    with pytest.raises(UnsupportedError, match=r"built like Llama, .* got GPT2LMHeadModel"):
        rotate_residual(load_model(transformers.GPT2LMHeadModel(config)), np.eye(32))
