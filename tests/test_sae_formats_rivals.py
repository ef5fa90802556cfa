"""SAELens and sparsify themselves read what we write, and we what they write; where installed."""

import warnings

import numpy as np
import pytest
from subspan.sae import Autoencoder
from subspan.sae.formats import load, save

torch = pytest.importorskip("torch")

D, N = 16, 48


def made(kind, **options):
    rng = np.random.default_rng(2)
    w_enc, w_dec = (rng.normal(size=shape).astype(np.float32) for shape in ((D, N), (N, D)))
    w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    b_dec, b_enc, *gates = (rng.normal(size=n).astype(np.float32) * 0.3 for n in (D, N, N, N, N))
    given = {"w_enc": w_enc, "w_dec": w_dec, "b_dec": b_dec, "b_enc": b_enc}
    if kind in {"gated", "matching_pursuit"}:
        given["b_enc"] = None
    given |= {
        "gated": dict(zip(("r_mag", "b_mag", "b_gate"), gates, strict=False)),
        "matching_pursuit": {"k": 9, "w_enc": None, "tolerance": 1.0, "no_repeats": True},
        "topk": {"k": 5},
        "jumprelu": {"threshold": np.abs(gates[0])},
        "relu": {},
    }.get(kind, {"k": 5, "threshold": 0.4})
    return Autoencoder(kind, **given | options)


def rows():
    return (np.random.default_rng(3).normal(size=(64, D)) + 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def sae_lens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens", exc_type=ImportError)


@pytest.mark.parametrize("normalize", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(
    "kind",
    [
        *("relu", "topk", "jumprelu", "gated", "matching_pursuit", "batch_topk", "matryoshka"),
        *("mutual_choice", "feature_choice"),
    ],
)
def test_saelens_loads_ours(tmp_path, sae_lens, kind, scale, normalize):
    scale = 1.0 if kind == "matching_pursuit" else scale
    ours = made(kind, normalize=normalize, scale=scale)
    save(ours, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sae_lens.SAE.load_from_disk(tmp_path)
    x = rows()
    with torch.no_grad():
        f = theirs.encode(torch.from_numpy(x))
        x_hat = theirs.decode(f)
    np.testing.assert_allclose(ours.encode(x).to_dense(N), f.numpy(), 1e-4, 2e-5)
    np.testing.assert_allclose(ours.reconstruct(x), x_hat.numpy(), 1e-4, 1e-4)
    # And back: what SAELens saves is what it was.
    theirs.save_model(tmp_path / "back")
    np.testing.assert_allclose(load(tmp_path / "back").reconstruct(x), x_hat.numpy(), 1e-4, 1e-4)
    assert load(tmp_path / "back").architecture == kind


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated"])
def test_we_load_what_saelens_trains(tmp_path, sae_lens, kind):
    options = {"d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu"}
    options |= {"k": 5} if "topk" in kind else {}
    options |= {"matryoshka_widths": [16, N]} if kind.startswith("matryoshka") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, config = sae_lens.registry.get_sae_training_class(kind)
        theirs = module(config(**options))
        with torch.no_grad():
            for weight in theirs.parameters():
                weight.add_(torch.rand(weight.shape, generator=torch.manual_seed(0)), alpha=0.2)
            if hasattr(theirs, "topk_threshold"):
                theirs.topk_threshold.fill_(0.8)
        theirs.save_model(tmp_path / "checkpoint")
        theirs.save_inference_model(tmp_path / "final")
        final = sae_lens.SAE.load_from_disk(tmp_path / "final")
    x = rows()
    with torch.no_grad():
        f = final.encode(torch.from_numpy(x))
        x_hat = final.decode(f).numpy()
    for place in ("checkpoint", "final"):
        ours = load(tmp_path / place)
        np.testing.assert_allclose(ours.reconstruct(x), x_hat, 1e-4, 1e-4, err_msg=place)
        np.testing.assert_allclose(ours.encode(x).to_dense(N), f.numpy(), 1e-4, 1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("pre_bias", [True, False])
def test_sparsify_loads_ours_and_we_theirs(tmp_path, scale, pre_bias, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparsify = pytest.importorskip("sparsify", exc_type=ImportError)
    capsys.readouterr()
    ours = made("topk", scale=scale, pre_bias=pre_bias)
    save(ours, tmp_path / "layers.1", format="sparsify")
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path / "layers.1")
    x = rows()
    with torch.no_grad():
        values, indices, _ = theirs.encode(torch.from_numpy(x))
        x_hat = theirs.decode(values, indices).numpy()
    np.testing.assert_allclose(ours.reconstruct(x), x_hat, 1e-4, 1e-4)
    theirs.save_to_disk(tmp_path / "back")
    np.testing.assert_allclose(load(tmp_path / "back").reconstruct(x), x_hat, 1e-4, 1e-4)
