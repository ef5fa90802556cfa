"""The measures, and what each promises: docs and property tests are made from this table."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from subspan.similarity import _hsic, correlations, dissimilarity, shapes
from subspan.similarity._progress import Steps

__all__ = ["MEASURES", "Measure", "Prepared"]


class Prepared(Protocol):
    """Layers of which a measure knows all it needs."""

    @property
    def ranks(self) -> tuple[NDArray[np.int64], ...] | None:
        """Dimensions of each layer, of either side, where the measure has them."""

    def matrix(self, steps: Steps) -> NDArray[np.float64]:
        """Return the values of all pairs, (L1, L2)."""

    def permuted(self, order: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return them with the samples of the second side in another order."""


class Measure(NamedTuple):
    """A measure of similarity or distance, under the name that `compare` takes."""

    name: str
    formula: str
    """In plain text, for centred X and Y."""
    low: float
    high: float
    identity: float
    """Value of a layer with itself."""
    is_distance: bool
    """Small values are similar."""
    is_metric: bool
    """A distance with triangle inequality."""
    symmetric: bool
    invariances: frozenset[str]
    """Of each side by itself; "translation", "orthogonal", "scale", "linear" (invertible maps)."""
    prepare: Callable[..., Prepared]
    options: Mapping[str, Any]
    """Keyword options and their defaults."""


_ROTATION = frozenset({"translation", "orthogonal"})
_SHAPE = _ROTATION | {"scale"}
_LINEAR = _SHAPE | {"linear"}


def _measure(
    name: str,
    formula: str,
    invariances: frozenset[str],
    prepare: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    low: float = 0.0,
    high: float = 1.0,
    distance: bool = False,
    symmetric: bool = True,
) -> Measure:
    return Measure(
        name=name,
        formula=formula,
        low=low,
        high=high,
        identity=0.0 if distance else 1.0,
        is_distance=distance,
        is_metric=distance,
        symmetric=symmetric,
        invariances=invariances,
        prepare=prepare,
        options=MappingProxyType(dict(options)),
    )


def _canonical(kind: correlations.Kind) -> Callable[..., Prepared]:
    return functools.partial(correlations.prepare, kind=kind)


_CANONICAL = {"rtol": None}
_CKA = {"kernel": "linear", "bandwidth": 1.0, "unbiased": False}
_PROCRUSTES = {"kind": "angular", "alpha": 1.0, "rtol": None}
_RSA = {"rdm": "correlation", "method": "spearman"}

_ALL = (
    _measure("cca", "mean rho_i", _LINEAR, _canonical("cca"), _CANONICAL),
    _measure(
        "svcca",
        "mean rho_i of the principal components that hold 99 % of the variance",
        _SHAPE,
        _canonical("svcca"),
        _CANONICAL | {"share": 0.99},
    ),
    _measure(
        "pwcca",
        "sum alpha_i rho_i, alpha_i ~ sum_j |<h_i, x_j>|",
        frozenset({"translation", "scale"}),
        _canonical("pwcca"),
        _CANONICAL,
        symmetric=False,
    ),
    _measure("cka", "|X'Y|_F^2 / (|X'X|_F |Y'Y|_F)", _SHAPE, _hsic.prepare, _CKA),
    _measure(
        "cka-unbiased",
        "the same with the unbiased HSIC_1",
        _SHAPE,
        _hsic.prepare,
        _CKA | {"unbiased": True},
        low=-1.0,
    ),
    _measure(
        "cka-rbf",
        "tr KHLH / sqrt(tr KHKH tr LHLH), K and L Gaussian",
        _SHAPE,
        _hsic.prepare,
        _CKA | {"kernel": "rbf"},
    ),
    _measure(
        "procrustes",
        "arccos(|X'Y|_* / (|X|_F |Y|_F))",
        _SHAPE,
        shapes.prepare,
        _PROCRUSTES,
        high=np.pi / 2,
        distance=True,
    ),
    _measure(
        "procrustes-size",
        "sqrt(|X|_F^2 + |Y|_F^2 - 2 |X'Y|_*)",
        _ROTATION,
        shapes.prepare,
        _PROCRUSTES | {"kind": "size"},
        high=np.inf,
        distance=True,
    ),
    _measure(
        "shape",
        "procrustes of sides whitened half way",
        _SHAPE,
        shapes.prepare,
        _PROCRUSTES | {"alpha": 0.5},
        high=np.pi / 2,
        distance=True,
    ),
    _measure(
        "rsa",
        "Spearman correlation of 1 - corr(x_i, x_j)",
        frozenset({"scale"}),
        dissimilarity.prepare,
        _RSA,
        low=-1.0,
    ),
    _measure(
        "rsa-euclidean",
        "Spearman correlation of |x_i - x_j|^2",
        _SHAPE,
        dissimilarity.prepare,
        _RSA | {"rdm": "euclidean"},
        low=-1.0,
    ),
)
MEASURES: Mapping[str, Measure] = MappingProxyType({measure.name: measure for measure in _ALL})
"""By name."""
