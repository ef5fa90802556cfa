"""Cores with a basis for each mode: what a Tucker decomposition finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from subspan.tensors._reading import dense, give, imported
from subspan.tensors.unfolding import products

__all__ = ["TuckerTensor"]


class TuckerTensor(NamedTuple):
    r"""A core in the coordinates of one basis for each mode; unpacks as the pair of TensorLy.

    .. math:: \hat X = G \times_0 U_0 \times_1 U_1 \dots

    What `tucker` returns has orthonormal columns, whose entry of largest magnitude is positive.

    Attributes
    ----------
    core : array (R_0, ..., R_{N-1})
    factors : tuple of N arrays (I_n, R_n)
    """

    core: Any
    factors: Sequence[Any]

    @property
    def rank(self) -> tuple[int, ...]:
        """Extents of the core."""
        return tuple(int(extent) for extent in self.core.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense tensor."""
        return tuple(int(factor.shape[0]) for factor in self.factors)

    def to_dense(self) -> Any:
        """Return the dense tensor, in the library of the core."""
        core = dense("TuckerTensor.to_dense", "core", self.core)
        factors = [
            dense("TuckerTensor.to_dense", f"factors[{n}]", a) for n, a in enumerate(self.factors)
        ]
        return give(self.core, products(core, dict(enumerate(factors))))

    def to_tensorly(self) -> Any:
        """Return a ``tensorly.tucker_tensor.TuckerTensor`` of the same arrays."""
        module = imported("TuckerTensor.to_tensorly", "tensorly.tucker_tensor")
        return module.TuckerTensor((self.core, list(self.factors)))

    @classmethod
    def from_tensorly(cls, other: Any) -> TuckerTensor:
        """Of a TensorLy tensor, or any pair of core and factors."""
        core, factors = other
        return cls(core, tuple(factors))

    def to_pyttb(self) -> Any:
        """Return a ``pyttb.ttensor`` with copies of the arrays."""
        module = imported("TuckerTensor.to_pyttb", "pyttb")
        arrays = [
            np.asfortranarray(dense("TuckerTensor.to_pyttb", "array", a)).copy(order="F")
            for a in (self.core, *self.factors)
        ]
        return module.ttensor(module.tensor(arrays[0]), arrays[1:])

    @classmethod
    def from_pyttb(cls, other: Any) -> TuckerTensor:
        """Of a ``pyttb.ttensor``."""
        return cls(
            np.array(other.core.data, np.float64, order="C"),
            tuple(np.array(a, np.float64, order="C") for a in other.factor_matrices),
        )
