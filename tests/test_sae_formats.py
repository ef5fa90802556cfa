"""Files of other libraries: what is loaded reconstructs as they do."""

import json

import numpy as np
import pytest
import sae_formats_oracle as oracle
from sae_files import (
    DICTIONARIES,
    SAELENS,
    D,
    N,
    X,
    agree,
    arrays,
    config_of,
    dictionary,
    read_saelens,
    safetensors,
    sparsify_tensors,
    torch,
    write_dictionary,
    write_saelens,
    write_sparsify,
)
from subspan.errors import (
    FileFormatError,
    UnsupportedError,
)
from subspan.sae import Autoencoder
from subspan.sae.formats import (
    load,
    load_dictionary_learning,
    load_openai,
    load_saelens,
    save,
)

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


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 1e-2, 1.0])
@pytest.mark.parametrize("unit", [True, False])
def test_saelens_matching_pursuit_ends_rows_early(tmp_path, threshold, repeats, unit):
    """Trap: by default it stops at a small rest, and when a latent is taken again."""
    cfg = config_of("matching_pursuit", max_iterations=None, residual_threshold=threshold)
    cfg["stop_on_duplicate_support"] = not repeats
    tensors = arrays("W_dec", "b_dec", unit=True)
    tensors["W_dec"] *= 1 if unit else 0.8
    write_saelens(tmp_path, cfg, tensors)
    wanted = oracle.saelens(cfg, tensors, X)
    sae = load(tmp_path)
    agree(sae, wanted)
    assert sae.k == D
    save(sae, tmp_path / "again", format="saelens")
    agree(load(tmp_path / "again"), wanted)
    fixed = Autoencoder(**vars(sae) | {"tolerance": 0.0, "no_repeats": False})
    if unit and (threshold == 1 or not repeats):
        assert np.abs(fixed.reconstruct(X) - wanted[1]).max() > 0.01
    tensors32 = {name: x.astype(np.float32) for name, x in tensors.items()}
    write_saelens(tmp_path, cfg | {"dtype": "float32"}, tensors32)
    of_torch = load(tmp_path).to_torch().reconstruct(torch.tensor(X, dtype=torch.float32))
    assert np.abs(of_torch.numpy() - wanted[1]).max() < 1e-3


# ---- others ------------------------------------------------------------------------------------


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
