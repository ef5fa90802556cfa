"""Autoencoders on arrays: every architecture against its dense formula, and what is refused."""

import numpy as np
import pytest
from subspan import RaggedCode, SparseCode
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.sae import ARCHITECTURES, Autoencoder

D, N = 12, 40


def made(architecture, rng, dtype=np.float64, **options):
    def array(*shape, scale=1.0):
        return (rng.standard_normal(shape) * scale).astype(dtype)

    w_dec = array(N, D)
    w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    given = {"w_enc": array(D, N, scale=0.5), "w_dec": w_dec, "b_dec": array(D)}
    if architecture == "gated":
        given |= {name: array(N, scale=0.3) for name in ("r_mag", "b_mag", "b_gate")}
    elif architecture == "matching_pursuit":
        given["w_enc"] = None
    else:
        given["b_enc"] = array(N, scale=0.3)
    given |= {"topk": {"k": 5}, "matching_pursuit": {"k": 4}}.get(architecture, {})
    if architecture in {"jumprelu", "feature_choice"}:
        given["threshold"] = np.abs(array(N))
    if architecture in {"batch_topk", "mutual_choice", "matryoshka"}:
        given |= {"k": 5, "threshold": 0.8}
    return Autoencoder(architecture, **given | options)


def dense(sae, x):
    """The codes (rows, n) by the formula."""
    centred = x - sae.b_dec if sae.pre_bias else x
    z = centred @ sae.w_enc + (0 if sae.b_enc is None else sae.b_enc)
    kind = sae.architecture
    if kind == "topk":
        order = np.argsort(-z, axis=1, kind="stable")[:, : sae.k]
        out = np.zeros_like(z)
        np.put_along_axis(out, order, np.maximum(np.take_along_axis(z, order, 1), 0), 1)
        return out
    if kind == "gated":
        open_ = z + sae.b_gate > 0
        return open_ * np.maximum(z * np.exp(sae.r_mag) + sae.b_mag, 0)
    if kind == "matching_pursuit":
        out, rest = np.zeros_like(z), centred.copy()
        for _ in range(sae.k):
            products = rest @ sae.w_dec.T
            best = products.argmax(1)
            value = np.maximum(products[np.arange(len(x)), best], 0)
            out[np.arange(len(x)), best] += value
            rest -= value[:, None] * sae.w_dec[best]
        return out
    bar = 0 if kind == "relu" else sae.threshold
    return z * (z > (bar if kind == "feature_choice" else np.maximum(bar, 0)))


