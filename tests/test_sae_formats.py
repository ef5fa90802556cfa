"""Files of other libraries: what is loaded reconstructs as they do, and so does what is saved."""

import itertools
import json

import numpy as np
import pytest
import sae_formats_oracle as oracle
from subspan.errors import (
    FileFormatError,
    InvalidArgumentError,
    OutputError,
    SubspanError,
    UnsupportedError,
)
from subspan.sae import ARCHITECTURES, Autoencoder
from subspan.sae.formats import (
    FORMATS,
    load,
    load_dictionary_learning,
    load_openai,
    load_saelens,
    load_sparsify,
    save,
)

safetensors = pytest.importorskip("safetensors.numpy")
torch = pytest.importorskip("torch")

D, N = 10, 36
X = np.random.default_rng(9).normal(size=(50, D)) * 2 + 1


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


# ---- SAELens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAELENS)
@pytest.mark.parametrize("normalize", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("pre_bias", [True, False])
def test_saelens_for_inference(tmp_path, kind, normalize, pre_bias):
    cfg = config_of(kind, normalize_activations=normalize, apply_b_dec_to_input=pre_bias)
    tensors = arrays(*SAELENS[kind], unit=kind == "matching_pursuit")
    if not pre_bias and kind == "matching_pursuit":
        tensors["b_dec"] *= 0  # SAELens leaves it out, see below
    write_saelens(tmp_path, cfg, tensors)
    sae = load(tmp_path)
    agree(sae, oracle.saelens(cfg, tensors, X))
    assert sae.metadata["model_name"] == "gpt2"


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_saelens_scores_times_decoder_norms(tmp_path, kind):
    """Trap: the selection is by z times the norm of the decoder row, unless that is folded."""
    cfg = config_of(kind, k=5, rescale_acts_by_decoder_norm=True)
    cfg |= {"matryoshka_widths": [6, 20]} if kind.startswith("m") else {}
    tensors = arrays(*SAELENS["topk"])
    if kind != "topk":
        tensors["topk_threshold"] = np.array(0.7)
    write_saelens(tmp_path, cfg, tensors)
    sae = load_saelens(tmp_path)
    wanted = oracle.saelens(cfg, tensors, X)
    agree(sae, wanted)
    assert sae.k == 5
    plain, _ = oracle.saelens(cfg | {"rescale_acts_by_decoder_norm": False}, tensors, X)
    assert np.any((plain > 0) != (wanted[0] > 0))
    if kind.startswith("m"):
        assert sae.group_sizes == (6, 14, 16)
    if kind != "topk":  # the norms are in the scores unless the table says otherwise
        del cfg["rescale_acts_by_decoder_norm"]
        write_saelens(tmp_path, cfg, tensors)
        agree(load_saelens(tmp_path), wanted)


def test_saelens_log_thresholds(tmp_path):
    tensors = arrays(*SAELENS["standard"], "log_threshold")
    write_saelens(tmp_path, config_of("jumprelu"), tensors)
    agree(load(tmp_path), oracle.saelens(config_of("jumprelu"), tensors, X))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_are_strict(tmp_path, dtype):
    """Trap: a latent exactly at its threshold is off, also at a negative one."""
    eye = np.eye(4, dtype=dtype)
    tensors = {"W_enc": eye, "W_dec": eye, "b_enc": np.zeros(4, dtype), "b_dec": np.zeros(4, dtype)}
    tensors["threshold"] = np.array([0.5, 0.5, -1, 0], dtype)
    cfg = config_of("jumprelu", d_in=4, d_sae=4)
    write_saelens(tmp_path, cfg, tensors)
    x = np.array([[0.5, 0.75, -0.5, 0.0], [-1, 0.25, 0.125, 3]], dtype)
    sae = load(tmp_path)
    agree(sae, oracle.saelens(cfg, tensors, x), x)
    assert sae.encode(x).offsets.tolist() == [0, 1, 3]


def test_saelens_scale_of_activations(tmp_path):
    """Trap: expected_average_only_in needs a factor that is not in the weights."""
    cfg = config_of("topk", normalize_activations="expected_average_only_in")
    tensors = arrays(*SAELENS["topk"])
    write_saelens(tmp_path, cfg, tensors)
    with pytest.raises(FileFormatError, match="scale must be given"):
        load(tmp_path)
    f, x_hat = oracle.saelens(cfg | {"normalize_activations": "none"}, tensors, 0.3 * X)
    agree(load(tmp_path, scale=0.3), (f, x_hat / 0.3))
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.3}))
    sae = load(tmp_path)
    agree(sae, (f, x_hat / 0.3))
    # Folded at saving: the new file says "none", and any reader gets it right.
    save(sae, tmp_path / "folded", format="saelens")
    cfg, tensors = read_saelens(tmp_path / "folded")
    assert cfg["normalize_activations"] == "none"
    agree(sae, oracle.saelens(cfg, tensors, X))


