"""What lies in a store beside the shards: the index of the whole, and the tokens of each shard."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan._safetensors import read_header
from subspan.activations._batches import TokenBatch
from subspan.activations._files import open_safetensors
from subspan.activations._site import Site
from subspan.errors import FileFormatError
from subspan.report import Entry, write_json, write_safetensors

SCHEMA = "subspan.activations/1"
INDEX, TOKENS = "index.json", "tokens"
SHARDS = "shard-*.safetensors"
DTYPES = ("float16", "bfloat16", "float32")
_NUMBERS = ("ids", "document", "position", "window_position", "shared")  # of each token


def shard_name(number: int) -> str:
    """Return the file name of a shard, and of the file with its tokens."""
    return f"shard-{number:05d}.safetensors"


def store_id(identity: Mapping[str, Any]) -> str:
    """Return what all files of one store have in their headers: a hash of what was asked."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def digest_of(arrays: Sequence[npt.NDArray[Any]]) -> str:
    """SHA-256 (hex) of the values of a shard, site after site."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Shard:
    """What is known of a shard without opening it."""

    rows: int
    n_bytes: int
    digest: str


@dataclass(frozen=True)
class Index:
    """The content of ``index.json``."""

    identity: dict[str, Any]
    widths: dict[Site, int]
    documents: tuple[str, ...]
    pad_id: int | None  # None when the rows have no tokens
    shards: tuple[Shard, ...]

    @property
    def id(self) -> str:
        """The mark of all files of the store."""
        return store_id(self.identity)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the digests of all shards in order."""
        text = " ".join(shard.digest for shard in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write the file."""
        value = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "n_tokens": sum(shard.rows for shard in self.shards),
            "sites": {site.key: width for site, width in self.widths.items()},
            "identity": self.identity,
            "documents": list(self.documents),
            "pad_id": self.pad_id,
            "shards": [
                {"rows": shard.rows, "bytes": shard.n_bytes, "sha256": shard.digest}
                for shard in self.shards
            ],
        }
        write_json(path, value)

    @classmethod
    def read(cls, path: Path) -> "Index":
        """Read the file, or say that it is not one."""
        try:
            value = json.loads(path.read_text("utf-8"))
            if value["schema"] != SCHEMA:
                raise ValueError(f"its schema is {value['schema']!r}")
            if not value["shards"]:
                raise ValueError("it lists no shards")
            return cls(
                identity=dict(value["identity"]),
                widths={as_site(key): int(width) for key, width in value["sites"].items()},
                documents=tuple(value["documents"]),
                pad_id=value["pad_id"],
                shards=tuple(
                    Shard(int(entry["rows"]), int(entry["bytes"]), str(entry["sha256"]))
                    for entry in value["shards"]
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(
                f"[ActivationStore] {path} must be the index of a store ({SCHEMA}), got "
                f"{type(error).__name__}: {error}"
            ) from error


def as_site(key: str) -> Site:
    """Return the site that a key names; a module outside the blocks is its own key."""
    return Site.parse(key) if re.match(r"layer\.\d+/", key) else Site(-1, key)


class TokenPart:
    """The tokens of a run of rows on their way to a file, and the norms of these rows."""

    def __init__(self) -> None:
        self._tokens: list[TokenBatch] = []
        self._norms: dict[Site, list[npt.NDArray[np.float32]]] = {}

    def add(self, tokens: TokenBatch | None, norms: Mapping[Site, npt.NDArray[np.float32]]) -> None:
        """Take the tokens and norms of one batch."""
        if tokens is not None:
            self._tokens.append(tokens)
        for site, values in norms.items():
            self._norms.setdefault(site, []).append(values)

    def write(self, path: Path, notes: Mapping[str, str]) -> None:
        """Write tokens and norms to a file."""
        arrays = {f"norm/{site.key}": np.concatenate(v) for site, v in self._norms.items()}
        if self._tokens:
            for name in _NUMBERS:
                values = np.concatenate([getattr(part, name) for part in self._tokens])
                arrays[name] = values.astype(np.int32)
            text = [piece.encode("utf-8", "replace") for p in self._tokens for piece in p.pieces]
            arrays["text_end"] = np.cumsum([len(piece) for piece in text], dtype=np.int64)
            arrays["text"] = np.frombuffer(b"".join(text), dtype=np.uint8)
        path.parent.mkdir(exist_ok=True)
        write_safetensors(path, [Entry.of(k, v) for k, v in arrays.items()], notes)


def read_values(parts: Sequence[tuple[Path, int, int]], name: str) -> npt.NDArray[Any]:
    """Return one column of rows start..stop of each of the files, one after another."""
    found = [open_safetensors(file)[name].mapped()[start:stop] for file, start, stop in parts]
    return np.concatenate(found) if found else np.empty(0, np.float32)


def read_tokens(parts: Sequence[tuple[Path, int, int]], pad_id: int) -> TokenBatch:
    """Return the tokens of rows start..stop of each of the files, one after another."""
    pieces: list[str] = []
    for file, start, stop in parts:
        columns = open_safetensors(file)
        ends = columns["text_end"].mapped()[max(start - 1, 0) : stop].tolist()
        begin = ends[0] if start else 0
        text = columns["text"].mapped()
        for end in ends[1:] if start else ends:
            pieces.append(text[begin:end].tobytes().decode("utf-8"))
            begin = end
    joined = {name: read_values(parts, name).astype(np.int64) for name in _NUMBERS}
    firsts = np.flatnonzero(joined["window_position"] == 0)
    borders = np.unique([0, *firsts, len(pieces)])
    return TokenBatch(
        index=0,
        pieces=tuple(pieces),
        special=joined["position"] < 0,
        lengths=np.diff(borders).astype(np.int64),
        pad_id=pad_id,
        **joined,
    )


def notes_of(file: Path, store: str, number: int) -> dict[str, str]:
    """Return the notes in a file's header, or say that the file belongs elsewhere."""
    notes = read_header("open_saved", file).metadata
    if (notes.get("store"), notes.get("shard")) != (store, str(number)):
        raise FileFormatError(
            f"[ActivationStore] {file} must be shard {number} of this store, got a file "
            + (
                f"of another store (its shard {notes['shard']})"
                if "store" in notes and "shard" in notes
                else "that was not written for a store"
            )
            + ". Put the right file back, or write the store again with overwrite=True"
        )
    return notes
