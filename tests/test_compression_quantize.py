"""Quantisers against their rules, and two widths in a principal basis against the rivals."""

import numpy as np
import pytest
import subspan
from subspan.compression import mixed_basis, quantize
from subspan.compression.quantize import _turn
from subspan.errors import InvalidArgumentError


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


def test_sixteen_bits_change_nothing_that_matters(rng):
    x = rng.normal(size=(50, 32)) * 0.7 ** np.arange(32)
    assert np.abs(quantize(x, 16).dequantize() - x).max() < 1e-4
    basis = mixed_basis(x.T @ x)
    made = basis.dequantize(*basis.quantize(x, low_bits=16, high_bits=16))
    assert np.abs(made - x).max() < 1e-4


@pytest.mark.parametrize("d", [8, 12, 64, 1])
def test_turns_are_orthogonal_and_spread_out(d):
    turn = _turn(d, np.random.default_rng(0))
    assert np.allclose(turn @ turn.T, np.eye(d), atol=1e-12)
    if d in {8, 64}:
        assert np.allclose(np.abs(turn), d**-0.5)


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

    turn = _turn(d, rng)
    ours = error(basis.dequantize(low, high))
    turned = error(quantize(x @ turn, 4).dequantize() @ turn.T)
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
