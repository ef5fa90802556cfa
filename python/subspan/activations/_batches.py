"""What passes through the stream: tokens with their bookkeeping, and the arrays of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from subspan.activations._site import Site


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The real tokens of one batch of windows, flattened: padding never appears here.

    Attributes
    ----------
    index : int
        Number of the batch in its stream.
    ids : ndarray of int64, shape (n_tokens,)
        Token ids, window after window.
    pieces : tuple of str
        The text of each token as it stands in the document, with the blanks before it.
    shared : ndarray of int64, shape (n_tokens,)
        Characters that a piece has in common with the piece before it: 0, but for a character
        that takes several tokens. ``"".join(p[n:] for p, n in zip(pieces, shared))`` is the text.
    document, position : ndarray of int64, shape (n_tokens,)
        Document number, and position of the token in that document; -1 for special tokens.
    window_position : ndarray of int64, shape (n_tokens,)
        Position in the window, which is the position that the model sees.
    special : ndarray of bool, shape (n_tokens,)
        True for tokens that the tokenizer adds ([CLS], <s>, ...).
    lengths : ndarray of int64, shape (n_windows,)
        Number of tokens of each window; they sum to n_tokens.
    pad_id : int
        Id used to fill short windows in `padded`.

    """

    index: int
    ids: npt.NDArray[np.int64]
    pieces: tuple[str, ...]
    shared: npt.NDArray[np.int64]
    document: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    window_position: npt.NDArray[np.int64]
    special: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]
    pad_id: int = 0

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.ids)

    @property
    def first_in_window(self) -> npt.NDArray[np.bool_]:
        """Mark the first token of each window, shape (n_tokens,)."""
        return np.equal(self.window_position, 0).astype(np.bool_)

    def padded(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return ids and mask of shape (n_windows, longest), short windows padded on the right."""
        shape = (len(self.lengths), int(self.lengths.max()))
        mask = np.arange(shape[1]) < self.lengths[:, None]
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        ids[mask] = self.ids
        return ids, mask


@dataclass(frozen=True, eq=False)
class ActivationBatch:
    """Activations of one batch at every site asked for.

    Attributes
    ----------
    index : int
        Number of the batch (of the block, for saved activations) in its source.
    tokens : TokenBatch or None
        The tokens of the rows; None for saved activations, which carry none.
    arrays : mapping of Site to array of shape (n_rows, width)
        float32 (float64 from a float64 source), row i belonging to token i.

    """

    index: int
    tokens: TokenBatch | None
    arrays: Mapping[Site, Any]

    @property
    def n_rows(self) -> int:
        """Count the rows, the same at every site."""
        return int(next(iter(self.arrays.values())).shape[0])
