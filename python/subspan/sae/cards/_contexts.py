"""The best few places of every latent, found in one pass over sparse codes."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from subspan.sae._entries import Entries

__all__ = ["Contexts", "uniform"]


class Contexts:
    """The m places with the highest scores of every latent, with the activations around them.

    Of equal scores the earlier row wins, so the result does not depend on how rows come in blocks.
    Memory: ``n * m * (16 + 4 * (before + 1 + after))`` bytes.

    Attributes
    ----------
    score : ndarray of float32 (n, m)
        Descending; -inf where a latent has fewer places.
    row : ndarray of int64 (n, m)
        Number of the token in the run, -1 where there is none.
    around : ndarray of float32 (n, m, before + 1 + after)
        Activations of the latent at the tokens before, at and after the place; 0 where it is
        silent, and where the window of the place ends.
    """

    def __init__(self, n_latents: int, m: int, before: int, after: int) -> None:
        self.before, self.after = before, after
        self.score = np.full((n_latents, m), -np.inf, np.float32)
        self.row = np.full((n_latents, m), -1, np.int64)
        self.around = np.zeros((n_latents, m, before + 1 + after), np.float32)

    def update(self, found: "Entries", scores: np.ndarray, window: np.ndarray, offset: int) -> None:
        """Add a block of tokens, whole windows of it.

        Parameters
        ----------
        found
            The codes of the block by token; rows and latents ascend.
        scores
            ``(entries,)`` float32.
        window
            ``(tokens,)``: which window each token belongs to.
        offset
            Number of the first token of the block in the run.
        """
        better = np.flatnonzero(scores > self.score[found.latents, -1])
        if not len(better):
            return
        latents, rows, scores = found.latents[better], found.rows[better], scores[better]
        order, kept = self._ranked(latents, scores, rows)
        chosen = order[kept]
        latents, rows, scores = latents[chosen], rows[chosen], scores[chosen]
        around = self._around(found, latents, rows, window)
        mine = np.unique(latents)
        m = self.score.shape[1]
        all_latents = np.concatenate([np.repeat(mine, m), latents])
        all_scores = np.concatenate([self.score[mine].reshape(-1), scores])
        all_rows = np.concatenate([self.row[mine].reshape(-1), rows + offset])
        old = self.around[mine].reshape(len(mine) * m, around.shape[1])
        everything = np.concatenate([old, around])
        order, kept = self._ranked(all_latents, all_scores, all_rows)
        chosen = order[kept]  # m for each of mine, as it brought m itself
        self.score[mine] = all_scores[chosen].reshape(len(mine), m)
        self.row[mine] = all_rows[chosen].reshape(len(mine), m)
        self.around[mine] = everything[chosen].reshape(len(mine), m, around.shape[1])

    def _ranked(
        self, latents: np.ndarray, scores: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the order by latent, then score, and which places of it are among the first m."""
        order = np.lexsort((rows, -scores, latents))
        group = latents[order]
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        sizes = np.diff(starts, append=len(group))
        rank = np.arange(len(group)) - np.repeat(starts, sizes)
        return order, rank < self.score.shape[1]

    def _around(
        self, found: "Entries", latents: np.ndarray, rows: np.ndarray, window: np.ndarray
    ) -> np.ndarray:
        n = np.int64(len(self.score))
        keys = found.rows * n + found.latents  # ascending
        steps = np.arange(-self.before, self.after + 1)
        places = rows[:, None] + steps
        inside = (places >= 0) & (places < len(window))
        inside &= window[np.clip(places, 0, len(window) - 1)] == window[rows][:, None]
        wanted = (places * n + latents[:, None])[inside]
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        out = np.zeros(places.shape, np.float32)
        out[inside] = np.where(keys[at] == wanted, found.values[at], 0.0)
        return out


def uniform(rows: np.ndarray, latents: np.ndarray, seed: int) -> np.ndarray:
    """Return a number in [0, 1) for each pair, a function of row, latent and seed alone.

    The mixer of SplitMix64 (Steele, Lea, Flood 2014), so that a sample does not depend on blocks.
    """
    with np.errstate(over="ignore"):
        x = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = _mixed(x + np.uint64(seed)) + latents.astype(np.uint64)
        x = _mixed(x * np.uint64(0x9E3779B97F4A7C15))
    return (x >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
