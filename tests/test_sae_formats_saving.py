"""What is saved reconstructs the same for any reader; damage, full disks and code are met."""

import itertools
import json

import numpy as np
import pytest
import sae_formats_oracle as oracle
from sae_files import (
    D,
    N,
    X,
    agree,
    dictionary,
    made,
    read_saelens,
    safetensors,
    sparsify_tensors,
    torch,
    write_dictionary,
    write_sparsify,
)
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
    load_sparsify,
    save,
)

# ---- saving ------------------------------------------------------------------------------------


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


def expressible(kind, form, normalize, scale, pre_bias):
    if kind == "matching_pursuit":
        fine = scale == 1 and pre_bias
        return {"saelens": fine, "subspan": True}.get(form, False)
    if form == "sparsify":
        return kind == "topk" and normalize == "none"
    if kind == "feature_choice":  # with thresholds of either sign, so values of either sign
        return form == "subspan"
    return form != "dictionary_learning" or normalize == "none"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_is_saved_reconstructs_the_same_everywhere(tmp_path, kind, form):
    """By an independent reader of the format, and by ours."""
    choices = itertools.product(["none", "layer_norm"], [1.0, 0.4], [True, False])
    for i, (normalize, scale, pre_bias) in enumerate(choices):
        options = {"normalize": normalize, "scale": scale, "pre_bias": pre_bias}
        options |= {"b_enc": None} if i % 3 == 0 else {}
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


def test_autoencoders_save_and_load_themselves(tmp_path):
    sae = made("topk")
    sae.save(tmp_path, format="sparsify")
    again = Autoencoder.load(tmp_path, dtype=np.float32)
    assert again.dtype == "float32"
    np.testing.assert_allclose(again.reconstruct(np.float32(X)), sae.reconstruct(X), 1e-4, 1e-4)


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
        refused(FileFormatError, r"whole \.safetensors file")
    weights.write_bytes(b"\xff" * 4000)
    refused(FileFormatError, r"whole \.safetensors file")
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


def test_no_damage_goes_another_way(tmp_path):
    """Bytes changed anywhere: it loads, or says what is wrong with the file."""
    rng = np.random.default_rng(8)
    save(made("gated"), tmp_path)
    files = [tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"]
    for file in files:
        whole = file.read_bytes()
        outcomes = set()
        for _ in range(150):
            content = bytearray(whole)
            for place in rng.integers(min(len(whole), 700), size=3):
                content[place] = rng.integers(256)
            file.write_bytes(bytes(content))
            try:
                load(tmp_path)
            except SubspanError as error:
                outcomes.add(type(error))
        assert FileFormatError in outcomes
        file.write_bytes(whole)


def test_an_odd_place_in_a_file_is_no_trouble(tmp_path):
    """Tensors need not be aligned."""
    save(made("topk"), tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    file.write_bytes(
        (length + 1).to_bytes(8, "little") + whole[8 : 8 + length] + b" " + whole[8 + length :]
    )
    np.testing.assert_array_equal(load(tmp_path).reconstruct(X), made("topk").reconstruct(X))


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