@pytest.mark.parametrize(
    ("flat", "kind"),
    [
        ({}, "standard"),
        ({"architecture": "jumprelu", "activation_fn_str": "relu"}, "jumprelu"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}, "topk"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 5}}, "topk"),
        ({"architecture": "gated", "normalize_activations": None}, "gated"),
    ],
)
def test_saelens_before_6(tmp_path, flat, kind):
    """Trap: one flat table with other names; top-k must not be read as ReLU (their issue 553)."""
    tensors = arrays(*SAELENS[kind])
    tensors["scaling_factor"] = np.ones(N)
    cfg = {"d_in": D, "d_sae": N, "dtype": "float64", "hook_point": "blocks.3.hook_resid_pre"}
    cfg |= {"normalize_activations": False, "model_name": "gpt2", "l1_coefficient": 1.0} | flat
    write_saelens(tmp_path, cfg, tensors)
    sae = load(tmp_path)
    agree(sae, oracle.saelens(config_of(kind), tensors, X))
    assert sae.metadata["hook_name"] == "blocks.3.hook_resid_pre"
    assert "d_in" not in sae.metadata


def test_saelens_fine_tuning_factors(tmp_path):
    tensors = arrays(*SAELENS["standard"], "scaling_factor")
    cfg = config_of("standard", finetuning_scaling_factor=True)
    write_saelens(tmp_path, cfg, tensors)
    _, x_hat = oracle.saelens(cfg, tensors, X)
    np.testing.assert_allclose(load(tmp_path).reconstruct(X), x_hat, 1e-9)
    write_saelens(tmp_path, config_of("standard"), tensors)
    with pytest.raises(FileFormatError, match="have no scaling_factor"):
        load(tmp_path)


def test_saelens_matching_pursuit_without_the_bias(tmp_path):
    """Trap: where b_dec is not subtracted, SAELens does not add it either."""
    cfg = config_of("matching_pursuit", apply_b_dec_to_input=False)
    tensors = arrays("W_dec", "b_dec", unit=True)
    write_saelens(tmp_path, cfg, tensors)
    wanted = oracle.saelens(cfg, tensors | {"b_dec": np.zeros(D)}, X)
    agree(load(tmp_path), wanted)
    for name, value in (("residual_threshold", 1e-2), ("stop_on_duplicate_support", True)):
        write_saelens(tmp_path, cfg | {name: value}, tensors)
        with pytest.raises(UnsupportedError, match="end a row early"):
            load(tmp_path)


# ---- others ------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("options", [{}, {"normalize_decoder": False}, {"num_latents": 0}])
def test_sparsify(tmp_path, options):
    """Traps: W_dec is (n, d) as it is, and b_dec is subtracted whatever normalize_decoder says."""
    folder, tensors = tmp_path / "layers.10.mlp", sparsify_tensors()
    cfg = write_sparsify(folder, tensors, **options)
    sae = load(folder)
    agree(sae, oracle.sparsify(cfg, tensors, X))
    assert sae.relu_first
    assert sae.metadata == {"hook_name": "layers.10.mlp"}


def test_the_rectifier_before_the_selection_changes_indices_not_values(tmp_path):
    """Trap: sparsify may select zeros, at the smallest indices; OpenAI selects negatives first."""
    tensors = sparsify_tensors()
    tensors["encoder.bias"] -= 3  # hardly anything is positive
    cfg = write_sparsify(tmp_path, tensors)
    first = load(tmp_path)
    save(first, tmp_path / "saelens", format="saelens")
    after = load(tmp_path / "saelens")
    assert after.relu_first
    other = Autoencoder(**vars(first) | {"relu_first": False})
    a, b = first.encode(X), other.encode(X)
    assert np.any(a.values == 0)
    assert np.any(a.indices != b.indices)
    np.testing.assert_array_equal(a.to_dense(N), b.to_dense(N))
    agree(first, oracle.sparsify(cfg, tensors, X))


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


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_dictionary_learning(tmp_path, kind):
    """Trap: JumpReLU and the new standard class do not subtract b_dec, the others do."""
    state = dictionary(kind)
    write_dictionary(tmp_path, kind, state)
    sae = load(tmp_path)
    agree(sae, oracle.dictionary_learning(kind, state, X), tolerance=1e-7)
    assert sae.metadata == {"lm_name": "pythia", "layer": 8}
    if kind not in {"AutoEncoderTopK", "BatchTopKSAE"}:  # known by the names of the tensors
        write_dictionary(tmp_path / "bare", None, state)
        (tmp_path / "config.json").unlink()
        agree(load(tmp_path / "bare"), oracle.dictionary_learning(kind, state, X))


