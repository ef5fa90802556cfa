"""All ranks of a factorisation at once, with the error of each, to be cut where one likes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks
from subspan.compression._inputs import Floats, grams_of, like
from subspan.compression.matrices import Dense, LowRank, Replacement
from subspan.compression.storage import dense_storage, low_rank_storage, rank_of_kept
from subspan.errors import InvalidArgumentError

__all__ = ["Factors"]


@dataclass(frozen=True)
class Factors:
    """Pairs of columns and rows, best first: ``W_r = left[:, :r] @ right[:r]`` for every r.

    Made by `truncated_svd`, `activation_svd`, `whitened_svd` and `fisher_svd`.
    """

    method: str
    """One of svd, asvd, whitened, two-sided and fwsvd."""
    weight: Any
    """(..., m, n) what was factorised."""
    left: Any
    """(..., m, p), p = min(m, n) or the largest rank that was asked for; columns of length one,
    orthogonal unless outputs had weights."""
    right: Any
    """(..., p, n)"""
    values: Floats
    """(..., min(m, n)) what each pair holds in the norm of the method, that is, its singular
    values, also of pairs that are not there."""
    offset: Any = None
    """(..., m) outputs of the mean input, if affine."""
    within: Any = None
    """(..., p) ``right`` times the mean input, if affine."""

    def __getitem__(self, index: Any) -> Factors:
        """Return the factors of one matrix of a stack, or of a part of it."""
        if self.values.ndim == 1:
            raise InvalidArgumentError("[Factors] index needs a stack of matrices, got one matrix")

        def pick(x: Any) -> Any:
            return None if x is None else x[index]

        return replace(
            self, weight=pick(self.weight), left=pick(self.left), right=pick(self.right),
            values=pick(self.values), offset=pick(self.offset), within=pick(self.within),
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of a matrix."""
        return int(self.left.shape[-2]), int(self.right.shape[-1])

    @property
    def tails(self) -> Floats:
        """(..., min(m, n) + 1) squared error of every rank from 0 on, in the norm of the method."""
        return _tails(np.square(self.values))

    @property
    def total(self) -> Floats:
        """(...) norm of the weight, in the norm of the method."""
        root: Floats = np.sqrt(self.tails[..., 0])
        return root

    def errors(self, gram: Any = None, outputs: Any = None) -> Floats:
        r"""Return the squared error of every rank in another norm.

        .. math:: e_r = \mathrm{tr}\, H (W - W_r) G (W - W_r)^T

        Parameters
        ----------
        gram, outputs : array, Moments, or one Moments a matrix, optional
            G and H as for `whitened_svd`; the identity where left out.

        Returns
        -------
        ndarray (..., p + 1) of float64
            From rank 0 to that of all pairs that are there.

        Raises
        ------
        InvalidArgumentError
            They do not fit, or are not finite.
        """
        function, lead = "Factors.errors", self.values.shape[:-1]
        m, n = self.shape
        p = int(self.right.shape[-2])
        left = np.asarray(_arrays.to_numpy(self.left), np.float64).reshape(-1, m, p)
        right = np.asarray(_arrays.to_numpy(self.right), np.float64).reshape(-1, p, n)
        of_left, of_right = left, right
        if outputs is not None:
            h = grams_of(function, outputs, lead, m, None, name="outputs")
            of_left = h @ left
        if gram is not None:
            g = grams_of(function, gram, lead, n, None)
            of_right = right @ g
        # What ranks above r hold interferes where the columns are not orthogonal.
        both = (left.swapaxes(-1, -2) @ of_left) * (of_right @ right.swapaxes(-1, -2))
        own = np.diagonal(both, axis1=-2, axis2=-1)
        after = _tails(both)[..., 1:]
        crossed = np.diagonal(after, axis1=-2, axis2=-1)
        back = np.diagonal(_tails(both.swapaxes(-1, -2))[..., 1:], axis1=-2, axis2=-1)
        found: Floats = _tails(own + crossed + back)
        if p < min(m, n):  # what no pair holds, and how it interferes with the pairs
            weight = np.asarray(_arrays.to_numpy(self.weight), np.float64).reshape(-1, m, n)
            rest = weight - left @ right
            of_rest = rest if gram is None else rest @ g
            found += np.sum(of_rest * (rest if outputs is None else h @ rest), axis=(-2, -1))[
                :, None
            ]
            found += 2 * _tails(np.sum((of_left.swapaxes(-1, -2) @ of_rest) * right, axis=-1))
        return np.maximum(found, 0.0).reshape(*lead, p + 1)

    def cut(
        self,
        *,
        rank: int | None = None,
        kept: float | None = None,
        energy: float | None = None,
    ) -> Replacement:
        """Return the factors of one rank, or the weight itself where they would be larger.

        Parameters
        ----------
        rank : int
            In 1..min(m, n).
        kept : float in (0, 1]
            Largest rank whose factors have at most this part of the numbers of the weight.
        energy : float in (0, 1]
            Smallest rank that holds this part of the squared norm, in every matrix of a stack.

        Returns
        -------
        LowRank or Dense
            Dense, with a note, if factors of this rank take as many bytes as the weight.

        Raises
        ------
        InvalidArgumentError
            Not just one of them is given, or it is out of range; a kept ratio too small for rank 1;
            more pairs than are there.
        """
        m, n = self.shape
        chosen = self._rank(rank, kept, energy)
        bias = 0 if self.offset is None else m
        small = low_rank_storage(m, n, chosen, bias=bias)
        if small.n_bytes >= dense_storage(m, n).n_bytes:
            zero = np.zeros_like(self.total)
            note = (
                f"kept dense: factors of rank {chosen} take {small.kept(dense_storage(m, n)):.2f}"
            )
            return Dense(zero, self.total, f"{note} of its bytes", self.weight)
        if chosen > self.right.shape[-2]:
            raise InvalidArgumentError(
                f"[Factors.cut] rank must be at most {self.right.shape[-2]}, the pairs that are "
                f"there, got {chosen}. Give a larger rank to whitened_svd"
            )
        left, right = self.left[..., :chosen], self.right[..., :chosen, :]
        made = None
        if self.offset is not None:
            kept_part = np.asarray(_arrays.to_numpy(left), np.float64)
            part = kept_part @ self.within[..., :chosen, None]
            made = like(self.left, self.offset - part[..., 0])
        return LowRank(np.sqrt(self.tails[..., chosen]), self.total, "", left, right, made)

    def _rank(self, rank: int | None, kept: float | None, energy: float | None) -> int:
        function = "Factors.cut"
        if sum(one is not None for one in (rank, kept, energy)) != 1:
            raise InvalidArgumentError(
                f"[{function}] one of rank, kept and energy must be given, got rank={rank}, "
                f"kept={kept}, energy={energy}"
            )
        m, n = self.shape
        if rank is not None:
            return _checks.integer(function, "rank", rank, low=1, high=min(m, n))
        if kept is not None:
            kept = _checks.real(function, "kept", kept, low=0.0, high=1.0)
            found = rank_of_kept(m, n, kept)
            if not found:
                raise InvalidArgumentError(
                    f"[{function}] kept must leave room for rank 1 of {m} x {n}, got {kept}. Keep "
                    f"at least {(m + n) / (m * n):.3f}"
                )
            # all that may be kept is the weight itself: no factors come to less and hold it all
            return min(m, n) if kept == 1 else found
        share = _checks.real(function, "energy", energy, low=0.0, high=1.0)
        tails = self.tails
        allowed = (1.0 - share) * tails[..., :1] + 4 * np.finfo(np.float64).eps * tails[..., :1]
        return max(1, int(np.argmax(tails <= allowed, axis=-1).max()))


def _tails(x: NDArray[np.float64]) -> Floats:
    """Return (..., p + 1) sums of the last axis from each place on; smallest first, for digits."""
    sums = np.cumsum(x[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums, np.zeros_like(sums[..., :1])], axis=-1)
