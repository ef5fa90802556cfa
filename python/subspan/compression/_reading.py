"""Which windows of which texts calibrate, and which are held out to judge."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from subspan.activations import Model, TokenBatch, tokenize
from subspan.activations.tokens import TokenStream
from subspan.errors import InvalidArgumentError

__all__ = ["Reading", "Text", "read"]

_WINDOW = 512
_HELD_OUT = 0.1  # of a calibration text, its end, where no other text is given to judge by


class Text(NamedTuple):
    """Windows that judge."""

    name: str
    domain: str
    """"in" if it is like the calibration texts, else "out"."""
    batches: Sequence[TokenBatch]

    @property
    def n_tokens(self) -> int:
        """Count the tokens."""
        return sum(map(len, self.batches))


class Reading(NamedTuple):
    """What a run reads."""

    calibration: Sequence[TokenBatch]
    evaluation: Sequence[Text]
    names: Sequence[str]
    """Of the calibration texts."""
    window: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all tokens, in their order and roles."""
        digest = hashlib.sha256()
        for batches in (self.calibration, *(text.batches for text in self.evaluation)):
            for batch in batches:
                digest.update(batch.ids.tobytes())
            digest.update(b"|")
        return digest.hexdigest()


def read(
    model: Model, texts: Any, evaluation: Any, out_of_domain: Any,
    *, tokens: int, eval_tokens: int, window: int | None, seed: int, function: str = "compress",
) -> Reading:  # fmt: skip
    """Cut texts into windows, draw those that calibrate, evenly from each text, and hold some out.

    Without ``evaluation``, the last tenth of each calibration text is kept from calibration and
    judges; a text that judges is read at evenly spread windows.
    """
    room = window or min(_WINDOW, model.context or _WINDOW)
    sources = _listed(texts)
    if not sources:
        raise InvalidArgumentError(f"[{function}] texts must hold calibration texts, got none")
    rng = np.random.default_rng(seed)
    streams = [_stream(function, model, source, room) for source in sources]
    own = evaluation is None
    chosen: list[TokenBatch] = []
    judged: list[Text] = []
    for name, stream in streams:
        count = len(stream)
        held = max(1, round(_HELD_OUT * count)) if own else 0
        share = max(1, round(tokens / len(streams) / room))
        if count - held < 1:
            raise InvalidArgumentError(
                f"[{function}] text {name!r} must have two windows of {room} tokens or more, one "
                f"to calibrate and one held out, got {stream.n_tokens} tokens. Give longer texts, "
                "a shorter window, or other texts to judge by"
            )
        picked = rng.permutation(count - held)[:share]
        chosen += [stream[int(index)] for index in np.sort(picked)]
        if own:
            judged.append(Text(name, "in", _spread(stream, count - held, eval_tokens, room)))
    for domain, others in (("in", evaluation), ("out", out_of_domain)):
        for source in _listed(others):
            name, stream = _stream(function, model, source, room)
            judged.append(Text(name, domain, _spread(stream, 0, eval_tokens, room)))
    names = [text.name for text in judged]
    judged = [  # two files of one name in different folders
        text._replace(name=f"{text.name} ({place})") if names.count(text.name) > 1 else text
        for place, text in enumerate(judged, 1)
    ]
    return Reading(chosen, judged, [name for name, _ in streams], room)


def _listed(texts: Any) -> list[Any]:
    if texts is None:
        return []
    one = isinstance(texts, str | os.PathLike) or not isinstance(texts, Iterable)
    return [texts] if one else list(texts)


def _stream(function: str, model: Model, source: Any, window: int) -> tuple[str, TokenStream]:
    stream = tokenize(model, [source], window=window, batch_size=1)
    name = Path(source).name if isinstance(source, os.PathLike) else stream.documents[0]
    if not len(stream):
        raise InvalidArgumentError(f"[{function}] text {name!r} must have tokens, got none")
    return name, stream


def _spread(stream: TokenStream, start: int, tokens: int, window: int) -> list[TokenBatch]:
    count = min(len(stream) - start, max(1, round(tokens / window)))
    places = start + np.linspace(0, len(stream) - start - 1, count).round().astype(int)
    return [stream[int(place)] for place in places]
