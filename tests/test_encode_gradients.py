"""Sparse encoders: gradients, against differences and the dense map."""

import numpy as np
import pytest
from encode_oracle import ACTIVATIONS
from subspan import batch_topk_encode, sparse_decode, threshold_encode, topk_encode
from subspan.errors import UnsupportedError


def parameters(rng, rows, d, n, dtype=np.float64):
    torch = pytest.importorskip("torch")
    shapes = ((rows, d), (d, n), (n,), (d,))
    return [
        torch.from_numpy(np.asarray(rng.standard_normal(s), dtype)).requires_grad_() for s in shapes
    ]


def dense_values(kind, activation, x, w_enc, b_enc, b_pre):
    """The same by torch, from all of z."""
    import torch

    z = (x - b_pre) @ w_enc + b_enc
    if kind == "topk":
        if activation == "relu_first":
            z = z.relu()
        values = z.topk(6).values
        return values.relu() if activation == "relu" else values
    if kind == "batch":
        mask = torch.zeros(z.numel(), dtype=torch.bool)
        mask[z.detach().flatten().topk(4 * len(z)).indices] = True
        return z[mask.reshape(z.shape)]
    return z[z > 0.7]


def our_values(kind, activation, x, w_enc, b_enc, b_pre):
    if kind == "topk":
        return topk_encode(x, w_enc, b_enc, k=6, b_pre=b_pre, activation=activation).values
    if kind == "batch":
        return batch_topk_encode(x, w_enc, b_enc, k=4, b_pre=b_pre, activation=activation).values
    return threshold_encode(x, w_enc, b_enc, threshold=0.7, b_pre=b_pre).values


KINDS = [*(("topk", a) for a in ACTIVATIONS), ("batch", "relu"), ("threshold", None)]


@pytest.mark.parametrize(("kind", "activation"), KINDS)
def test_gradients_by_differences(kind, activation, rng):
    torch = pytest.importorskip("torch")
    given = parameters(rng, 5, 4, 11)
    assert torch.autograd.gradcheck(lambda *given: our_values(kind, activation, *given), given)


@pytest.mark.parametrize(("kind", "activation"), KINDS)
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_are_those_of_the_dense_map(kind, activation, transposed, rng):
    torch = pytest.importorskip("torch")
    given = parameters(rng, 70, 40, 200, np.float32)
    if transposed:
        given[1] = given[1].detach().t().contiguous().t().requires_grad_()
    ours = our_values(kind, activation, *given)
    theirs = dense_values(kind, activation, *given)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.from_numpy(rng.standard_normal(tuple(ours.shape)).astype(np.float32))
    mine = torch.autograd.grad((ours * weights).sum(), given)
    other = torch.autograd.grad((theirs * weights).sum(), given)
    for a, b in zip(mine, other, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-5
    assert mine[1].stride() == given[1].stride()


def test_gradients_of_a_whole_autoencoder(rng):
    """Against the dense one, with a loss of the reconstruction, over leading axes."""
    torch = pytest.importorskip("torch")
    x, w_enc, b_enc, b_dec = parameters(rng, 6 * 5, 16, 90, np.float32)
    x = x.detach().reshape(6, 5, 16).requires_grad_()
    w_dec = w_enc.detach().t().contiguous().requires_grad_()
    given = (x, w_enc, b_enc, w_dec, b_dec)

    code = topk_encode(x, w_enc, b_enc, k=7, b_pre=b_dec)
    mine = (sparse_decode(*code, w_dec, b_dec) - x).square().mean()
    z = (x - b_dec) @ w_enc + b_enc
    values, indices = z.topk(7)
    full = torch.zeros_like(z).scatter(-1, indices, values.relu())
    theirs = (full @ w_dec + b_dec - x).square().mean()
    assert torch.allclose(mine, theirs, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad(mine, given), torch.autograd.grad(theirs, given), strict=True
    ):
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-5


def test_what_a_rectifier_cut_has_no_gradient():
    torch = pytest.importorskip("torch")
    bias = torch.tensor([-5.0, 2, -1, 0, -3, 7], requires_grad=True)
    x, w_enc = torch.zeros(1, 3), torch.zeros(3, 6)
    for activation, wanted in (
        ("relu", [0, 1, 0, 0, 0, 1]),
        ("relu_first", [0, 1, 0, 0, 0, 1]),
        ("identity", [0, 1, 1, 1, 0, 1]),
    ):
        values = topk_encode(x, w_enc, bias, k=4, activation=activation).values
        (gradient,) = torch.autograd.grad(values.sum(), bias)
        assert gradient.tolist() == wanted


@pytest.mark.parametrize("wanted", ["x", "w_enc", "b_enc", "b_pre"])
def test_only_the_gradients_that_are_wanted(wanted, rng):
    torch = pytest.importorskip("torch")
    names = ("x", "w_enc", "b_enc", "b_pre")
    given = dict(zip(names, parameters(rng, 7, 5, 20), strict=True))
    everything = torch.autograd.grad(our_values("topk", "relu", **given).sum(), given.values())
    alone = {k: v if k == wanted else v.detach() for k, v in given.items()}
    our_values("topk", "relu", **alone).sum().backward()
    assert torch.equal(given[wanted].grad, everything[names.index(wanted)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_half_precision(dtype, rng):
    torch = pytest.importorskip("torch")
    given = [
        a.detach().to(getattr(torch, dtype)).requires_grad_() for a in parameters(rng, 9, 8, 30)
    ]
    wide = [a.detach().float().requires_grad_() for a in given]
    mine = torch.autograd.grad(our_values("topk", "identity", *given).float().sum(), given)
    other = torch.autograd.grad(our_values("topk", "identity", *wide).sum(), wide)
    for a, b in zip(mine, other, strict=True):
        assert a.dtype == getattr(torch, dtype)
        assert torch.allclose(a.float(), b, rtol=2e-2, atol=2e-2)


def test_gradients_pass_through_other_forms(rng):
    torch = pytest.importorskip("torch")
    given = parameters(rng, 7, 5, 20)
    weights = torch.from_numpy(rng.standard_normal((7, 20)))
    code = topk_encode(*given[:3], k=4, b_pre=given[3])
    full = torch.zeros(7, 20, dtype=torch.float64).scatter(-1, code.indices, code.values)
    wanted = torch.autograd.grad((full * weights).sum(), given, retain_graph=True)
    for form in (code.to_dense(20), code.to_torch(20).to_dense()):
        got = torch.autograd.grad((form * weights).sum(), given, retain_graph=True)
        for a, b in zip(got, wanted, strict=True):
            assert torch.allclose(a, b)


def test_where_there_is_no_gradient(rng):
    torch = pytest.importorskip("torch")
    x, w_enc, b_enc, b_pre = parameters(rng, 4, 3, 9)
    code = topk_encode(x, w_enc, b_enc, k=2, b_pre=b_pre)
    assert code.values.requires_grad
    assert not code.indices.requires_grad
    assert not batch_topk_encode(x, w_enc, k=2).offsets.requires_grad
    with torch.no_grad():
        assert not topk_encode(x, w_enc, b_enc, k=2).values.requires_grad
    (first,) = torch.autograd.grad(code.values.square().sum(), w_enc, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    bars = torch.ones(9, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnsupportedError, match=r"\[threshold_encode\] threshold must not require"):
        threshold_encode(x, w_enc, threshold=bars)
    with torch.no_grad():
        threshold_encode(x, w_enc, threshold=bars)
