"""Where a report reads: a model that runs over texts, or a store, as blocks of whole windows."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subspan.activations import (
    ActivationStore,
    Model,
    Site,
    TokenBatch,
    capture,
    find_sites,
    load_model,
    tokenize,
)
from subspan.errors import InvalidArgumentError

__all__ = ["Blocks", "batches_of", "is_store"]

_WINDOW = 512
_ROWS = 4096  # of a store, read at a time

Block = tuple[np.ndarray, TokenBatch]


def is_store(source: Any) -> bool:
    """Say whether a source is an activation store, opened or not."""
    if isinstance(source, str | os.PathLike):
        return (Path(source).expanduser() / "index.json").is_file()
    return isinstance(source, ActivationStore)


def batches_of(
    model: Model, texts: Any, *, tokens: int | None, window: int | None, batch_size: int
) -> Sequence[TokenBatch]:
    """Return batches of tokens, made of texts where these are not batches already."""
    several = isinstance(texts, Sequence) and not isinstance(texts, str)
    if several and len(texts) and isinstance(texts[0], TokenBatch):
        return texts  # type: ignore[no-any-return]
    room = window or min(_WINDOW, model.context or _WINDOW)
    return tokenize(model, texts, window=room, max_tokens=tokens, batch_size=batch_size)


class Blocks:
    """Rows of one site with their tokens, in the order of the text."""

    def __init__(
        self,
        function: str,
        source: Any,
        texts: Any,
        *,
        model: Any,
        site: str | Site | None,
        tokens: int | None,
        window: int | None,
        batch_size: int,
    ) -> None:
        self.model: Model | None = None
        self.store: ActivationStore | None = None
        if is_store(source):
            self._open_store(function, source, texts, site, tokens)
            self.model = None if model is None else load_model(model)
        else:
            self._open_model(function, source, texts, model, site, tokens, window, batch_size)

    def _open_store(
        self, function: str, source: Any, texts: Any, site: str | Site | None, tokens: int | None
    ) -> None:
        if texts is not None:
            raise InvalidArgumentError(
                f"[{function}] texts must be left out for a store, which has its own, got "
                f"{type(texts).__name__}. Give the model to read other texts"
            )
        store = source if isinstance(source, ActivationStore) else ActivationStore(source)
        if not store.has_tokens:
            raise InvalidArgumentError(
                f"[{function}] source must have tokens, got the store {str(store.path)!r}, which "
                "was made of saved activations. Write one from a model and texts"
            )
        keys = [known.key for known in store.sites]
        wanted = site.key if isinstance(site, Site) else site
        if wanted is None and len(keys) == 1:
            wanted = keys[0]
        if wanted not in keys:
            raise InvalidArgumentError(
                f"[{function}] site must be one of those stored, {', '.join(keys)}, got {site!r}"
            )
        self.store, self.site = store, store.sites[keys.index(wanted)]
        self.n_tokens = store.n_tokens if tokens is None else min(tokens, store.n_tokens)

    def _open_model(  # noqa: PLR0917
        self,
        function: str,
        source: Any,
        texts: Any,
        model: Any,
        site: str | Site | None,
        tokens: int | None,
        window: int | None,
        batch_size: int,
    ) -> None:
        if texts is None or site is None:
            missing = "texts" if texts is None else "site"
            raise InvalidArgumentError(
                f"[{function}] {missing} must be given with a model, got none"
            )
        if model is not None:
            raise InvalidArgumentError(
                f"[{function}] model must be left out where the source is the model, got both"
            )
        self.model = load_model(source)
        self._batches = batches_of(
            self.model, texts, tokens=tokens, window=window, batch_size=batch_size
        )
        sites = find_sites(self.model, [site])
        if len(sites) != 1:
            raise InvalidArgumentError(
                f"[{function}] site must name one site, got {site!r}, which names {len(sites)}"
            )
        self.site = sites[0]
        self.n_tokens = sum(map(len, self._batches))

    def __iter__(self) -> Iterator[Block]:
        """Yield ``(x (tokens, width), their tokens)``; every block holds whole windows."""
        return self._from_model() if self.store is None else self._from_store(self.store)

    def _from_model(self) -> Iterator[Block]:
        batches: Any = self._batches
        assert self.model is not None
        for batch in capture(self.model, batches, sites=[self.site]):
            assert batch.tokens is not None
            yield batch.arrays[self.site], batch.tokens

    def _from_store(self, store: ActivationStore) -> Iterator[Block]:
        start = 0
        while start < self.n_tokens:
            stop = min(start + _ROWS, self.n_tokens)
            tokens = store.tokens(start, stop)
            begins = np.flatnonzero(tokens.first_in_window)
            if stop < self.n_tokens and len(begins) and begins[-1] > 0:
                stop = start + int(begins[-1])  # the window that is cut comes with the next block
                tokens = store.tokens(start, stop)
            yield store.rows(self.site, start, stop), tokens
            start = stop

    def facts(self) -> dict[str, Any]:
        """Return what identifies the source."""
        if self.store is not None:
            known = self.store.facts
            return {
                "kind": "store",
                "name": str(known.get("name", self.store.path.name)),
                "path": str(self.store.path),
                "hash": known.get("hash"),
                "texts": list(self.store.documents),
                "text_hash": known.get("text_hash"),
            }
        assert self.model is not None
        return {
            "kind": "model",
            "name": self.model.name,
            "path": str(self.model.path or self.model.name),
            "hash": self.model.fingerprint,
            "texts": list(getattr(self._batches, "documents", ())),
            "text_hash": getattr(self._batches, "fingerprint", None),
        }

    def words(self, ids: Sequence[int]) -> list[str]:
        """Return the texts of vocabulary entries, with the blank that a piece begins with."""
        tokenizer = None if self.model is None else self.model.tokenizer
        if tokenizer is None:
            return [f"<{token}>" for token in ids]
        size = len(tokenizer)
        return [_word(tokenizer, token) if token < size else f"<{token}>" for token in ids]


def _word(tokenizer: Any, token: int) -> str:
    text = str(tokenizer.decode([token]))
    raw = str(tokenizer.convert_ids_to_tokens(token))
    # sentencepiece marks a blank before a word by U+2581 and drops it when it decodes
    return f" {text}" if raw.startswith("\u2581") and not text.startswith(" ") else text
