"""Removal of whole heads or coordinates, given or found by what carries over to other domains."""

from abc import abstractmethod
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from subspan import Moments
from subspan._affine import scaled
from subspan._checks import choice, integer, real
from subspan._moments_estimator import Fitted
from subspan.erasure._concept import Concept, Floats, Sample, Target, read_labels
from subspan.erasure._eraser import ConceptEstimator
from subspan.erasure._selection import select
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["CoordinateRemoval", "HeadRemoval"]

Ints = NDArray[np.int64]


class _BlockRemoval(ConceptEstimator):
    """Removal of blocks of neighbouring columns, given or found by a greedy search."""

    removed_: Fitted[Ints] = Fitted()
    coordinates_: Fitted[Ints] = Fitted()
    scores_: Fitted[NDArray[Any]] = Fitted()
    domains_: Fitted[NDArray[Any]] = Fitted()
    _factors: Fitted[tuple[Floats, Floats]] = Fitted()
    _parts: dict[Any, Concept]  # by domain
    n_remove: int | None
    fill: str
    ridge: float

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, *, domains: Any = None) -> Self:
        """Learn from rows, the task and the domain of every row, forgetting what was before.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows, as for `LEACE`; n >= 2.
        y : array_like, shape (n,) or (n, k), or None
            The task of the probe: labels or values. None where it is given what to remove.
        sample_weight : array_like of float, shape (n,), or None
            Frequency weights >= 0.
        domains : array_like of int or str, shape (n,), or None
            Domain of each row, at least two. None where it is given what to remove.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError
            If a parameter, a shape or a value is out of its range, there is one domain only, or
            the task does not vary in one.
        DtypeError
            If ``X`` is sparse or not made of numbers, or labels are of mixed types.
        """
        sample = self._take(X, y, sample_weight, "fit")
        return self._refit(X, self._with_domains(sample, domains, "fit"))

    def update(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, domains: Any = None
    ) -> Self:
        """Add rows to what was learnt; exact, whatever the order and the sizes of the parts.

        Parameters
        ----------
        X, y, sample_weight, domains
            As in fit; one row is enough here, and a part may be of one domain.

        Returns
        -------
        self

        Raises
        ------
        InvalidArgumentError, DtypeError
            As fit; the state is then unchanged.
        """
        sample = self._take(X, y, sample_weight, "update")
        return self._extend(X, self._with_domains(sample, domains, "update"))

    def partial_fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, domains: Any = None
    ) -> Self:
        """Do what `update` does, under the name that scikit-learn gives it."""
        return self.update(X, y, sample_weight, domains=domains)

    def fit_transform(
        self, X: Any, y: Any = None, sample_weight: Any = None, *, domains: Any = None
    ) -> Any:
        """Fit on rows and return them transformed: ``fit(...).transform(X)``.

        Parameters
        ----------
        X, y, sample_weight, domains
            As in fit.

        Returns
        -------
        array of the library, device and dtype of ``X``, shape (n, d)
        """
        return self.fit(X, y, sample_weight, domains=domains).transform(X)

    def transform(self, X: Any) -> Any:
        """Return rows with the removed columns set to their fill.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows; n >= 1.

        Returns
        -------
        array of the library, device and dtype of ``X``, shape (n, d)
            A data frame where ``set_output`` asks for one. Differentiable for a torch tensor that
            requires a gradient.

        Raises
        ------
        InvalidArgumentError
            If the columns are not those of fit, or a value is not finite.
        """
        rows = self._rows(X, "transform")
        factor, offset = self._factors
        return self._wrap(
            scaled(rows, factor, offset, function=f"{type(self).__name__}.transform"), X
        )

    @abstractmethod
    def _size(self, n_features: int) -> int:
        """Return the number of columns of a block."""

    @abstractmethod
    def _given(self) -> tuple[str, Any]:
        """Return the name and the value of the parameter that names blocks; None: a search."""

    def _check_params(self, n_features: int, n_samples: int | None) -> None:
        super()._check_params(n_features, n_samples)
        function = type(self).__name__
        choice(function, "fill", self.fill, ("zero", "mean"))
        real(function, "ridge", self.ridge, low=1e-15, high=1e15)
        n_blocks = n_features // self._size(n_features)
        if self.n_remove is not None:
            integer(function, "n_remove", self.n_remove, low=0, high=n_blocks - 1)
        name, given = self._given()
        if given is None:
            return
        if self.n_remove is not None:
            raise InvalidArgumentError(
                f"[{function}] n_remove must be None where {name} is given, got {self.n_remove}"
            )
        if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
            raise DtypeError(f"[{function}] {name} must be a sequence of integers, got {given!r}")
        blocks = [integer(function, name, block, low=0, high=n_blocks - 1) for block in given]
        if len(set(blocks)) < len(blocks):
            raise InvalidArgumentError(f"[{function}] {name} must be distinct, got {blocks}")

    def _target(self, y: Any, n: int, function: str) -> Target:
        if self._given()[1] is not None:  # no task: all rows are of one class
            return Target(labels=np.zeros(n, np.int64))
        return super()._target(y, n, function)

    def _with_domains(self, sample: Sample, domains: Any, method: str) -> Sample:
        if self._given()[1] is not None:
            return sample
        function = f"{type(self).__name__}.{method}"
        if domains is None:
            raise InvalidArgumentError(
                f"[{function}] domains must be given to choose what to remove, got None. Or give "
                f"{self._given()[0]}"
            )
        labels = read_labels("domains", domains, int(sample.rows.shape[0]), function)
        return sample._replace(domains=labels)

    def _add(self, sample: Sample) -> None:
        if sample.domains is None:
            super()._add(sample)
            return
        concept = Concept() if "moments_" not in vars(self) else self._known()
        parts = vars(self).setdefault("_parts", {})
        for block in sample.blocks():
            for name in np.unique(np.asarray(block.domains)).tolist():
                part = Concept().update(block.take(block.domains == name))
                if part.rows.count > 0:  # a domain whose rows all have weight 0 is not there
                    parts.setdefault(name, Concept()).merge(part)
                    concept.merge(part)
        self._keep(concept)

    def _restart(self) -> None:
        super()._restart()
        vars(self).pop("_parts", None)

    def _solve(self, moments: Moments) -> dict[str, Any]:
        size, (_, given) = self._size(moments.n_features), self._given()
        found: dict[str, Any] = {}
        removed = given
        if given is None:
            removed, found = self._search(size)
        removed = np.array(list(removed), dtype=np.int64)
        columns = (removed[:, None] * size + np.arange(size)).ravel()
        factor, mean = np.ones(moments.n_features), np.array(moments.mean)
        factor[columns] = 0.0
        offset = np.zeros_like(mean)
        if self.fill == "mean":
            offset[columns] = mean[columns]
        return {
            **found,
            "removed_": removed,
            "coordinates_": columns,
            "mean_": mean,
            "n_samples_": moments.count,
            "_factors": (factor, offset),
        }

    def _search(self, size: int) -> tuple[list[int], dict[str, Any]]:
        function = f"{type(self).__name__}.fit"
        parts = sorted(vars(self).get("_parts", {}).items())
        if len(parts) < 2:
            raise InvalidArgumentError(
                f"[{function}] domains must have at least 2 values, got {len(parts)}: the score "
                "is that on a domain of a probe fitted on the others"
            )
        selection = select(
            parts, size, n_remove=self.n_remove, ridge=float(self.ridge), function=function
        )
        domains = np.array([name for name, _ in parts])
        return selection.removed, {"scores_": np.array(selection.scores), "domains_": domains}


