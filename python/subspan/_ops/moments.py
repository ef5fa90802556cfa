"""Moments: what one pass over rows leaves behind, exactly mergeable."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from subspan import _arrays, _checks, _core, _files
from subspan.errors import DtypeError, FileFormatError, InvalidArgumentError

__all__ = ["Moments", "principal_axes"]

Float64 = npt.NDArray[np.float64]
_STATE_VERSION = 1


class Moments:
    r"""Count, mean and second moments of weighted rows, from one pass in any number of chunks.

    .. math:: M_2 = \sum_i w_i (x_i - \bar x)(x_i - \bar x)^T, \qquad
              \bar x = \sum_i w_i x_i / W, \quad W = \sum_i w_i

    States of disjoint rows merge exactly (up to float64 rounding), so the same code runs over
    chunks, files, processes and machines. Rows are shifted by a running mean before they are
    multiplied, so data far from the origin lose nothing.

    Parameters
    ----------
    precision : {"auto", "float64"}
        ``"auto"``: float16, bfloat16 and float32 rows are multiplied in float32, at most 256 rows
        at a time, and these sums are added in float64: an error of typically
        1e-7, at most 1.5e-5 (256 · 2⁻²⁴), of :math:`\sqrt{M_{ii} M_{jj}}` whatever the number of
        rows and the means. float64 rows are multiplied in
        float64. ``"float64"``: everything in float64, half as fast on float32 rows, for directions
        whose variance is below 1e-7 of the largest.

    Attributes
    ----------
    count : int
        Rows of positive weight.
    weight_sum, weight_sq_sum : float
        :math:`W` and :math:`\sum_i w_i^2`.
    n_features : int
        Columns d; 0 before the first update.
    mean : ndarray (d,) float64
    m2 : ndarray (d, d) float64
        The state itself, not copies: later updates change them.
    mean_y, cross_m2 : ndarray (e,), (d, e) float64 or None
        Of the second array, if updates had ``y``.
    group_labels : ndarray (g,); group_counts, group_weights : ndarray (g,); group_means : (g, d)
        Of the groups, in the order of their first appearance, if updates had ``groups``.

    Notes
    -----
    Cost of an update: :math:`n d^2` flops. Memory: 16 d² bytes for the state and the sums of a
    call, up to 3 MiB of sums when d is small, about 14 MiB of packed rows; never a copy of x.
    The bits of the result do not depend on the number of threads. The state is on the host, also
    for rows on a GPU.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque: Algorithms for computing the sample variance. The
    American Statistician 37 (1983) 242-247, equations 2.1.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> x = np.arange(12.0).reshape(6, 2)
    >>> a = subspan.Moments().update(x[:4])
    >>> b = subspan.Moments().update(x[4:])
    >>> np.allclose(a.merge(b).covariance(), np.cov(x.T))
    True
    """

    def __init__(self, *, precision: str = "auto") -> None:
        self.precision = _checks.choice("Moments", "precision", precision, ("auto", "float64"))
        self._count = np.zeros(1, np.int64)
        self._totals = np.zeros(2)
        self._mean: Float64 = np.zeros(0)
        self._m2: Float64 = np.zeros((0, 0))
        self._cross: _Cross | None = None
        self._groups: _Groups | None = None

    # -- state -------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return int(self._count[0])

    @property
    def weight_sum(self) -> float:
        return float(self._totals[0])

    @property
    def weight_sq_sum(self) -> float:
        return float(self._totals[1])

    @property
    def n_features(self) -> int:
        return len(self._mean)

    @property
    def mean(self) -> Float64:
        return self._mean

    @property
    def m2(self) -> Float64:
        return self._m2

    @property
    def mean_y(self) -> Float64 | None:
        return None if self._cross is None else self._cross.mean_y

    @property
    def cross_m2(self) -> Float64 | None:
        return None if self._cross is None else self._cross.cross

    @property
    def group_labels(self) -> npt.NDArray[Any]:
        return np.asarray(self._grouped("group_labels").labels)

    @property
    def group_counts(self) -> npt.NDArray[np.int64]:
        return self._grouped("group_counts").counts

    @property
    def group_weights(self) -> Float64:
        return self._grouped("group_weights").weights

    @property
    def group_means(self) -> Float64:
        groups = self._grouped("group_means")
        return groups.sums / groups.weights[:, None]

    def __repr__(self) -> str:
        return (
            f"Moments(count={self.count}, n_features={self.n_features}, "
            f"precision={self.precision!r})"
        )

    # -- accumulation ------------------------------------------------------------------------

    def update(self, x: Any, weights: Any = None, groups: Any = None, *, y: Any = None) -> Self:
        """Add rows; the state is as it was if this raises.

        Parameters
        ----------
        x : array (n, d)
            float16, bfloat16, float32 or float64 of numpy, torch, cupy or another library with
            DLPack; any strides, read-only and memory-mapped arrays too. n may be 0.
        weights : array (n,), optional
            Of x's library; converted to float64. Finite and >= 0; rows of weight 0 are skipped
            whatever they hold.
        groups : array (n,), optional
            Label of each row (integers or strings); counts and means are kept per group. On the
            host; rows of all updates must have one.
        y : array (n, e), optional
            A second array of x's library, device and dtype; its mean and the cross moments with x
            are kept. All updates must have it. Not on CUDA.

        Returns
        -------
        Moments
            self

        Raises
        ------
        InvalidArgumentError
            Wrong shape; NaN or infinity in a row of positive weight (named); a negative weight.
        DtypeError
            Not an array, an integer array, mixed libraries or devices.
        UnsupportedError
            A CUDA array without CUDA library or device; a torch tensor that requires a gradient.
        """
        _arrays.require_same("Moments.update", x=x, y=y)
        _checks.ndim("Moments.update", "x", x, 2)
        n, d = (int(extent) for extent in x.shape)
        if d == 0:
            raise InvalidArgumentError("[Moments.update] x must have at least one column, got 0")
        if self.n_features not in {0, d}:
            raise InvalidArgumentError(
                f"[Moments.update] x must have {self.n_features} columns as before, got {d}"
            )
        stream = _arrays.stream_of(x)
        rows = _arrays.exportable("Moments.update", "x", x)
        w = _row_weights(x, weights, n)
        fresh = self.n_features == 0
        self._match_kind("y", y is not None, self._cross is not None)
        self._match_kind("groups", groups is not None, self._groups is not None)

        cross = self._updated_cross(rows, y, w) if y is not None else None
        grouped = self._updated_groups(rows, groups, w) if groups is not None else None
        if fresh:
            self._mean, self._m2 = np.zeros(d), np.zeros((d, d))
        try:
            _core.moments_update(rows, w, self._state(), self.precision == "float64", stream)
        except BaseException:
            if fresh:
                self._mean, self._m2 = np.zeros(0), np.zeros((0, 0))
            raise
        # What was kept before is in them; a state without rows takes the kind of its first rows.
        self._cross, self._groups = cross, grouped
        return self

    def merge(self, other: Moments) -> Self:
        """Add the rows of another state, which is left as it is.

        Equals one pass over the rows of both, but for rounding: exact in real arithmetic,
        commutative and associative to float64 rounding. O(d²), no scratch.

        Raises
        ------
        DtypeError, InvalidArgumentError
            ``other`` is no Moments, or has other columns, or only one of the two has y or groups.
        """
        if not isinstance(other, Moments):
            raise DtypeError(f"[Moments.merge] other must be a Moments, got {type(other).__name__}")
        if other.n_features not in {0, self.n_features} and self.n_features:
            raise InvalidArgumentError(
                f"[Moments.merge] other must have {self.n_features} columns, got {other.n_features}"
            )
        if other.count == 0:  # no rows: the identity, whatever kind it was prepared for
            return self
        # A state is only as precise as the least precise of its parts.
        float64 = self.precision == other.precision == "float64"
        if self.count == 0:
            self._load(other.state_dict())
            self.precision = "float64" if float64 else "auto"
            return self
        # Reading and writing one state at once would change the means under way.
        other = other.copy() if other is self else other
        self._match_kind("y", other._cross is not None, self._cross is not None)
        self._match_kind("groups", other._groups is not None, self._groups is not None)
        if self._cross is not None and other._cross is not None:
            if self._cross.cross.shape != other._cross.cross.shape:
                raise InvalidArgumentError(
                    f"[Moments.merge] other must have y of {self._cross.cross.shape[1]} columns, "
                    f"got {other._cross.cross.shape[1]}"
                )
            _core.cross_moments_merge(self._cross.state(), other._cross.state())
        _core.moments_merge(self._state(), other._state())
        self.precision = "float64" if float64 else "auto"
        if self._groups is not None and other._groups is not None:
            self._groups = self._groups.plus(other._groups)
        return self

    # -- what is asked of it -----------------------------------------------------------------

    def denominator(self, ddof: float = 1, *, weights: str = "frequency") -> float:
        r"""Divisor of the covariance.

        ``"frequency"``: :math:`W - \mathrm{ddof}`, weights are counts of repeated rows.
        ``"reliability"``: :math:`W - \mathrm{ddof} \sum w^2 / W`, their scale means nothing.

        Raises
        ------
        InvalidArgumentError
            The divisor is not positive: with ddof=1 a single row has no variance.
        """
        kind = _checks.choice(
            "Moments.denominator", "weights", weights, ("frequency", "reliability")
        )
        total = self.weight_sum
        lost = ddof if kind == "frequency" or total == 0 else ddof * self.weight_sq_sum / total
        if total - lost <= 0:
            raise InvalidArgumentError(
                f"[Moments] the rows must weigh more than ddof ({ddof}) for a variance, got a "
                f"total of {total:g} in {self.count} rows. Add rows, or use ddof=0"
            )
        return total - lost

    def covariance(self, ddof: float = 1, *, weights: str = "frequency") -> Float64:
        """Return the covariance matrix (d, d), ``m2`` over the `denominator`."""
        return self._m2 / self.denominator(ddof, weights=weights)

    def second_moment(self) -> Float64:
        """Return the uncentred second moment (d, d): sum w x x^T / W."""
        total = self.denominator(0)
        return self._m2 / total + np.outer(self._mean, self._mean)

    def cross_covariance(self, ddof: float = 1, *, weights: str = "frequency") -> Float64:
        """Return the covariance (d, e) of x and y.

        Raises
        ------
        InvalidArgumentError
            No update had ``y``.
        """
        if self._cross is None:
            raise InvalidArgumentError(
                "[Moments.cross_covariance] updates must have had y, got none. Call update(x, y=y)"
            )
        return self._cross.cross / self.denominator(ddof, weights=weights)

    def between(self) -> Float64:
        """Return the scatter of the group means, sum_g W_g (m_g - mean)(m_g - mean)^T, (d, d)."""
        distance = self.group_means - self._mean
        return (distance * self.group_weights[:, None]).T @ distance

    def within(self) -> Float64:
        """Return the scatter within the groups, ``m2 - between()``, (d, d)."""
        return self._m2 - self.between()

    # -- storage -----------------------------------------------------------------------------

    def copy(self) -> Moments:
        """Return an independent copy."""
        return Moments.from_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, npt.NDArray[Any]]:
        """Return the state as plain arrays, copied: for any transport, e.g. an all-gather."""
        state: dict[str, npt.NDArray[Any]] = {
            "version": np.array([_STATE_VERSION]),
            "float64_products": np.array([self.precision == "float64"]),
            "count": self._count.copy(),
            "totals": self._totals.copy(),
            "mean": self._mean.copy(),
            "m2": self._m2.copy(),
        }
        if self._cross is not None:
            state |= {f"cross.{name}": a.copy() for name, a in self._cross.arrays().items()}
        if self._groups is not None:
            state |= {f"groups.{name}": a.copy() for name, a in self._groups.arrays().items()}
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Return the Moments of a `state_dict`.

        Raises
        ------
        FileFormatError
            An entry is missing, or shapes do not belong together.
        """
        self = cls()
        self._load(state)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to ``path``, whole or not at all.

        ``.npz`` needs numpy only; ``.safetensors`` needs that package (``subspan[report]``).

        Raises
        ------
        InvalidArgumentError
            Another suffix.
        OSError
            The file cannot be written; what was there before is still there.
        """
        kind = _format_of("Moments.save", path)
        state = self.state_dict()
        with _files.replacing(path) as temporary:
            if kind == ".npz":
                with temporary.open("wb") as file:
                    np.savez(file, **cast("dict[str, Any]", state))
            else:
                _safetensors().save_file(_storable(state), temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a state that `save` wrote.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        FileFormatError
            The file is truncated or holds something else.
        """
        import zipfile  # not needed by anybody who loads nothing

        kind = _format_of("Moments.load", path)
        if not Path(path).is_file():
            raise FileNotFoundError(f"[Moments.load] path must be a file, got {path}")
        try:
            if kind == ".npz":
                with zipfile.ZipFile(path):  # np.load takes a .npy file under any name
                    pass
                with np.load(path, allow_pickle=False) as archive:
                    state = dict(archive)
            else:
                state = _safetensors().load_file(path)
        except (
            *(OSError, ValueError, EOFError, NotImplementedError, RuntimeError),
            *(zipfile.BadZipFile, zlib.error, _safetensors_error()),
        ) as error:
            raise FileFormatError(
                f"[Moments.load] {path} must be a whole {kind} file, got: {error}"
            ) from error
        return cls.from_state_dict(state)

    # -- inner parts -------------------------------------------------------------------------

    def _state(self) -> tuple[Any, ...]:
        return (self._count, self._totals, self._mean, self._m2)

    def _match_kind(self, name: str, given: bool, kept: bool) -> None:
        if self.count and given != kept:
            had, has = ("had", "no") if kept else ("had no", "some")
            raise InvalidArgumentError(
                f"[Moments] {name} must be given always or never: earlier rows {had} {name}, "
                f"these have {has}"
            )

    def _grouped(self, name: str) -> _Groups:
        if self._groups is None:
            raise InvalidArgumentError(
                f"[Moments.{name}] updates must have had groups, got none. "
                "Call update(x, groups=labels)"
            )
        return self._groups

    def _updated_cross(self, x: Any, y: Any, weights: Any) -> _Cross:
        _checks.ndim("Moments.update", "y", y, 2)
        if _arrays.dtype_name(y) != _arrays.dtype_name(x):
            raise DtypeError(
                f"[Moments.update] y must have the dtype of x ({_arrays.dtype_name(x)}), "
                f"got {_arrays.dtype_name(y)}"
            )
        e = int(y.shape[1])
        cross = _Cross.empty(int(x.shape[1]), e) if self._cross is None else self._cross.copy()
        if cross.cross.shape[1] != e:
            raise InvalidArgumentError(
                f"[Moments.update] y must have {cross.cross.shape[1]} columns as before, got {e}"
            )
        target = _arrays.exportable("Moments.update", "y", y)
        _core.cross_moments_update(x, target, weights, cross.state(), self.precision == "float64")
        return cross

    def _updated_groups(self, x: Any, groups: Any, weights: Any) -> _Groups:
        labels = _arrays.to_numpy(groups) if _arrays.library_of(groups) else np.asarray(groups)
        n, d = (int(extent) for extent in x.shape)
        if labels.shape != (n,):
            raise InvalidArgumentError(
                f"[Moments.update] groups must have shape ({n},), one per row of x, "
                f"got {labels.shape}"
            )
        w = np.ones(n) if weights is None else _arrays.to_numpy(weights)
        live = w > 0  # a group that has only rows of weight 0 does not exist
        names, first, found = np.unique(labels[live], return_index=True, return_inverse=True)
        order = np.argsort(first)  # np.unique sorts; groups keep the order of their appearance
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        ids = np.zeros(n, np.int64)
        ids[live] = place[found]
        batch = _Groups(
            list(names[order]),
            np.bincount(ids[live], minlength=len(names)).astype(np.int64),
            np.bincount(ids[live], weights=w[live], minlength=len(names)).astype(np.float64),
            np.zeros((len(names), d)),
        )
        if len(names):
            _core.group_sums(x, weights, ids, batch.sums)
        return batch if self._groups is None else self._groups.plus(batch)

    def _load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        try:
            version = int(state["version"][0])
            if version != _STATE_VERSION:
                raise FileFormatError(
                    f"[Moments] the state must be of version {_STATE_VERSION}, got {version}"
                )
            self.precision = "float64" if state["float64_products"][0] else "auto"
            self._count = np.array(state["count"], np.int64).reshape(1)
            self._totals = np.array(state["totals"], np.float64).reshape(2)
            self._mean = np.array(state["mean"], np.float64).reshape(-1)
            d = len(self._mean)
            self._m2 = np.array(state["m2"], np.float64).reshape(d, d)
            self._cross = _Cross.load(state, d) if "cross.cross" in state else None
            self._groups = _Groups.load(state, d) if "groups.sums" in state else None
        except (KeyError, IndexError, ValueError, TypeError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(
                f"[Moments] the state must hold what state_dict gives: {error}"
            ) from error


class _Cross:
    """Cross moments of x and y, with means of their own so that they merge by themselves."""

    def __init__(self, totals: Float64, mean_x: Float64, mean_y: Float64, cross: Float64) -> None:
        self.totals, self.mean_x, self.mean_y, self.cross = totals, mean_x, mean_y, cross

    @classmethod
    def empty(cls, d: int, e: int) -> Self:
        return cls(np.zeros(1), np.zeros(d), np.zeros(e), np.zeros((d, e)))

    @classmethod
    def load(cls, state: Mapping[str, npt.NDArray[Any]], d: int) -> Self:
        mean_y = np.array(state["cross.mean_y"], np.float64).reshape(-1)
        return cls(
            np.array(state["cross.totals"], np.float64).reshape(1),
            np.array(state["cross.mean_x"], np.float64).reshape(d),
            mean_y,
            np.array(state["cross.cross"], np.float64).reshape(d, len(mean_y)),
        )

    def arrays(self) -> dict[str, Float64]:
        return {
            "totals": self.totals,
            "mean_x": self.mean_x,
            "mean_y": self.mean_y,
            "cross": self.cross,
        }

    def state(self) -> tuple[Any, ...]:
        return tuple(self.arrays().values())

    def copy(self) -> _Cross:
        return _Cross(*(a.copy() for a in self.arrays().values()))


class _Groups:
    """Rows, weights and weighted sums by label."""

    def __init__(
        self, labels: list[Any], counts: npt.NDArray[np.int64], weights: Float64, sums: Float64
    ) -> None:
        self.labels, self.counts, self.weights, self.sums = labels, counts, weights, sums

    @classmethod
    def load(cls, state: Mapping[str, npt.NDArray[Any]], d: int) -> Self:
        labels = list(np.asarray(state["groups.labels"]))
        g = len(labels)
        return cls(
            labels,
            np.array(state["groups.counts"], np.int64).reshape(g),
            np.array(state["groups.weights"], np.float64).reshape(g),
            np.array(state["groups.sums"], np.float64).reshape(g, d),
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "labels": np.asarray(self.labels),
            "counts": self.counts,
            "weights": self.weights,
            "sums": self.sums,
        }

    def plus(self, other: _Groups) -> _Groups:
        slots = {label: slot for slot, label in enumerate(self.labels)}
        for label in other.labels:
            slots.setdefault(label, len(slots))
        target = np.array([slots[label] for label in other.labels], np.int64)
        grown = len(slots) - len(self.labels)
        counts = np.pad(self.counts, (0, grown))
        weights = np.pad(self.weights, (0, grown))
        sums = np.pad(self.sums, ((0, grown), (0, 0)))
        counts[target] += other.counts
        weights[target] += other.weights
        sums[target] += other.sums
        return _Groups(list(slots), counts, weights, sums)


def principal_axes(
    moments: Moments, k: int, *, negative_tolerance: float
) -> tuple[Float64, Float64]:
    """Return the leading k principal axes of a state.

    Parameters
    ----------
    moments : Moments
    k : int
        1..d
    negative_tolerance : float
        Negative eigenvalues down to so many times the largest are rounding and become 0.

    Returns
    -------
    components : ndarray (k, d) float64
        Orthonormal rows by descending variance; the entry of largest magnitude of each is
        positive (the first one of equals).
    variances : ndarray (k,) float64
        >= 0

    Raises
    ------
    InvalidArgumentError
        k out of range; too few rows for a variance; a negative eigenvalue beyond the tolerance.
    """
    d = moments.n_features
    k = _checks.integer("principal_axes", "k", k, low=1, high=d)
    components, variances = np.empty((k, d)), np.empty(k)
    _core.principal_axes(
        moments.m2, moments.denominator(), components, variances, negative_tolerance
    )
    return components, variances


def _row_weights(x: Any, weights: Any, n: int) -> Any:
    """Weights as a contiguous float64 array of x's library and device, or None."""
    if weights is None:
        return None
    _arrays.require_same("Moments.update", x=x, weights=weights)
    weights = _arrays.exportable("Moments.update", "weights", weights)
    name = _arrays.dtype_name(weights)
    if name.startswith("complex") or getattr(weights.dtype, "kind", "f") in "cOSUmM":
        raise DtypeError(f"[Moments.update] weights must be real numbers, got {name}")
    if tuple(weights.shape) != (n,):
        raise InvalidArgumentError(
            f"[Moments.update] weights must have shape ({n},), one per row of x, "
            f"got {tuple(weights.shape)}"
        )
    if _arrays.library_of(weights) == "torch":
        return weights.detach().double().contiguous()
    if hasattr(weights, "astype"):
        return weights.astype("float64")
    return np.ascontiguousarray(_arrays.to_numpy(weights), dtype=np.float64)


def _format_of(function: str, path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix
    return _checks.choice(function, "suffix of path", suffix, (".npz", ".safetensors"))


def _storable(state: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    for name, array in state.items():
        if array.dtype.kind not in "biuf":
            raise InvalidArgumentError(
                f"[Moments.save] {name} must be numbers for .safetensors, got {array.dtype}. "
                "Save as .npz"
            )
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "[Moments] .safetensors files need the package safetensors: "
            "pip install 'subspan[report]', or use .npz"
        ) from None
    return safetensors.numpy


def _safetensors_error() -> type[Exception]:
    try:
        from safetensors import SafetensorError
    except ImportError:
        return OSError
    return SafetensorError