def test_there_is_one_of_each():
    assert len(set(ARCHITECTURES)) == 9


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_and_rows_are_those_of_the_formula(architecture, pre_bias, rng):
    sae = made(architecture, rng, pre_bias=pre_bias)
    x = rng.standard_normal((30, D)) * 2
    wanted = dense(sae, x)
    code = sae.encode(x)
    fixed = architecture in {"topk", "matching_pursuit"}
    assert isinstance(code, SparseCode if fixed else RaggedCode)
    assert np.allclose(code.to_dense(N), wanted, atol=1e-12)
    assert 0 < (wanted > 0).sum() < wanted.size / 2 or architecture in {"relu", "gated"}
    assert np.allclose(sae.decode(code), wanted @ sae.w_dec + sae.b_dec, atol=1e-12)
    assert np.allclose(sae.reconstruct(x), wanted @ sae.w_dec + sae.b_dec, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_torch_gives_the_same(architecture, rng):
    torch = pytest.importorskip("torch")
    sae = made(architecture, rng, np.float32, metadata={"site": "here"})
    x = rng.standard_normal((7, 3, D)).astype(np.float32)
    other = sae.to_torch()
    assert other.library == "torch"
    assert other.metadata == {"site": "here"}
    out = other.reconstruct(torch.from_numpy(x))
    assert out.shape == (7, 3, D)
    wanted = torch.from_numpy(sae.reconstruct(x))
    same = torch.allclose(out, wanted) if architecture == "gated" else torch.equal(out, wanted)
    assert same  # exponentials differ in the last bits
    back = other.to_numpy()
    assert back.library == "numpy"
    assert np.array_equal(back.reconstruct(x), sae.reconstruct(x))


def test_without_a_threshold_the_batch_decides(rng):
    sae = made("batch_topk", rng, threshold=None, k=2.5)
    code = sae.encode(rng.standard_normal((20, D)))
    assert len(code.values) == 50


def test_a_row_of_its_own(rng):
    for architecture in ARCHITECTURES:
        sae = made(architecture, rng)
        x = rng.standard_normal((3, D))
        assert np.array_equal(sae.reconstruct(x[0]), sae.reconstruct(x)[0])
        assert sae.reconstruct(x[:0]).shape == (0, D)


def test_layer_norm_is_undone(rng):
    """On rows that differ by shift and positive factor the normalised ones are alike."""
    sae = made("topk", rng, normalize="layer_norm")
    x = rng.standard_normal((9, D))
    mean, size = x.mean(1, keepdims=True), x.std(1, keepdims=True, ddof=1)
    plain = made("topk", np.random.default_rng(20240229))
    wanted = plain.reconstruct((x - mean) / (size + 1e-5)) * size + mean
    assert np.allclose(sae.reconstruct(x), wanted, atol=1e-12)
    assert np.allclose(sae.decode(sae.encode(x), x), wanted, atol=1e-12)
    assert np.allclose(sae.reconstruct(5 * x + 3), 5 * sae.reconstruct(x) + 3, atol=1e-3)
    with pytest.raises(InvalidArgumentError, match=r"\[Autoencoder.decode\] x must be given"):
        sae.decode(sae.encode(x))


def test_norms_and_scales_are_undone(rng):
    sae = made("relu", rng, normalize="constant_norm_rescale", scale=0.5)
    plain = made("relu", np.random.default_rng(20240229))
    x = rng.standard_normal((2, 5, D))
    x[0, 0] = 0
    factor = np.linalg.norm(x, axis=-1, keepdims=True) / D**0.5
    factor[0, 0] = 1
    wanted = plain.reconstruct(x / factor * 0.5) / 0.5 * factor
    assert np.allclose(sae.reconstruct(x), wanted, atol=1e-12)
    assert np.allclose(sae.decode(sae.encode(x), x).reshape(x.shape), wanted, atol=1e-12)
    torch = pytest.importorskip("torch")
    assert torch.allclose(sae.to_torch().reconstruct(torch.from_numpy(x)), torch.tensor(wanted))


def test_negative_thresholds_are_rectifiers(rng):
    sae = made("jumprelu", rng)
    other = Autoencoder("relu", sae.w_enc, sae.w_dec, sae.b_dec, sae.b_enc)
    x = rng.standard_normal((9, D))
    signed = made("feature_choice", np.random.default_rng(20240229), threshold=np.full(N, -1.0))
    assert bool((signed.encode(x).values < 0).any())
    for threshold in (-1.0, np.full(N, -1.0)):
        same = made("jumprelu", np.random.default_rng(20240229), threshold=threshold)
        assert np.array_equal(same.reconstruct(x), other.reconstruct(x))


def test_pursuit_leaves_what_no_atom_explains(rng):
    sae = Autoencoder("matching_pursuit", None, np.eye(3)[:2], np.zeros(3), k=3)
    code = sae.encode(np.array([[2.0, -1.0, 5.0]]))
    assert code.values.tolist() == [[2.0, 0.0, 0.0]]
    x = rng.standard_normal((20, D))
    sae = made("matching_pursuit", rng)
    rests = []
    for k in range(1, 7):
        step = Autoencoder("matching_pursuit", None, sae.w_dec, sae.b_dec, k=k)
        code, rest = step.encode(x), x - step.reconstruct(x)
        rests.append(np.linalg.norm(rest, axis=1))
        last = (rest * sae.w_dec[code.indices[:, -1]]).sum(1)
        assert np.abs(last).max() < 1e-12
    assert (np.diff(rests, axis=0) <= 1e-12).all()


def test_other_dtypes_of_x_are_converted(rng):
    sae = made("topk", rng, np.float32)
    x = rng.standard_normal((4, D)).astype(np.float16)
    out = sae.reconstruct(x)
    assert out.dtype == np.float32
    assert np.array_equal(out, sae.reconstruct(x.astype(np.float32)))
    assert sae.astype(np.float64).dtype == "float64"
    torch = pytest.importorskip("torch")
    half = sae.to_torch(dtype="bfloat16")
    assert half.astype("float32").dtype == "float32"
    assert half.reconstruct(torch.from_numpy(x)).dtype == torch.bfloat16
    assert half.to_numpy().dtype == "float32"


def test_bfloat16_of_numpy_goes_to_torch(rng):
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    sae = made("topk", rng, ml_dtypes.bfloat16)
    other = sae.to_torch()
    assert other.dtype == "bfloat16"
    assert np.array_equal(other.w_dec.float().numpy(), sae.w_dec.astype(np.float32))
    assert isinstance(other.b_dec, torch.Tensor)


def test_it_says_what_it_is(rng):
    sae = made("topk", rng, np.float32)
    assert repr(sae) == "Autoencoder('topk', width=12, n_latents=40, k=5, numpy float32)"
    assert (sae.width, sae.n_latents, sae.dtype, sae.library) == (D, N, "float32", "numpy")


@pytest.mark.parametrize(
    ("architecture", "options", "text"),
    [
        ("topk", {"k": None}, "k must be given for 'topk'"),
        ("topk", {"k": N + 1}, r"k must be in 1\.\.40, got 41"),
        ("jumprelu", {"threshold": None}, "threshold must be given"),
        ("batch_topk", {"threshold": None, "k": None}, "k or threshold must be given"),
        ("gated", {"b_mag": None}, "b_mag must be given"),
        ("gated", {"b_enc": np.zeros(N)}, "b_enc must be None"),
        ("matching_pursuit", {"b_enc": np.zeros(N)}, "b_enc must be None"),
        ("relu", {"w_enc": np.zeros((N, D))}, r"w_enc must have shape \(12, 40\)"),
        ("relu", {"b_enc": np.zeros(N - 1)}, r"b_enc must have shape \(40,\)"),
        ("relu", {"scale": 0.0}, "scale must be finite and not 0"),
        ("relu", {"normalize": "twice"}, "normalize must be one of"),
        ("matryoshka", {"group_sizes": (10, 10)}, "group_sizes must have the sum n = 40"),
    ],
)
def test_what_does_not_fit_is_refused(architecture, options, text, rng):
    with pytest.raises(InvalidArgumentError, match=rf"\[Autoencoder\] {text}"):
        made(architecture, rng, **options)


def test_what_is_of_another_kind_is_refused(rng):
    with pytest.raises(InvalidArgumentError, match="architecture must be one of 'topk'"):
        made("vae", rng)
    with pytest.raises(DtypeError, match="b_enc must be float64 like w_dec, got float32"):
        made("relu", rng, b_enc=np.zeros(N, np.float32))
    with pytest.raises(DtypeError, match="w_enc must be an array"):
        made("relu", rng, w_enc=None)
    with pytest.raises(DtypeError, match="w_dec must be one of float16"):
        Autoencoder("relu", *(np.zeros(s, np.int64) for s in ((2, 3), (3, 2), (2,))))
    one = (np.ones((1, 3)), np.ones((3, 1)), np.ones(1))
    with pytest.raises(InvalidArgumentError, match="width 1"):
        Autoencoder("relu", *one, normalize="layer_norm")


@pytest.mark.parametrize("method", ["encode", "reconstruct"])
def test_rows_that_do_not_fit_are_refused(method, rng):
    call = getattr(made("topk", rng), method)
    x = rng.standard_normal((4, D))
    for bad in (np.nan, np.inf):
        x[2, 3] = bad
        with pytest.raises(InvalidArgumentError, match="in row 2, column 3"):
            call(x)
    with pytest.raises(InvalidArgumentError, match="must have 12 columns"):
        call(np.zeros((4, D + 1)))
    with pytest.raises(DtypeError, match="x must be one of float16"):
        call(np.zeros((4, D), int))
    with pytest.raises(DtypeError, match="x must be an array"):
        call([[0.0] * D])
    torch = pytest.importorskip("torch")
    with pytest.raises(DtypeError, match="x must be of numpy like the weights, got torch"):
        call(torch.zeros(4, D))


def test_numpy_needs_no_torch(run_python):
    code = (
        "import sys, numpy as np\n"
        "import subspan.sae as sae\n"
        "a = sae.Autoencoder('topk', np.eye(3), np.eye(3), np.zeros(3), k=1)\n"
        "print(a.reconstruct(np.ones((2, 3))).sum(), 'torch' in sys.modules)\n"
    )
    assert run_python(code).stdout.split() == ["2.0", "False"]