class HeadRemoval(_BlockRemoval):
    r"""Removal of heads: equal slots of neighbouring columns.

    The heads are given, or found by a greedy search for what carries over: with a ridge probe of
    the task y fitted on all domains but one, the score is :math:`R^2` on the one, averaged over
    the domains, and each step removes the head whose removal scores best.

    Parameters
    ----------
    n_heads : int
        Slots of d / n_heads columns each.
    heads : sequence of int, or None
        What to remove, 0 to n_heads - 1; None: the search, which needs y and domains in fit.
    n_remove : int or None
        Heads that the search removes; None: as long as the score rises.
    fill : {"zero", "mean"}
        What stands in removed columns: 0, or the mean of the rows of fit.
    ridge : float
        Penalty of the probe as a part of the mean variance, > 0.
    concept : {"auto", "labels", "values"}
        What y is, as for `LEACE`; labels are fitted as one-hot columns.

    Attributes
    ----------
    removed_ : ndarray of int64, shape (r,)
        Heads in the order of their removal.
    coordinates_ : ndarray of int64, shape (r d / n_heads,)
        Their columns.
    scores_ : ndarray, shape (r + 1,)
        Mean :math:`R^2` on domains left out, before the first removal and after each; absent where
        heads are given. Below 0: worse than the constant.
    domains_ : ndarray
        Domains in ascending order; absent where heads are given.
    mean_, n_samples_, n_features_in_, moments_
        As for `LEACE`.

    Notes
    -----
    The search works on moments: no probe sees a row twice. It costs an inversion and two products
    of d x d matrices for each domain, and for each step a downdate by the removed columns, from
    which the scores of all candidates follow; memory is 4 d^2 float64 for a domain. The original
    scores the accuracy of logistic probes; this scores the squared error of ridge probes.

    References
    ----------
    K. Kuznetsov et al.: Robust AI-generated text detection by restricted embeddings. Findings of
    EMNLP 2024, `arXiv:2410.08113 <https://arxiv.org/abs/2410.08113>`_ (heads, coordinates, and
    subspaces by `LEACE`).

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.erasure import HeadRemoval
    >>> rng = np.random.default_rng(0)
    >>> z, domain = rng.integers(0, 2, 600), np.repeat([0, 1, 2], 200)
    >>> x = rng.normal(size=(600, 6))
    >>> x[:, 0] += 2 * z                                # what carries over
    >>> x[:, 4] += 6 * z * np.array([1, -1, 0])[domain]  # what does not
    >>> HeadRemoval(3, n_remove=1).fit(x, z, domains=domain).removed_
    array([2])
    """

    def __init__(
        self,
        n_heads: int,
        heads: Any = None,
        *,
        n_remove: int | None = None,
        fill: Literal["zero", "mean"] = "zero",
        ridge: float = 1e-3,
        concept: Literal["auto", "labels", "values"] = "auto",
    ) -> None:
        self.n_heads = n_heads
        self.heads = heads
        self.n_remove = n_remove
        self.fill = fill
        self.ridge = ridge
        self.concept = concept

    def _size(self, n_features: int) -> int:
        n_heads = integer("HeadRemoval", "n_heads", self.n_heads, low=1)
        if n_features % n_heads:
            raise InvalidArgumentError(
                f"[HeadRemoval] n_heads must divide the number of columns {n_features}, got "
                f"{n_heads}"
            )
        return n_features // n_heads

    def _given(self) -> tuple[str, Any]:
        return "heads", self.heads


