"""Where activations come from: a model with texts, or files saved earlier. One face for both."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from subspan import activations
from subspan.activations import Site
from subspan.atlas._outliers import Tokens
from subspan.errors import InvalidArgumentError

__all__ = ["ModelSource", "SavedSource", "Source", "is_saved", "sources_of"]

DEFAULT_SITES = ("resid", "attn", "mlp", "k", "v")
_WINDOW = 512

Batch = tuple[int, dict[Site, np.ndarray], np.ndarray]  # number, arrays, first token of a window


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
        self.model = activations.load_model(source)
        self.window = window or min(_WINDOW, self.model.context or _WINDOW)
        self.stream = activations.tokenize(
            self.model, texts, window=self.window, max_tokens=tokens, batch_size=batch_size
        )
        asked = DEFAULT_SITES if sites is None else tuple(sites)
        self._layers = None if layers is None else tuple(layers)
        self.sites = activations.find_sites(self.model, asked, layers=self._layers)
        self.n_tokens = int(self.stream.n_tokens)
        self.n_batches = len(self.stream)
        self.has_windows = True

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield batches from number ``start`` on."""
        # the sites are final here, layers included: passing them again keeps the two in step
        for batch in activations.capture(self.model, self.stream, sites=self.sites, start=start):
            assert batch.tokens is not None
            yield batch.index, dict(batch.arrays), batch.tokens.first_in_window

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

    def limits(self) -> list[str]:
        """Return what the numbers of this source do not say."""
        said = [
            "Ranks describe these texts: other texts, languages or lengths can use other "
            "directions. Variance is not importance: a direction of little variance may matter "
            "to the model's output."
        ]
        if str(self.model.path).endswith(".gguf"):
            said.append(
                "The weights are those of a GGUF release, dequantised: their spectra carry its "
                "rounding noise, so small singular values say nothing about the original weights."
            )
        return said


class SavedSource:
    """Activations saved to files; a row is a token without a text."""

    kind = "activations"

    def __init__(
        self,
        source: Any,
        *,
        tokens: int | None,
        sites: Iterable[str | Site] | None,
        layers: Iterable[int] | None,
    ) -> None:
        saved = source
        if isinstance(source, str | os.PathLike):
            saved = activations.open_saved(Path(source))
        self.saved = saved
        self.sites = _chosen(tuple(saved.sites), sites, layers)
        self.n_tokens = int(saved.n_rows) if tokens is None else min(tokens, int(saved.n_rows))
        self.n_batches = -(-self.n_tokens // int(saved.block_rows))
        self.has_windows = False

    def batches(self, start: int) -> Iterator[Batch]:
        """Yield blocks from number ``start`` on."""
        size = int(self.saved.block_rows)
        for number in range(start, self.n_batches):
            block = self.saved[number]
            rows = min(size, self.n_tokens - number * size)
            arrays = {site: np.asarray(block.arrays[site])[:rows] for site in self.sites}
            yield number, arrays, np.zeros(rows, bool)

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

    def limits(self) -> list[str]:
        """Return what the numbers of this source do not say."""
        return [
            "Only the saved rows are described; how they were chosen is not known here. Variance "
            "is not importance: a direction of little variance may matter."
        ]


Source = ModelSource | SavedSource


def _chosen(
    have: tuple[Site, ...], sites: Iterable[str | Site] | None, layers: Iterable[int] | None
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
            f"[atlas] sites and layers must choose at least one saved site, got none of {names}"
        )
    return kept


def is_saved(source: Any) -> bool:
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
            f"[atlas] source must be an existing file or folder, got {str(source)!r}. Models are "
            "not downloaded: give a folder with config.json, a .gguf file, or saved activations"
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
