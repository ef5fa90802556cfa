"""What a study of rotations reports: bytes, bits and errors of its points, spectra of all sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from subspan.activations import Model
from subspan.compression._frame import texts_of
from subspan.compression._inputs import Floats
from subspan.compression._reading import Reading
from subspan.compression._turns import high_of
from subspan.compression.matrices import Integers
from subspan.compression.rotations.basis import Frame, Precision, Rotation
from subspan.compression.rotations.model import Meter, block_of
from subspan.compression.rotations.moments import RotationMoments
from subspan.compression.storage import array_storage, bits_of, dense_storage

__all__ = ["UNIFORM", "content", "sizes"]

UNIFORM = ("none", "hadamard")  # the same bits for every coordinate


def sizes(  # noqa: PLR0917
    frame: Frame, rotation: Rotation, precision: Precision, made: Mapping[str, Integers],
    meters: list[Meter], value_bits: int,
) -> dict[str, Any]:  # fmt: skip
    """Return what weights take in a file and numbers at run time, and how far off they are."""
    errors = {meter.name: meter.rounding.relative_error for meter in meters}
    layers: list[dict[str, Any]] = []
    total, integers, numbers, row, dense_row = 0, 0, 0, 0, 0
    for place in frame.places:
        m, n = place.linear.out_features, place.linear.in_features
        one = made.get(place.name)
        size = one.storage(bits=value_bits) if one else dense_storage(m, n, bits=value_bits)
        high = one.high.size if one else 0
        numbers += m * n
        integers += (m * n - high) * precision.bits + high * precision.high_bits
        total += size.n_bytes
        if not place.kind.endswith(("k_proj", "v_proj", "up_proj")):  # they read what another reads
            blocks, width = block_of(frame, place.reads, rotation)
            together = place.reads != "heads"
            row += 8 * precision.row_storage(blocks, width, together=together).n_bytes
            dense_row += n
        layers.append(
            {
                "name": place.name,
                "bytes": size.to_dict(),
                "bits": 8 * size.n_bytes / (m * n),
                "weight_error": float(one.relative_error) if one else 0.0,
                "input_error": errors.get(place.name, 0.0),
            }
        )
    heads = 2 * len(frame.attentions) * frame.kv_heads
    cached = heads * precision.row_storage(1, frame.head).n_bytes
    bases = array_storage(rotation.tensors()).n_bytes
    parts = precision.parts
    return {
        "layers": layers,
        "cached": [
            {"name": m.name, "layer": m.layer, "of": m.kind.rpartition(".")[2],
             "error": errors[m.name]}
            for m in meters if m.kind.endswith((".keys", ".values"))
        ],
        "bytes": total + bases,
        "basis_bytes": bases,
        "integer_bits": integers / numbers if "weights" in parts else float(value_bits),
        "weight_bits": 8 * (total + bases) / numbers,
        "activation_bits": row / dense_row if "activations" in parts else float(value_bits),
        "cache_bits": (8 * cached / (heads * frame.head) if "cache" in parts
                       else float(value_bits)),
        "cache_bytes": cached if "cache" in parts else heads * frame.head * value_bits // 8,
    }  # fmt: skip


def content(  # noqa: PLR0917
    model: Model, reading: Reading, frame: Frame, found: RotationMoments,
    settings: dict[str, Any], dense: dict[str, Any], points: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Return the report, but for facts and verdict."""
    bits = bits_of("rotate", settings["dtype"])
    shapes = [(p.linear.out_features, p.linear.in_features) for p in frame.places]
    matched = sum(dense_storage(m, n, bits=bits).n_bytes for m, n in shapes)
    whole = dense_storage(model.n_parameters, 1, bits=bits).n_bytes
    for point in points:
        point["kept_bytes"] = point["bytes"] / matched
        point["model_bytes"] = whole - matched + point["bytes"]
    return {
        "model": {
            "name": model.name,
            "path": str(model.path or model.name),
            "hash": model.fingerprint,
            "n_parameters": model.n_parameters,
            "bytes": whole,
            "matched_bytes": matched,
            "layers": len(frame.attentions),
            "cache_bytes": 2 * len(frame.attentions) * frame.kv_heads * frame.head * bits // 8,
        },
        "settings": settings | {"block": int(found.down.shape[-1])},
        "calibration": {
            "texts": list(reading.names),
            "tokens": found.n_tokens,
            "places": 1 + len(frame.attentions) * (2 + frame.kv_heads),
            "hash": reading.fingerprint,
        },
        "texts": texts_of(reading),
        "weights": [
            {"name": p.name, "layer": p.layer, "kind": p.kind, "shape": list(shape)}
            for p, shape in zip(frame.places, shapes, strict=True)
        ],
        "spectra": _spectra(found, settings),
        "dense": dense,
        "points": points,
    }


def _spectra(found: RotationMoments, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the power of coordinates in three bases, as means of shares over layers and heads."""
    mixed = [one for one in settings["schemes"] if one not in UNIFORM]
    share, seed = settings["high_fraction"], settings["seed"]
    last, principal = (
        found.rotation(one, high_fraction=share, seed=seed)
        for one in ((mixed or ["pca"])[-1], "pca")
    )
    spectra = {}
    for site in ("residual", "keys", "values", "down"):
        gram: Floats = getattr(found, site)
        d = gram.shape[-1]
        flat = gram.reshape(-1, d, d)
        flat = flat / np.maximum(np.trace(flat, axis1=1, axis2=2), 1e-300)[:, None, None]
        rows = {"channels": np.sort(np.diagonal(flat, axis1=1, axis2=2), axis=1)}
        for name, rotation in (("principal", principal), ("rotated", last)):
            axes = getattr(rotation, site).reshape(-1, d, d)
            rows[name] = np.einsum("lij,lij->lj", axes, flat @ axes)
        high = high_of(d, share)
        spectra[site] = {name: one.mean(0).tolist() for name, one in rows.items()} | {
            "high": high,
            "high_share": float(rows["principal"].mean(0)[d - high :].sum()),
        }
    return spectra