def test_dictionary_learning_needs_a_class_where_names_do_not_tell(tmp_path):
    state = dictionary("BatchTopKSAE")
    write_dictionary(tmp_path, None, state)
    with pytest.raises(FileFormatError, match="dict_class must be given"):
        load(tmp_path)
    for kind in ("BatchTopKSAE", "AutoEncoderTopK"):
        agree(load(tmp_path, dict_class=kind), oracle.dictionary_learning(kind, state, X), X, 1e-7)
    # A checkpoint beside finds its class one folder up.
    write_dictionary(tmp_path, "BatchTopKSAE", state)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ae.pt").rename(tmp_path / "checkpoints" / "ae_100.pt")
    assert load(tmp_path / "checkpoints" / "ae_100.pt").architecture == "batch_topk"


def test_a_threshold_that_was_never_set_is_none(tmp_path):
    """Trap: -1 is no threshold; with it every positive latent would be active."""
    state = dictionary("BatchTopKSAE") | {"threshold": torch.tensor(-1.0)}
    write_dictionary(tmp_path, "BatchTopKSAE", state)
    sae = load(tmp_path)
    assert sae.threshold is None
    assert sae.encode(X).offsets[-1] == 5 * len(X)


def test_a_backup_of_training_is_scaled(tmp_path):
    """Trap: a backup's biases are in the units of normalized rows."""
    state = dictionary("AutoEncoderTopK")
    backup = {"step": 7, "ae": state, "optimizer": {"state": {}}, "norm_factor": 2.5}
    write_dictionary(tmp_path, "AutoEncoderTopK", backup)
    f, x_hat = oracle.dictionary_learning("AutoEncoderTopK", state, X / 2.5)
    agree(load_dictionary_learning(tmp_path), (f, x_hat * 2.5))


@pytest.mark.parametrize("activation", ["TopK", "ReLU"])
@pytest.mark.parametrize("tied", [False, True])
def test_openai(tmp_path, activation, tied):
    t = arrays("W_enc", "W_dec", "b_enc", "b_dec", seed=4)
    state = {"pre_bias": t["b_dec"], "latent_bias": t["b_enc"], "encoder.weight": t["W_enc"].T}
    state |= {} if tied else {"decoder.weight": t["W_dec"].T}
    state["stats_last_nonzero"] = np.zeros(N, np.int64)
    state = {name: torch.tensor(np.ascontiguousarray(x)) for name, x in state.items()}
    state |= {"activation": activation}
    state["activation_state_dict"] = {"k": 5, "postact_fn": "ReLU"} if activation == "TopK" else {}
    torch.save(state, tmp_path / "6.pt")
    agree(load(tmp_path / "6.pt"), oracle.openai(state, X))
    torch.save(state | {"activation": "Identity"}, tmp_path / "6.pt")
    with pytest.raises(UnsupportedError, match="activation ReLU, or TopK"):
        load_openai(tmp_path / "6.pt")


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("name", ["params.npz", "params.safetensors", "other.npz"])
def test_gemma_scope(tmp_path, name, lower):
    t = arrays(*SAELENS["jumprelu"], seed=5)
    t = {key.replace("W_", "w_") if lower else key: value for key, value in t.items()}
    if name.endswith(".npz"):
        np.savez(tmp_path / name, **t)
    else:
        safetensors.save_file(t, tmp_path / name)
    wanted = oracle.gemma_scope(t, X)
    agree(load(tmp_path / name), wanted)
    if name.startswith("params"):
        agree(load(tmp_path), wanted)


# ---- saving ------------------------------------------------------------------------------------


def read_saelens(folder):
    return json.loads((folder / "cfg.json").read_text()), safetensors.load_file(
        folder / "sae_weights.safetensors"
    )


def read_sparsify(folder):
    return json.loads((folder / "cfg.json").read_text()), safetensors.load_file(
        folder / "sae.safetensors"
    )


def read_dictionary(folder):
    kind = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    return kind, torch.load(folder / "ae.pt", weights_only=True)


