"""Least-squares concept erasure: the smallest change that leaves no linear information."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from subspan import Moments, svd
from subspan._affine import shifted
from subspan._checks import choice
from subspan._moments_estimator import Fitted
from subspan._spectral import eigen_axes
from subspan.erasure._concept import Concept, read_target
from subspan.erasure._eraser import ConceptEstimator, Floats, LinearEraser
from subspan.errors import InvalidArgumentError

__all__ = ["LEACE", "OracleLEACE"]


class LEACE(LinearEraser):
    r"""Closed-form erasure of all linear information about a concept, with the least change.

    With :math:`S = \mathrm{Cov}(x)`, :math:`C = \mathrm{Cov}(x, z)` and the left singular vectors U
    of :math:`S^{-1/2} C` (pseudo-inverse),

    .. math:: r(x) = x - S^{1/2} U U^T S^{-1/2} (x - \mu)
              = x - C (C^T S^+ C)^+ C^T S^+ (x - \mu).

    Afterwards Cov(r(x), z) = 0, so that on the rows of fit no linear classifier or regression of z
    has a smaller convex loss than the best constant; of all affine maps with this property, r moves
    the rows least in mean square, in every inner product. It keeps the mean, is idempotent, and
    follows invertible affine maps: erasing T x is T times erasing x.

    Parameters
    ----------
    method : {"leace", "orthogonal"}
        The map above; or the orthogonal projector onto what is orthogonal to the columns of C,
        which does not depend on S, erases as well, and changes more.
    concept : {"auto", "labels", "values"}
        What y is. "labels": one of k classes for each row, erased as one-hot columns. "values": one
        or k real columns. "auto": labels where y has one axis of integers, booleans or strings.

    Attributes
    ----------
    filters_ : ndarray, shape (q, d)
        What is read: ``filters_ @ (x - mean_)`` is all of the concept that is linear in x.
    patterns_ : ndarray, shape (q, d)
        What is taken away for a unit of each; ``filters_ @ patterns_.T`` is the identity.
    projection_ : ndarray, shape (d, d)
        ``I - patterns_.T @ filters_``.
    correlations_ : ndarray, shape (q,)
        Canonical correlations of x and z, descending: how linear the concept was.
    rank_ : int
        q: at most k - 1 for k classes, k for k columns.
    mean_ : ndarray, shape (d,)
    classes_ : ndarray, shape (k,)
        Labels in ascending order; absent for values.
    n_samples_, n_features_in_ : int
        Rows of positive weight, and columns.
    moments_ : Moments
        The mergeable state, with the labels as groups or the values as y.

    Notes
    -----
    Learning costs n d (d + k) flops in float64, in blocks, and about 10 d^3 once; transform 4 n d q
    flops in the library, on the device and in the dtype of the rows (half precision in float32).
    Directions whose variance is below d eps of the largest count as having none: nothing lies
    there. Correlations within rounding of 0 are not erased. No shrinkage, no thresholds beyond: the
    result is exact on the rows of fit, and with few rows of many columns it takes away chance
    correlations too.

    References
    ----------
    N. Belrose, D. Schneider-Joseph, S. Ravfogel, R. Cotterell, E. Raff, S. Biderman: LEACE: Perfect
    linear concept erasure in closed form. NeurIPS 2023, `arXiv:2306.03819
    <https://arxiv.org/abs/2306.03819>`_, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.erasure import LEACE
    >>> rng = np.random.default_rng(0)
    >>> z = rng.integers(0, 2, 500)
    >>> x = rng.normal(size=(500, 4)) + np.outer(z, [3.0, 1.0, 0.0, 0.0])
    >>> erased = LEACE().fit_transform(x, z)
    >>> bool(np.allclose(erased[z == 0].mean(axis=0), erased[z == 1].mean(axis=0)))
    True
    """

    correlations_: Fitted[NDArray[Any]] = Fitted()

    def __init__(
        self,
        method: Literal["leace", "orthogonal"] = "leace",
        *,
        concept: Literal["auto", "labels", "values"] = "auto",
    ) -> None:
        self.method = method
        self.concept = concept

    def _check_params(self, n_features: int, n_samples: int | None) -> None:
        super()._check_params(n_features, n_samples)
        choice("LEACE", "method", self.method, ("leace", "orthogonal"))

    def _project(self, concept: Concept, function: str) -> tuple[Floats, Floats, dict[str, Any]]:
        root = concept.root(function)
        axes = eigen_axes(concept.rows, coarse=self._coarse(concept.rows))
        kept = axes.variances > axes.floor
        if not kept.any():  # rows that are all equal hold nothing
            none = np.zeros((0, len(root)))
            return none, none, {"correlations_": np.zeros(0)}
        vectors, deviation = axes.components[kept], np.sqrt(axes.variances[kept])
        u, correlations, _ = svd(vectors @ root / deviation[:, None])[:3]
        rank = int(np.count_nonzero(correlations > concept.noise(float(deviation[-1]))))
        found = {"correlations_": np.minimum(correlations[:rank], 1.0)}
        u = u[:, :rank].T
        if self.method == "orthogonal":
            # From the span of C, C = S^1/2 U, rather than from C: of the same rank.
            basis = svd(u * deviation @ vectors).vh if rank else np.zeros((0, len(root)))
            return basis, basis, found
        return u / deviation @ vectors, u * deviation @ vectors, found


class OracleLEACE(ConceptEstimator):
    r"""The least change of rows that leaves no linear information, where the concept is known.

    .. math:: r(x, z) = x - \mathrm{Cov}(x, z)\, \mathrm{Cov}(z)^+ (z - \mathrm{E} z),

    the residual of the regression of x on z: for labels, rows minus the mean of their class plus
    the mean of all. It moves rows less than `LEACE`, which must guess z from x, but needs z for
    every row, and what is not linear in the result may tell more about z than before.

    Parameters
    ----------
    concept : {"auto", "labels", "values"}
        As for `LEACE`.

    Attributes
    ----------
    coefficients_ : ndarray, shape (k, d)
        What is taken away for each class, or for a unit of each column.
    target_mean_ : ndarray, shape (k,)
        Mean of the columns of values; absent for labels.
    mean_, classes_, n_samples_, n_features_in_, moments_
        As for `LEACE`.

    Notes
    -----
    Learning costs what `LEACE` costs without the d^3; transform 2 n d k flops for values, n d for
    labels.

    References
    ----------
    N. Belrose: Least-squares concept erasure with oracle concept labels. EleutherAI blog, 2023
    (https://blog.eleuther.ai/oracle-leace), theorem 1.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.erasure import OracleLEACE
    >>> x, z = np.array([[1.0, 5.0], [3.0, 5.0], [7.0, 8.0]]), ["a", "a", "b"]
    >>> OracleLEACE().fit(x, z).transform(x, z).mean(axis=0)
    array([3.66666667, 6.        ])
    """

    coefficients_: Fitted[NDArray[Any]] = Fitted()
    target_mean_: Fitted[NDArray[Any]] = Fitted()
    classes_: Fitted[NDArray[Any]] = Fitted()
    _masters: Fitted[tuple[Floats, NDArray[Any]]] = Fitted()  # and the mean, or the classes

    def __init__(self, *, concept: Literal["auto", "labels", "values"] = "auto") -> None:
        self.concept = concept

    def transform(self, X: Any, y: Any = None) -> Any:
        """Return rows without the concept.

        Parameters
        ----------
        X : array_like, shape (n, d)
            Rows; n >= 1.
        y : array_like, shape (n,) or (n, k)
            Their concept, of the kind of fit.

        Returns
        -------
        array of the library, device and dtype of ``X``, shape (n, d)
            A data frame where ``set_output`` asks for one. Differentiable for a torch tensor that
            requires a gradient.

        Raises
        ------
        InvalidArgumentError
            If the columns are not those of fit, a value is not finite, or a label is new.
        """
        rows = self._rows(X, "transform")
        target = read_target(y, int(rows.shape[0]), "OracleLEACE.transform", self.concept)
        coefficients, known = self._masters
        self._known().check_kind(target, "OracleLEACE.transform")
        if target.labels is not None:
            place = _places(target.labels, known)
        elif target.values is not None:
            centred = target.values - known

        def shift(start: int, stop: int) -> Floats:
            if target.labels is not None:
                return np.asarray(coefficients[place[start:stop]])
            return np.asarray(centred[start:stop] @ coefficients)

        return self._wrap(shifted(rows, shift, function="OracleLEACE.transform"), X)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit on rows and return them without the concept: ``fit(X, y).transform(X, y)``.

        Parameters
        ----------
        X, y, sample_weight
            As in fit.

        Returns
        -------
        array of the library, device and dtype of ``X``, shape (n, d)
        """
        return self.fit(X, y, sample_weight).transform(X, y)

    def _solve(self, moments: Moments) -> dict[str, Any]:
        concept = self._known()
        coefficients = concept.gains("OracleLEACE.fit")
        known = np.array(concept.target.mean) if concept.target is not None else concept.classes
        return {
            "mean_": np.array(moments.mean),
            "n_samples_": moments.count,
            "target_mean_" if concept.target is not None else "classes_": known,
            "coefficients_": coefficients,
            "_masters": (coefficients, known),
        }


def _places(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.intp]:
    place = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    new = classes[place] != labels
    if np.any(new):
        raise InvalidArgumentError(
            f"[OracleLEACE.transform] y must have labels of fit, got {labels[np.argmax(new)]!r}"
        )
    return place
