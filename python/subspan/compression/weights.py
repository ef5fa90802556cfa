"""Models whose weights were replaced: in memory, on disk, and back to dense."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from subspan import _arrays
from subspan.activations import Model
from subspan.compression.layers import matrix_of
from subspan.compression.matrices import Dense, Integers, Replacement, from_arrays
from subspan.compression.rotations.basis import Precision, Rotation
from subspan.compression.storage import bits_of
from subspan.errors import FileFormatError, InvalidArgumentError, OutputError, UnsupportedError
from subspan.report import Entry, write_json, write_safetensors

__all__ = ["export", "load", "put_layer", "replace_weights", "replaced", "rounded", "save"]

_SCHEMA = "subspan.compressed/1"
_TENSORS, _NOTES = "compressed.safetensors", "compressed.json"
_BASES = "rotation."  # how the names of their tensors begin


def replace_weights(model: Model, made: Mapping[str, Replacement]) -> dict[str, Any]:
    """Put replacements in the place of linear layers, and return the layers that were there.

    Parameters
    ----------
    model : Model
        Changed in place.
    made : mapping of str to Replacement
        By module name. Dense ones leave their layer as it is.

    Returns
    -------
    dict of str to torch module
        The layers that were taken out.

    Raises
    ------
    InvalidArgumentError
        There is no such layer, or it has another shape; nothing was changed then.
    """
    from subspan.compression.modules import make_layer

    layers = {}
    for name, one in made.items():
        old = _layer(model, name)
        shape = tuple(int(extent) for extent in matrix_of(old).shape)
        if shape != one.shape:
            raise InvalidArgumentError(
                f"[replace_weights] {name!r} must have a replacement of shape {shape}, got "
                f"{one.shape}"
            )
        new = make_layer(one, old)
        if new is not None:
            layers[name] = (old, new.train(old.training))
    for name, (_, new) in layers.items():
        put_layer(model, name, new)
    return {name: old for name, (old, _) in layers.items()}


@contextlib.contextmanager
def replaced(model: Model, made: Mapping[str, Replacement]) -> Iterator[Model]:
    """Have replacements in a model for the length of a ``with`` block; see `replace_weights`."""
    before = replace_weights(model, made)
    try:
        yield model
    finally:
        for name, old in before.items():
            put_layer(model, name, old)


def rounded(made: Mapping[str, Replacement], dtype: str) -> dict[str, Replacement]:
    """Return replacements with their values as a file of this dtype holds them (torch tensors)."""
    import torch

    def stored(x: Any) -> Any:
        tensor = torch.as_tensor(x)
        return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor

    return {
        name: one
        if isinstance(one, Dense)
        else from_arrays(
            one.kind, {part: stored(x) for part, x in one.arrays().items()},
            error=one.error, total=one.total,
        )
        for name, one in made.items()
    }  # fmt: skip


def save(
    folder: str | os.PathLike[str],
    made: Mapping[str, Replacement],
    *,
    base: Model,
    dtype: str = "float16",
    facts: Mapping[str, Any] | None = None,
    rotation: Rotation | None = None,
    precision: Precision | None = None,
) -> Path:
    """Write replacements as ``compressed.safetensors`` and ``compressed.json``.

    Parameters
    ----------
    folder : path
        Made if it is not there. Each file appears whole or not at all, the notes last.
    made : mapping of str to Replacement
        By module name; dense ones are named in the notes and not stored.
    base : Model
        The model they belong to: all else of it is needed to `load` them, and it is named by hash.
    dtype : {"float16", "bfloat16", "float32"}
        Of stored values.
    facts : mapping, optional
        Further notes: method, calibration, kept ratio.
    rotation, precision : Rotation, Precision, optional
        Of a rotated model, whose matrices these are.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InvalidArgumentError
        A value does not fit the dtype.
    OutputError
        The files cannot be written.

    Notes
    -----
    Tensors are ``<module>.A``, ``.B``, ``.bias`` of factors; ``.dict``, ``.codes_val`` and
    ``.codes_idx`` (bits) of dictionaries; ``.low``, ``.high`` (bits) and their scales of integers;
    ``rotation.residual``, ``.keys`` and ``.down`` of a rotated model. The file has the bytes that
    `Storage` counts, and the header.
    """
    bits = bits_of("save", dtype)
    where = Path(folder)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"[save] cannot create {str(where)!r}: {error.strerror}") from error
    entries, notes = [], {}
    for name, one in made.items():
        size = one.storage(bits=bits)
        notes[name] = {
            "kind": one.kind,
            "shape": list(one.shape),
            "error": float(one.error),
            "total": float(one.total),
            "bytes": size.to_dict(),
        }
        if not isinstance(one, Dense):
            for part, value in one.arrays().items():
                entries.append(_entry(f"{name}.{part}", value, dtype))
    if rotation is not None:
        entries += [Entry.of(_BASES + part, x) for part, x in rotation.tensors().items()]
        facts = {**(facts or {}), "rotation": asdict(precision or Precision())}
    metadata = {"format": "pt", "schema": _SCHEMA}
    write_safetensors(where / _TENSORS, entries, metadata)
    note = {"schema": _SCHEMA, "dtype": dtype, "base": base.name, "base_hash": base.fingerprint}
    write_json(where / _NOTES, note | dict(facts or {}) | {"modules": notes})
    return where


def load(folder: str | os.PathLike[str], model: Model | None = None) -> dict[str, Replacement]:
    """Read what `save` wrote, and put it into a model if one is given.

    Parameters
    ----------
    folder : path
        Of `save`.
    model : Model, optional
        The model that was compressed, from the same file; changed in place.

    Returns
    -------
    dict of str to Replacement
        By module name, without those that stayed dense; values in the dtype of the file.

    Raises
    ------
    FileNotFoundError
        There are no such files.
    FileFormatError
        They are damaged or do not belong together.
    InvalidArgumentError
        The model is another one.
    """
    where = Path(folder)
    for name in (_NOTES, _TENSORS):
        if not (where / name).is_file():
            raise FileNotFoundError(f"[load] {str(where)!r} must hold {name}, got none")
    tensors = _read(where / _TENSORS)
    try:
        note = json.loads((where / _NOTES).read_text("utf-8"))
        if note["schema"] != _SCHEMA:
            raise ValueError(f"the schema {note['schema']!r}")
        modules, base = dict(note["modules"]), str(note["base_hash"])
        precision = Precision(**note["rotation"]) if "rotation" in note else None
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(
            f"[load] {str(where / _NOTES)!r} must be notes of the schema {_SCHEMA!r}, got: {error}"
        ) from error
    made = {}
    for name, about in modules.items():
        if about["kind"] != "dense":
            start = f"{name}."
            own = {key[len(start) :]: x for key, x in tensors.items() if key.startswith(start)}
            sizes = {key: float(about[key]) for key in ("error", "total")}
            made[name] = from_arrays(about["kind"], own, **sizes)
    if model is not None:
        if model.fingerprint != base:
            raise InvalidArgumentError(
                f"[load] model must be the one that was compressed, {note['base']!r} with the hash "
                f"{base[:12]}..., got {model.name!r} with {model.fingerprint[:12]}..."
            )
        if precision is None:
            replace_weights(model, made)
        else:
            from subspan.compression.rotations.model import rotate_model

            bases = {
                name[len(_BASES) :]: x for name, x in tensors.items() if name.startswith(_BASES)
            }
            integers = {name: one for name, one in made.items() if isinstance(one, Integers)}
            rotate_model(model, Rotation.from_tensors(bases), integers, precision)
    return made


def export(model: Model, folder: str | os.PathLike[str]) -> Path:
    """Make all replaced layers of a model dense again, and write it in Hugging Face layout.

    Parameters
    ----------
    model : Model
        Changed in place: its layers are ordinary ones afterwards, with the weights that the
        factors or integers stood for, and what was rounded at run time no longer is.
    folder : path
        A new folder; it appears when everything is written.

    Returns
    -------
    Path
        The folder, which `activations.load_model` reads.

    Raises
    ------
    OutputError
        The folder is there already, or cannot be written.
    """
    import torch

    from subspan.compression.modules import STAND_INS

    where = Path(folder)
    if where.exists():
        raise OutputError(f"[export] folder must be new, got {str(where)!r}, which exists")
    for name, module in list(model.hf.named_modules()):
        if isinstance(module, STAND_INS):
            weight = module.matrix()
            with torch.device("meta"):
                dense = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            dense.weight = torch.nn.Parameter(weight.contiguous())
            dense.bias = module.bias
            put_layer(model, name, _conv1d(dense) if module.of_conv1d else dense)
        hook = getattr(module, "cache_hook", None)
        if hook is not None:
            hook.remove()
    partial = where.with_name(f".{where.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        with _without_bars():
            model.hf.save_pretrained(partial)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(partial)
        partial.replace(where)
    except OSError as error:
        raise OutputError(f"[export] cannot write {str(where)!r}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return where


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def _conv1d(dense: Any) -> Any:
    """Return the same layer in the form of GPT-2, whose files have the weight transposed."""
    import torch
    from transformers.pytorch_utils import Conv1D

    made = Conv1D(dense.out_features, dense.in_features)
    made.weight = torch.nn.Parameter(dense.weight.detach().T.contiguous())
    made.bias = dense.bias
    return made


def _layer(model: Model, name: str) -> Any:
    try:
        found = model.hf.get_submodule(name)
    except AttributeError:
        found = None
    if found is None or not hasattr(found, "weight"):
        raise InvalidArgumentError(
            f"[replace_weights] names must be those of linear layers, got {name!r}"
        )
    return found


def put_layer(model: Model, name: str, module: Any) -> None:
    """Put a module in the place of another of this name."""
    owner, _, last = name.rpartition(".")
    setattr(model.hf.get_submodule(owner), last, module)


def _entry(name: str, value: Any, dtype: str) -> Entry:
    if _arrays.dtype_name(value) == "uint8":
        return Entry.of(name, _arrays.to_numpy(value))
    if dtype == "bfloat16":
        import torch

        rounded = torch.from_numpy(np.array(_arrays.to_numpy(value))).to(torch.bfloat16)
        bits = rounded.contiguous().view(torch.int16).numpy().view(np.uint16)
        return Entry.of(name, bits, "bfloat16")
    with np.errstate(over="ignore"):
        array = _arrays.to_numpy(value).astype(dtype)
    if not np.isfinite(array).all():
        raise InvalidArgumentError(
            f"[save] values of {name!r} must fit {dtype}, got one that overflows. Use bfloat16 or "
            "float32"
        )
    return Entry.of(name, array)


def _read(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UnsupportedError(
            f"[load] needs the package safetensors, got an import error ({error}). Install it "
            "with: pip install 'subspan[models]'"
        ) from error
    try:
        found: dict[str, Any] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(
            f"[load] {str(path)!r} must be a whole safetensors file, got: {error}"
        ) from error
    return found