REFERENCES = {
    "saelens": lambda folder, x: oracle.saelens(*read_saelens(folder), x),
    "sparsify": lambda folder, x: oracle.sparsify(*read_sparsify(folder), x),
    "dictionary_learning": lambda folder, x: oracle.dictionary_learning(
        *read_dictionary(folder), x
    ),
}


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


def expressible(kind, form, normalize, scale, pre_bias):
    if kind == "matching_pursuit":
        fine = scale == 1 and pre_bias
        return {"saelens": fine, "subspan": True}.get(form, False)
    if form == "sparsify":
        return kind == "topk" and normalize == "none"
    return form != "dictionary_learning" or normalize == "none"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_saved_reconstructs_the_same_everywhere(tmp_path, kind, form):
    """By an independent reader of the format, and by ours."""
    choices = itertools.product(["none", "layer_norm"], [1.0, 0.4], [True, False], [True, False])
    for i, (normalize, scale, pre_bias, bias) in enumerate(choices):
        options = {"normalize": normalize, "scale": scale, "pre_bias": pre_bias}
        options |= {} if bias else {"b_enc": None}
        sae, folder = made(kind, **options), tmp_path / str(i)
        if not expressible(kind, form, normalize, scale, pre_bias):
            with pytest.raises(UnsupportedError, match="Use format='subspan'"):
                save(sae, folder, format=form)
            assert not list(folder.glob("*"))
            continue
        save(sae, folder, format=form)
        again = load(folder)
        wanted = sae.encode(X).to_dense(N), sae.reconstruct(X)
        agree(again, wanted, tolerance=1e-6 if form == "dictionary_learning" else 1e-9)
        if form in REFERENCES:
            f, x_hat = REFERENCES[form](folder, X)
            np.testing.assert_allclose(f, wanted[0], 1e-6, 1e-6)
            np.testing.assert_allclose(x_hat, wanted[1], 1e-6, 1e-6)
        if form in {"subspan", "saelens"}:
            same = ("architecture", "k", "group_sizes", "relu_first", "normalize", "pre_bias")
            for name in same:
                assert getattr(again, name) == getattr(sae, name), name
            assert again.metadata["hook_name"] == "blocks.3"


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka", "mutual_choice"])
def test_what_saelens_cannot_express_is_ours_alone(tmp_path, kind):
    sae = made(kind, threshold=None, k=4.5, scale=0.5)
    with pytest.raises(UnsupportedError, match="have a threshold"):
        save(sae, tmp_path, format="saelens")
    save(sae, tmp_path)
    assert read_saelens(tmp_path)[0]["architecture"] == f"subspan_{kind}"
    again = load(tmp_path)
    assert (again.k, again.scale, again.threshold) == (4.5, 0.5, None)
    agree(again, (sae.encode(X).to_dense(N), sae.reconstruct(X)))


def test_dictionary_learning_limits(tmp_path):
    for options, text in [({"k": 4.5}, "whole k"), ({"threshold": np.arange(N) + 0.5}, "one thr")]:
        with pytest.raises(UnsupportedError, match=text):
            save(made("batch_topk", **options), tmp_path, format="dictionary_learning")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_of_torch(tmp_path, form, dtype):
    sae = made("topk").to_torch(dtype=dtype)
    save(sae, tmp_path, format=form)
    again = load(tmp_path)
    assert again.dtype == ("float32" if dtype == "bfloat16" else dtype)
    for name in ("w_enc", "w_dec", "b_enc", "b_dec"):
        kept = getattr(sae, name).double().numpy()
        np.testing.assert_array_equal(getattr(again, name).astype(np.float64), kept)
    assert load(tmp_path, dtype=np.float64).dtype == "float64"


def test_bfloat16_of_numpy(tmp_path):
    pytest.importorskip("ml_dtypes")
    sae = made("topk").to_numpy().astype("bfloat16")
    for form in FORMATS:
        save(sae, tmp_path / form, format=form)
        kept = load(tmp_path / form).w_dec
        np.testing.assert_array_equal(kept, np.asarray(sae.w_dec, np.float32))


# ---- trouble -----------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_last_one(tmp_path, monkeypatch):
    sae = made("topk", dtype=np.float32)
    for form in FORMATS:
        folder = tmp_path / form
        save(sae, folder, format=form)
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        other = Autoencoder(**vars(sae) | {"k": 3, "w_dec": 2 * sae.w_dec})
        with monkeypatch.context() as patch:
            full = OSError(28, "No space left on device")

            def fail(*_, error=full, **__):
                raise error

            patch.setattr("subspan.report.files._open", fail)
            patch.setattr("torch.save", fail)
            with pytest.raises(OutputError, match="the disk is full"):
                save(other, folder, format=form)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        assert load(folder).k == 5


