"""Cut texts into windows of tokens, with the bookkeeping that every report needs."""

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subspan.activations._batches import TokenBatch
from subspan.activations.models import Model
from subspan.errors import FileFormatError, InvalidArgumentError

_CHARS_PER_TOKEN = 16  # first guess of how much text max_tokens needs; doubled until it suffices
_MARGIN = 64  # tokens near a cut may differ from those of the whole text


class _Document(NamedTuple):
    name: str
    text: str
    ids: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64] | None  # (n, 2) character range of each token

    def ends_before(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return where the text of the token before each of start..stop ends."""
        assert self.spans is not None
        ends = np.zeros(stop - start, dtype=np.int64)
        first = max(start, 1)
        ends[first - start :] = self.spans[first - 1 : stop - 1, 1]
        return ends


class TokenStream(Sequence[TokenBatch]):
    """Windows of tokens in document order, in batches; made by `tokenize`.

    ``len(stream)`` is the number of batches and ``stream[i]`` builds batch i from the stored ids,
    the same each time, so that a run can resume at any batch.

    Attributes
    ----------
    documents : tuple of str
        Name of each document: its file name, or "text 0", "text 1", ...
    window, batch_size : int
        Tokens in a window at most; windows in a batch at most.
    n_tokens, n_windows : int
        Number of tokens (special tokens included) and of windows.
    prefix, suffix : tuple of int
        Special tokens around the content of every window.

    """

    def __init__(
        self,
        documents: Sequence[_Document],
        tokenizer: Any,
        *,
        window: int,
        batch_size: int,
        max_tokens: int | None,
        prefix: tuple[int, ...],
        suffix: tuple[int, ...],
    ) -> None:
        self._documents = tuple(documents)
        self._tokenizer = tokenizer
        self.documents = tuple(document.name for document in documents)
        self.window, self.batch_size = window, batch_size
        self.prefix, self.suffix = prefix, suffix
        self._windows = self._cut(max_tokens)
        self.n_windows = len(self._windows)
        self.n_tokens = sum(len(prefix) + b - a + len(suffix) for _, a, b in self._windows)
        pad = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = 0 if pad is None else int(pad)

    def _cut(self, max_tokens: int | None) -> list[tuple[int, int, int]]:
        around = len(self.prefix) + len(self.suffix)
        room, left = self.window - around, max_tokens
        windows: list[tuple[int, int, int]] = []
        for number, document in enumerate(self._documents):
            for start in range(0, len(document.ids), room):
                stop = min(start + room, len(document.ids))
                if left is not None:
                    stop = min(stop, start + left - around)
                    if stop <= start:
                        return windows
                    left -= stop - start + around
                windows.append((number, start, stop))
        return windows

    def __len__(self) -> int:
        """Return the number of batches."""
        return (self.n_windows + self.batch_size - 1) // self.batch_size

    def __getitem__(self, index: Any) -> Any:
        """Return batch ``index`` (negative counts from the end), or a list for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= number < len(self):
            raise IndexError(f"[TokenStream] batch must be in 0..{len(self) - 1}, got {int(index)}")
        return self._batch(number)

    def __iter__(self) -> Iterator[TokenBatch]:
        """Iterate over the batches."""
        return (self._batch(number) for number in range(len(self)))

    def _batch(self, number: int) -> TokenBatch:
        windows = self._windows[number * self.batch_size : (number + 1) * self.batch_size]
        before, after = len(self.prefix), len(self.suffix)
        special = self._tokenizer.convert_ids_to_tokens([*self.prefix, *self.suffix])
        ids, pieces, shared, documents, positions, slots, lengths = [], [], [], [], [], [], []
        for document, start, stop in windows:
            length = before + stop - start + after
            content = self._documents[document].ids[start:stop]
            ids.append(np.concatenate([self.prefix, content, self.suffix]).astype(np.int64))
            pieces += [*special[:before], *self.pieces(document, start, stop), *special[before:]]
            shared.append(np.zeros(length, dtype=np.int64))
            shared[-1][before : length - after] = self._shared(document, start, stop)
            documents.append(np.full(length, document, dtype=np.int64))
            position = np.full(length, -1, dtype=np.int64)
            position[before : length - after] = np.arange(start, stop)
            positions.append(position)
            slots.append(np.arange(length, dtype=np.int64))
            lengths.append(length)
        position = np.concatenate(positions)
        return TokenBatch(
            index=number,
            ids=np.concatenate(ids),
            pieces=tuple(pieces),
            shared=np.concatenate(shared),
            document=np.concatenate(documents),
            position=position,
            window_position=np.concatenate(slots),
            special=position < 0,
            lengths=np.array(lengths, dtype=np.int64),
            pad_id=self.pad_id,
        )

    def pieces(self, document: int, start: int, stop: int) -> list[str]:
        """Return the text of tokens start..stop of a document, each with the blanks before it.

        A character that takes several tokens appears with each of them.
        """
        source = self._documents[document]
        if source.spans is None:
            return [str(p) for p in self._tokenizer.convert_ids_to_tokens(source.ids[start:stop])]
        spans, ends = source.spans[start:stop], source.ends_before(start, stop)
        pieces = []
        for (first, last), end in zip(spans.tolist(), ends.tolist(), strict=True):
            joined = end < first and source.text[end:first].isspace()
            pieces.append(source.text[end if joined else first : last])
        return pieces

    def _shared(self, document: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Count the characters of each piece that the piece before it has as well."""
        source = self._documents[document]
        if source.spans is None:
            return np.zeros(stop - start, dtype=np.int64)
        first, last = source.spans[start:stop].T
        shared: npt.NDArray[np.int64] = source.ends_before(start, stop) - first
        return shared.clip(0, last - first)

    def context(
        self, document: int, position: int, *, before: int = 8, after: int = 8
    ) -> tuple[str, str, str]:
        """Return the text before, of and after one token, to show where it stands.

        ``position`` is a position in the document as in `TokenBatch.position`, not -1.
        """
        source = self._documents[document]
        if not 0 <= position < len(source.ids):
            raise InvalidArgumentError(
                f"[TokenStream.context] position must be in 0..{len(source.ids) - 1} (document "
                f"{document}), got {position}. Special tokens have no place in the text."
            )
        start, stop = max(0, position - before), min(len(source.ids), position + 1 + after)
        if source.spans is None:
            parts = self.pieces(document, start, stop)
            here = position - start
            return "".join(parts[:here]), parts[here], "".join(parts[here + 1 :])
        piece = self.pieces(document, position, position + 1)[0]
        middle_end = int(source.spans[position, 1])
        middle = middle_end - len(piece)
        text_start, text_stop = int(source.spans[start, 0]), int(source.spans[stop - 1, 1])
        return source.text[text_start:middle], piece, source.text[middle_end:text_stop]

    @property
    def batch_tokens(self) -> npt.NDArray[np.int64]:
        """Count the tokens of each batch."""
        around = len(self.prefix) + len(self.suffix)
        sizes = np.array([stop - start + around for _, start, stop in self._windows])
        return np.add.reduceat(sizes, np.arange(0, self.n_windows, self.batch_size), dtype=np.int64)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all token ids and of how they are cut into windows and batches."""
        digest = hashlib.sha256(f"{self.window} {self.batch_size}".encode())
        digest.update(np.array([*self.prefix, -1, *self.suffix], dtype="<i8").tobytes())
        for document, start, stop in self._windows:
            digest.update(np.array([document, start, stop], dtype="<i8").tobytes())
            digest.update(self._documents[document].ids[start:stop].astype("<i8").tobytes())
        return digest.hexdigest()


def tokenize(
    model: Model,
    texts: str | Path | Iterable[str | Path],
    *,
    window: int = 512,
    max_tokens: int | None = None,
    batch_size: int = 8,
) -> TokenStream:
    """Turn texts into windows of tokens.

    Each text is a document. A document is cut into windows one after another, without overlap;
    no window holds parts of two documents, so the last window of a document may be short. The
    special tokens that the tokenizer puts around a text ([CLS] and [SEP], <s>) are put around
    every window, so that each window is an input such as the model knows.

    Parameters
    ----------
    model : Model
        The model whose tokenizer and context length count.
    texts : str, Path, or iterable of them
        A str is a text; a Path is a UTF-8 text file.
    window : int, default 512
        Tokens in a window, special tokens included; at most the context length of the model.
    max_tokens : int, optional
        Stop after this many tokens, special tokens included; the last window is cut short.
    batch_size : int, default 8
        Windows in a batch.

    Returns
    -------
    TokenStream
        The batches, by number. All token ids and texts stay in memory.

    Raises
    ------
    FileNotFoundError, FileFormatError
        A file is missing, empty, or not UTF-8 text.
    InvalidArgumentError
        A text is empty, the window does not fit, or the tokenizer belongs to another model.

    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InvalidArgumentError(
            f"[tokenize] model must have a tokenizer, got none with {model.name!r}. Pass one to "
            "load_model(..., tokenizer=...)."
        )
    _check_count("window", window)
    _check_count("batch_size", batch_size)
    if max_tokens is not None:
        _check_count("max_tokens", max_tokens)
    prefix, suffix = _special_tokens(tokenizer)
    around = len(prefix) + len(suffix)
    if model.context is not None and window > model.context:
        raise InvalidArgumentError(
            f"[tokenize] window must be at most {model.context} (context length of "
            f"{model.name!r}), got {window}"
        )
    for name, value in (("window", window), ("max_tokens", max_tokens)):
        if value is not None and value <= around:
            raise InvalidArgumentError(
                f"[tokenize] {name} must exceed the {around} special tokens of a window, "
                f"got {value}"
            )
    documents: list[_Document] = []
    have = 0
    for number, item in enumerate([texts] if isinstance(texts, str | Path) else texts):
        if max_tokens is not None and have >= max_tokens:
            break
        name, text = _read(item, number)
        document = _encode(tokenizer, name, text, None if max_tokens is None else max_tokens - have)
        documents.append(document)
        have += len(document.ids)
    if not documents:
        raise InvalidArgumentError("[tokenize] texts must hold at least one text, got none")
    vocabulary = int(model.hf.get_input_embeddings().weight.shape[0])
    top = max(int(document.ids.max()) for document in documents)
    if top >= vocabulary:
        raise InvalidArgumentError(
            f"[tokenize] token ids must be below {vocabulary} (vocabulary of {model.name!r}), got "
            f"{top}. The tokenizer belongs to another model."
        )
    return TokenStream(
        documents,
        tokenizer,
        window=window,
        batch_size=batch_size,
        max_tokens=max_tokens,
        prefix=prefix,
        suffix=suffix,
    )


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidArgumentError(f"[tokenize] {name} must be a positive integer, got {value!r}")


def _read(item: str | Path, number: int) -> tuple[str, str]:
    """Return (name, text) of a text or of a text file."""
    if isinstance(item, str):
        if not item.strip():
            raise InvalidArgumentError(
                f"[tokenize] texts must not be empty, got an empty text at index {number}. Leave "
                "it out."
            )
        if len(item) < 256 and "\n" not in item and Path(item).is_file():
            raise InvalidArgumentError(
                f"[tokenize] texts must be texts or Path objects, got the str {item!r}, which "
                "names a file. Pass Path(...) to read it."
            )
        return f"text {number}", item
    if not isinstance(item, Path):
        raise InvalidArgumentError(
            f"[tokenize] texts must be str or Path, got {type(item).__name__} at index {number}"
        )
    return item.name, read_text(item)


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file, or say what is wrong with the file."""
    if not path.exists():
        raise FileNotFoundError(f"[tokenize] texts must be existing files, got {str(path)!r}")
    if not path.is_file():
        raise FileFormatError(
            f"[tokenize] texts must be files, got the folder {str(path)!r}. List its files."
        )
    raw = path.read_bytes()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FileFormatError(
            f"[tokenize] {path} must be UTF-8 text, got UTF-16. Convert it first."
        )
    if b"\0" in raw:
        raise FileFormatError(
            f"[tokenize] {path} must be UTF-8 text, got a binary file (a zero byte at offset "
            f"{raw.index(0)})"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"[tokenize] {path} must be UTF-8 text, got bytes that are not at offset "
            f"{error.start}. Convert it from its encoding first."
        ) from error
    if not text.strip():
        raise FileFormatError(f"[tokenize] {path} must hold text, got an empty file")
    return text.replace("\r\n", "\n")


def _encode(tokenizer: Any, name: str, text: str, limit: int | None) -> _Document:
    """Tokenize a text, reading no more of it than ``limit`` tokens need."""
    chars = len(text) if limit is None else (limit + _MARGIN) * _CHARS_PER_TOKEN
    while True:
        ids, spans = _encode_all(tokenizer, text[:chars])
        if chars >= len(text):
            break
        if limit is not None and len(ids) >= limit + _MARGIN:
            ids, spans = ids[:limit], None if spans is None else spans[:limit]
            break
        chars *= 2
    if not len(ids):
        raise InvalidArgumentError(f"[tokenize] {name} must give at least one token, got none")
    return _Document(name, text, ids, spans)


def _encode_all(
    tokenizer: Any, text: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    # verbose=False: a text longer than the context is no fault here, it is cut into windows
    options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
    if getattr(tokenizer, "is_fast", False):
        out = tokenizer(text, return_offsets_mapping=True, **options)
        spans = np.array(out["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return np.array(out["input_ids"], dtype=np.int64), spans
    return np.array(tokenizer(text, **options)["input_ids"], dtype=np.int64), None


def _special_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find what the tokenizer puts before and after a text, by looking at one."""
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()