class CoordinateRemoval(_BlockRemoval):
    r"""Removal of single columns, given or found by a greedy search as in `HeadRemoval`.

    Parameters
    ----------
    coordinates : sequence of int, or None
        What to remove, 0 to d - 1; None: the search, which needs y and domains in fit.
    n_remove, fill, ridge, concept
        As for `HeadRemoval`, with columns for heads.

    Attributes
    ----------
    removed_ : ndarray of int64, shape (r,)
        Columns in the order of their removal; ``coordinates_`` is the same.
    scores_, domains_, mean_, n_samples_, n_features_in_, moments_
        As for `HeadRemoval`.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.erasure import CoordinateRemoval
    >>> CoordinateRemoval([1]).fit_transform(np.arange(6.0).reshape(2, 3))
    array([[0., 0., 2.],
           [3., 0., 5.]])
    """

    def __init__(
        self,
        coordinates: Any = None,
        *,
        n_remove: int | None = None,
        fill: Literal["zero", "mean"] = "zero",
        ridge: float = 1e-3,
        concept: Literal["auto", "labels", "values"] = "auto",
    ) -> None:
        self.coordinates = coordinates
        self.n_remove = n_remove
        self.fill = fill
        self.ridge = ridge
        self.concept = concept

    def _size(self, n_features: int) -> int:  # noqa: ARG002 (of heads, it matters)
        return 1

    def _given(self) -> tuple[str, Any]:
        return "coordinates", self.coordinates
