"""Files as SAELens, sparsify and dictionary_learning write them, for tests of their readers."""

import json

import numpy as np
import pytest
from subspan.sae import Autoencoder

safetensors = pytest.importorskip("safetensors.numpy")
torch = pytest.importorskip("torch")

D, N = 10, 36
X = np.random.default_rng(9).normal(size=(30, D)) * 2 + 1


def arrays(*names, dtype=np.float64, seed=0, unit=False):
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (D, N), "W_dec": (N, D), "b_dec": (D,)}
    out = {name: rng.normal(size=shapes.get(name, (N,))) * 0.5 for name in names}
    if unit:
        out["W_dec"] /= np.linalg.norm(out["W_dec"], axis=1, keepdims=True)
    return {name: x.astype(dtype) for name, x in out.items()}


def agree(sae, wanted, x=X, tolerance=1e-9):
    """The same code, entry by entry, and the same reconstruction."""
    f, x_hat = wanted
    code = sae.encode(x)
    np.testing.assert_allclose(code.to_dense(sae.n_latents), f, tolerance, tolerance)
    np.testing.assert_allclose(sae.reconstruct(x), x_hat, tolerance, tolerance)


def write_saelens(folder, cfg, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    safetensors.save_file(tensors, folder / "sae_weights.safetensors")


SAELENS = {
    "standard": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "topk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "jumprelu": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "gated": ("W_enc", "W_dec", "b_dec", "r_mag", "b_mag", "b_gate"),
    "matching_pursuit": ("W_dec", "b_dec"),
}


def config_of(kind, **options):
    cfg = {"architecture": kind, "d_in": D, "d_sae": N, "dtype": "float64", "device": "cuda"}
    cfg |= {"apply_b_dec_to_input": True, "normalize_activations": "none"}
    cfg |= {"metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "h"}}
    cfg |= {"topk": {"k": 5}, "matching_pursuit": {"max_iterations": 4}}.get(kind, {})
    if kind == "matching_pursuit":
        cfg |= {"residual_threshold": 0.0, "stop_on_duplicate_support": False}
    return cfg | options


def write_sparsify(folder, tensors, **options):
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {"activation": "topk", "expansion_factor": 3, "normalize_decoder": True, "k": 5}
    cfg |= {"num_latents": N, "multi_topk": False, "skip_connection": False, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps(cfg | {"d_in": D} | options))
    safetensors.save_file(tensors, folder / "sae.safetensors")
    return cfg


def sparsify_tensors():
    t = arrays("W_enc", "W_dec", "b_enc", "b_dec", unit=True)
    weight = np.ascontiguousarray(t["W_enc"].T)
    t = {"W_dec": t["W_dec"], "b_dec": t["b_dec"], "encoder.bias": t["b_enc"] - 1}
    return t | {"encoder.weight": weight}


DICTIONARIES = {
    "AutoEncoder": "bias",
    "AutoEncoderNew": "decoder.bias",
    "GatedAutoEncoder": "decoder_bias",
    "AutoEncoderTopK": "b_dec",
    "BatchTopKSAE": "b_dec",
    "JumpReluAutoEncoder": "b_dec",
    "MatryoshkaBatchTopKSAE": "b_dec",
}


def dictionary(kind):
    """The state of one of their classes."""
    t = arrays("W_enc", "W_dec", "b_enc", "b_dec", "gate", "mag", "r_mag", "bars", seed=3)
    if kind in {"JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"}:
        state = {name: t[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        state["threshold"] = t["bars"] if kind.startswith("J") else np.array(0.6)
    else:
        state = {"encoder.weight": t["W_enc"].T, "decoder.weight": t["W_dec"].T}
        state |= {DICTIONARIES[kind]: t["b_dec"]}
        if kind == "GatedAutoEncoder":
            state |= {"gate_bias": t["gate"], "mag_bias": t["mag"], "r_mag": t["r_mag"]}
        else:
            state["encoder.bias"] = t["b_enc"]
        if kind == "BatchTopKSAE":
            state["threshold"] = np.array(0.6)
        if kind == "AutoEncoderTopK":
            state["threshold"] = np.array(-1.0)
    if "TopK" in kind:
        state["k"] = np.array(5, np.int32)
    if kind.startswith("M"):
        state["group_sizes"] = np.array([6, 30])
    return {name: torch.tensor(x.copy()) for name, x in state.items()}


def write_dictionary(folder, kind, state):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    if kind:
        trainer = {"dict_class": kind, "lm_name": "pythia", "layer": 8, "device": "cuda:0"}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))


def read_saelens(folder):
    return json.loads((folder / "cfg.json").read_text()), safetensors.load_file(
        folder / "sae_weights.safetensors"
    )


def made(kind, dtype=np.float64, **options):
    t = arrays(*SAELENS["standard"], "r_mag", "b_mag", "b_gate", "bars", seed=6, dtype=dtype)
    given = {name.lower(): t[name] for name in SAELENS["standard"]}
    if kind == "gated":
        given |= {name: t[name] for name in ("r_mag", "b_mag", "b_gate")}
    if kind == "matching_pursuit":
        given["w_dec"] = given["w_dec"] / np.linalg.norm(given["w_dec"], axis=1, keepdims=True)
    if kind in {"gated", "matching_pursuit"}:
        given["b_enc"] = None
    if kind == "matching_pursuit":
        given["w_enc"] = None
    if kind in {"jumprelu", "feature_choice"}:
        given["threshold"] = t["bars"]
    if kind in {"batch_topk", "matryoshka", "mutual_choice"}:
        given["threshold"] = 0.6
    if kind not in {"jumprelu", "feature_choice", "relu", "gated"}:
        given["k"] = 5
    if kind == "matryoshka":
        given["group_sizes"] = (4, 32)
    given["metadata"] = {"hook_name": "blocks.3", "lm_name": "pythia", "layer": 3}
    return Autoencoder(kind, **given | options)
