"""Sums of outer products: what a CP decomposition finds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

import subspan
from subspan import _arrays
from subspan.errors import DtypeError, InvalidArgumentError
from subspan.tensors._reading import Array, dense, finite, give, imported

__all__ = ["CPTensor"]


class CPTensor(NamedTuple):
    r"""A sum of R outer products; unpacks as the pair of TensorLy.

    .. math:: \hat X = \sum_r \lambda_r \, a^{(0)}_r \circ \dots \circ a^{(N-1)}_r

    What `subspan.tensors.cp` returns is normalised: columns of factors have length 1 and their
    entry of largest magnitude (the first of equal ones) is positive, so that the sign is that of
    the weight; weights descend in magnitude.

    Attributes
    ----------
    weights : array (R,)
    factors : tuple of N arrays (I_n, R)

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.tensors import CPTensor
    >>> one = CPTensor(np.ones(1), (np.array([[3.0], [4.0]]), np.array([[-2.0]])))
    >>> weights, factors = one.normalize()
    >>> weights.tolist(), factors[0].tolist(), factors[1].tolist()
    ([-10.0], [[0.6], [0.8]], [[1.0]])
    """

    weights: Any
    factors: Sequence[Any]

    @property
    def rank(self) -> int:
        """Number of outer products."""
        return int(self.factors[0].shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense tensor."""
        return tuple(int(factor.shape[0]) for factor in self.factors)

    def to_dense(self) -> Any:
        """Return the dense tensor, in the library of the weights: I R multiplications."""
        weights, factors = _read("CPTensor.to_dense", self)
        return give(self.weights, rebuilt(weights, factors))

    def norm(self) -> float:
        """Frobenius norm of the dense tensor, from products of factors alone."""
        weights, factors = _read("CPTensor.norm", self)
        wide = [a.astype(np.float64) for a in factors]
        both = reduce(np.multiply, [subspan.gram(a) for a in wide], np.outer(weights, weights))
        return float(np.sqrt(max(both.sum(), 0.0)))

    def normalize(self) -> CPTensor:
        """Return unit columns, largest entries positive, weights of descending magnitude."""
        weights, factors = _read("CPTensor.normalize", self)
        weights, unitary = normalized(weights, factors)
        return CPTensor(give(self.weights, weights), tuple(give(self.weights, a) for a in unitary))

    def to_tensorly(self) -> Any:
        """Return a ``tensorly.cp_tensor.CPTensor`` of the same arrays."""
        module = imported("CPTensor.to_tensorly", "tensorly.cp_tensor")
        return module.CPTensor((self.weights, list(self.factors)))

    @classmethod
    def from_tensorly(cls, other: Any) -> CPTensor:
        """Of a TensorLy tensor, or any pair of weights (or None for ones) and factors."""
        weights, factors = other
        if weights is None:
            weights = _arrays.empty_like_on(factors[0], (int(factors[0].shape[1]),))
            weights[...] = 1
        return cls(weights, tuple(factors))

    def to_pyttb(self) -> Any:
        """Return a ``pyttb.ktensor`` with copies of the arrays."""
        module = imported("CPTensor.to_pyttb", "pyttb")
        weights, factors = _read("CPTensor.to_pyttb", self)
        return module.ktensor([np.asfortranarray(a) for a in factors], weights.copy())

    @classmethod
    def from_pyttb(cls, other: Any) -> CPTensor:
        """Of a ``pyttb.ktensor``."""
        return cls(
            np.array(other.weights, np.float64),
            tuple(np.array(a, np.float64, order="C") for a in other.factor_matrices),
        )


def rebuilt(weights: Array, factors: Sequence[Array]) -> Array:
    """Return the dense tensor of numpy factors; weights (..., R), factors (..., I_n, R)."""
    left = factors[0] * weights[..., None, :]
    right = factors[1]
    lead = left.shape[:-2]
    for a in factors[2:]:
        right = (right[..., :, None, :] * a[..., None, :, :]).reshape(*lead, -1, a.shape[-1])
    shape = tuple(a.shape[-2] for a in factors)
    out: Array = np.matmul(left, right.swapaxes(-1, -2)).reshape(*lead, *shape)
    return out


def normalized(weights: Array, factors: Sequence[Array]) -> tuple[Array, tuple[Array, ...]]:
    """Return numpy weights and factors in the form that the class names."""
    weights = weights.copy()
    found = []
    for a in factors:
        sizes = np.linalg.norm(a, axis=0)
        safe = np.where(sizes > 0, sizes, 1)
        top = a[np.abs(a).argmax(axis=0), np.arange(a.shape[1])]
        signed = np.where(top < 0, -safe, safe).astype(a.dtype)
        weights *= np.where(sizes > 0, signed, 0).astype(weights.dtype)
        found.append(a / signed)
    order = np.argsort(-np.abs(weights), kind="stable")
    return weights[order], tuple(np.ascontiguousarray(a[:, order]) for a in found)


def _read(function: str, cp: CPTensor) -> tuple[Array, list[Array]]:
    return read_pair(function, "tensor", cp.weights, cp.factors)


def read_pair(function: str, name: str, weights: Any, factors: Any) -> tuple[Array, list[Array]]:
    """Weights and factors as finite numpy arrays of one rank."""
    if not isinstance(factors, (list, tuple)) or len(factors) < 2:
        raise InvalidArgumentError(
            f"[{function}] {name} must have two or more factors in a list or tuple, got "
            f"{type(factors).__name__} {'' if not hasattr(factors, '__len__') else len(factors)}"
        )
    found = [dense(function, f"{name}.factors[{n}]", a) for n, a in enumerate(factors)]
    w = dense(function, f"{name}.weights", weights)
    if len({a.dtype for a in [w, *found]}) > 1:
        raise DtypeError(
            f"[{function}] {name} must have one dtype, got {[str(a.dtype) for a in [w, *found]]}"
        )
    if any(a.ndim != 2 or a.shape[1:] != w.shape for a in found):
        raise InvalidArgumentError(
            f"[{function}] {name} must have factors (I_n, R) and weights (R,), got shapes "
            f"{[a.shape for a in found]} and {w.shape}"
        )
    for n, a in enumerate([w, *found]):
        finite(function, f"{name}.weights" if n == 0 else f"{name}.factors[{n - 1}]", a)
    return w, found
