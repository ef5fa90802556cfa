"""Where a job's activations come from: a model with texts, or saved files. One face for both."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import subspan
from subspan.activations._batches import ActivationBatch
from subspan.activations._site import KINDS, Site
from subspan.activations.capture import capture
from subspan.activations.models import load_model
from subspan.activations.saved import open_saved
from subspan.activations.sites import find_sites
from subspan.activations.tokens import TokenStream, tokenize
from subspan.errors import InvalidArgumentError

__all__ = [
    "ModelSource",
    "SavedSource",
    "Source",
    "Tokens",
    "is_saved",
    "set_threads",
    "sources_of",
]

_WINDOW = 512


class Tokens(NamedTuple):
    """What is known of each token of a run; ``text`` is None for saved activations."""

    document: np.ndarray
    position: np.ndarray
    in_window: np.ndarray
    text: Sequence[str] | None


class ModelSource:
    """A model run over texts."""

    kind = "model"

    def __init__(
        self,
        source: Any,
        texts: Any,
        *,
        tokens: int | None,
        window: int | None,
        batch_size: int,
        sites: Iterable[str | Site] | None,
        layers: Iterable[int] | None,
    ) -> None:
        self.model = load_model(source)
        self.window = window or min(_WINDOW, self.model.context or _WINDOW)
        self.stream = (
            texts
            if isinstance(texts, TokenStream)
            else tokenize(
                self.model, texts, window=self.window, max_tokens=tokens, batch_size=batch_size
            )
        )
        asked = KINDS if sites is None else tuple(sites)
        self.sites = find_sites(self.model, asked, layers=None if layers is None else tuple(layers))
        self.n_tokens = int(self.stream.n_tokens)
        self.n_batches = len(self.stream)
        self.batch_tokens = self.stream.batch_tokens

    def batches(self, start: int) -> Iterator[ActivationBatch]:
        """Yield batches from number ``start`` on."""
        # the sites are final here, layers included: passing them again keeps the two in step
        yield from capture(self.model, self.stream, sites=self.sites, start=start)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the weight matrices."""
        yield from self.model.weights()

    def facts(self) -> dict[str, Any]:
        """Return what identifies the source; goes into the report and decides on resuming."""
        return {
            "kind": self.kind,
            "name": self.model.name,
            "path": str(self.model.path or self.model.name),
            "hash": self.model.fingerprint,
            "texts": list(self.stream.documents),
            "text_hash": self.stream.fingerprint,
            "n_tokens": self.n_tokens,
            "n_layers": self.model.n_layers,
            "width": self.model.width,
        }

    def tokens(self) -> Tokens:
        """Return place and text of every token, in the order of the batches."""
        parts = list(self.stream)
        return Tokens(
            document=np.concatenate([part.document for part in parts]),
            position=np.concatenate([part.position for part in parts]),
            in_window=np.concatenate([part.window_position for part in parts]),
            text=[piece for part in parts for piece in part.pieces],
        )


class SavedSource:
    """Activations saved to files; a row is a token without a text.

    ``function`` is who asks, for messages.
    """

    kind = "activations"

    def __init__(
        self,
        source: Any,
        *,
        function: str,
        tokens: int | None,
        sites: Iterable[str | Site] | None,
        layers: Iterable[int] | None,
    ) -> None:
        saved = source
        if isinstance(source, str | os.PathLike):
            saved = open_saved(Path(source))
        self.saved = saved
        self.sites = _chosen(function, tuple(saved.sites), sites, layers)
        self.n_tokens = int(saved.n_rows) if tokens is None else min(tokens, int(saved.n_rows))
        size = int(saved.block_rows)
        self.n_batches = -(-self.n_tokens // size)
        self.batch_tokens = np.diff([*range(0, self.n_tokens, size), self.n_tokens])

    def batches(self, start: int) -> Iterator[ActivationBatch]:
        """Yield blocks from number ``start`` on."""
        size = int(self.saved.block_rows)
        for number in range(start, self.n_batches):
            first = number * size
            stop = min(first + size, self.n_tokens)
            arrays = {site: self.saved.rows(site, first, stop) for site in self.sites}
            yield ActivationBatch(number, None, arrays)

    def weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield nothing: saved activations carry no weights."""
        yield from ()

    def facts(self) -> dict[str, Any]:
        """Return what identifies the source; goes into the report and decides on resuming."""
        path = Path(self.saved.path)
        return {
            "kind": self.kind,
            "name": path.name,
            "path": str(path),
            "hash": self.saved.fingerprint,
            "texts": [],
            "text_hash": None,
            "n_tokens": self.n_tokens,
            "n_layers": len({site.layer for site in self.sites}),
            "width": None,
        }

    def tokens(self) -> Tokens:
        """Return row numbers; nothing else is known."""
        rows = np.arange(self.n_tokens)
        return Tokens(document=np.zeros_like(rows), position=rows, in_window=rows, text=None)


Source = ModelSource | SavedSource


def _chosen(
    function: str,
    have: tuple[Site, ...],
    sites: Iterable[str | Site] | None,
    layers: Iterable[int] | None,
) -> tuple[Site, ...]:
    kept = have
    if sites is not None:
        wanted = {site if isinstance(site, str) else site.key for site in sites}
        kept = tuple(site for site in kept if {site.key, site.kind} & wanted)
    if layers is not None:
        numbers = set(layers)
        kept = tuple(site for site in kept if site.layer in numbers)
    if not kept:
        names = ", ".join(site.key for site in have[:6])
        raise InvalidArgumentError(
            f"[{function}] sites and layers must choose at least one saved site, got none of "
            f"{names}"
        )
    return kept


def is_saved(function: str, name: str, source: Any) -> bool:
    """Say whether a source is saved activations (not a model).

    A model is a folder with ``config.json`` or a ``.gguf`` file in it, a ``.gguf`` file, a weight
    file beside a ``config.json``, or a loaded model.

    Raises
    ------
    FileNotFoundError
        The path does not exist.
    """
    if not isinstance(source, str | os.PathLike):
        return hasattr(source, "sites") and hasattr(source, "block_rows")
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"[{function}] {name} must be an existing file or folder, got {str(source)!r}. Models "
            "are not downloaded: give a folder with config.json, a .gguf file, or saved activations"
        )
    if path.is_dir():
        return not (path / "config.json").exists() and not any(path.glob("*.gguf"))
    if path.suffix in (".npy", ".npz"):
        return True
    return path.suffix == ".safetensors" and not (path.parent / "config.json").exists()


def sources_of(texts: Any) -> list[Any]:
    """Return texts as a list; one string or path is one text."""
    if texts is None:
        return []
    return [texts] if isinstance(texts, str | os.PathLike) else list(texts)


def set_threads(function: str, threads: int, *, model: bool) -> None:
    """Set the threads of the native core, and of torch where a model is to run."""
    if isinstance(threads, bool) or threads < 1:
        raise InvalidArgumentError(f"[{function}] threads must be at least 1, got {threads}")
    subspan.set_num_threads(threads)
    if model:
        try:
            import torch
        except ImportError:
            return  # load_model says what to install
        torch.set_num_threads(threads)