def test_damage_is_named(tmp_path):
    save(made("topk"), tmp_path)
    weights, config = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    whole, table = weights.read_bytes(), json.loads(config.read_text())
    tensors = safetensors.load_file(weights)

    def refused(error, text):
        with pytest.raises(error, match=text) as caught:
            load(tmp_path)
        assert isinstance(caught.value, SubspanError)

    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:cut])
        refused(FileFormatError, "whole safetensors file")
    weights.write_bytes(b"\xff" * 4000)
    refused(FileFormatError, "whole safetensors file")
    for change, text in [
        ({"W_enc": None}, "have the tensor 'W_enc'"),
        ({"b_dec": np.full(D, np.nan)}, "finite numbers in 'b_dec'"),
        ({"W_enc": tensors["W_enc"][:, :-1].copy()}, "w_enc must have shape"),
        ({"W_dec": tensors["W_dec"][:-1].copy()}, "have W_dec of shape"),
    ]:
        kept = {name: x for name, x in (tensors | change).items() if x is not None}
        safetensors.save_file(kept, weights)
        refused(FileFormatError, text)
    weights.write_bytes(whole)
    for change, error, text in [
        ({"architecture": "transcoder"}, UnsupportedError, "one of the architectures standard"),
        ({"k": 99}, FileFormatError, "k must be in"),
        ({"normalize_activations": "covariance_whitening"}, FileFormatError, "normalize must be"),
        ({"activation_fn": "tanh-relu"}, UnsupportedError, "activation 'relu' or 'topk'"),
        ({"d_sae": 35}, FileFormatError, "have W_dec of shape"),
    ]:
        config.write_text(json.dumps(table | change))
        refused(error, text)
    config.write_text("[]")
    refused(FileFormatError, "hold a table, got list")
    config.write_text("{")
    refused(FileFormatError, "must be JSON")
    config.unlink()
    refused(FileFormatError, r"folder with cfg.json and sae_weights.safetensors")


def test_other_damage_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for path, text in [
        (tmp_path, "must have one of sae_weights.safetensors.*got notes.txt"),
        (tmp_path / "notes.txt", "must be a folder, or one of the files.*another file"),
        (tmp_path / "missing", "nothing there"),
        (tmp_path / "missing.pt", "nothing there"),
        (tmp_path / "params.npz", "must be params.npz or a folder with it"),
    ]:
        with pytest.raises(FileFormatError, match=text):
            load(path)
    (tmp_path / "params.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(FileFormatError, match=r"whole \.npz file"):
        load(tmp_path)
    for change, text in [
        ({"transcode": True}, "transcode=True"),
        ({"activation": "groupmax"}, "activation='groupmax'"),
        ({"skip_connection": True}, "skip_connection=True"),
        ({"signed": True}, "signed=True"),
    ]:
        write_sparsify(tmp_path / "s", sparsify_tensors(), **change)
        with pytest.raises(UnsupportedError, match=text):
            load_sparsify(tmp_path / "s")
    write_sparsify(tmp_path / "s", sparsify_tensors(), num_latents=7)
    with pytest.raises(FileFormatError, match=r"W_dec of shape \(7, 10\)"):
        load(tmp_path / "s")
    write_dictionary(tmp_path / "d", "IdentityDict", dictionary("AutoEncoder"))
    with pytest.raises(UnsupportedError, match="dict_class must be one of AutoEncoder"):
        load(tmp_path / "d")
    with pytest.raises(InvalidArgumentError, match="format must be one of 'subspan'"):
        save(made("topk"), tmp_path, format="onnx")
    with pytest.raises(InvalidArgumentError, match="what JSON can hold"):
        save(made("topk", metadata={"model": object()}), tmp_path / "m")
    assert not list((tmp_path / "m").glob("*"))


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('this ran')",))


def test_code_in_a_file_does_not_run(tmp_path):
    torch.save({"encoder.weight": torch.zeros(3, 2), "x": Evil()}, tmp_path / "ae.pt")
    with pytest.raises(FileFormatError, match="nothing that runs code"):
        load(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.array([Evil()], dtype=object))
    (tmp_path / "ae.pt").unlink()
    with pytest.raises(FileFormatError, match=r"\.npz file of numbers"):
        load(tmp_path)
