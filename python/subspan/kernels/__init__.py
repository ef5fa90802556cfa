"""Kernel methods over `subspan.kernel_matvec`: factors, features, solvers, estimators, weights."""

from subspan.kernels._error import ProductInfo
from subspan.kernels.density import KernelDensity
from subspan.kernels.features import random_features
from subspan.kernels.mass import KernelMass, kernel_mass
from subspan.kernels.nystrom import NystromFactor, nystrom
from subspan.kernels.ridge import KernelRidge
from subspan.kernels.solving import SolveInfo, solve
from subspan.kernels.sparse import SparseFactor, sparsify
from subspan.kernels.weighting import magnitude, weighting_vector

__all__ = [
    "KernelDensity",
    "KernelMass",
    "KernelRidge",
    "NystromFactor",
    "ProductInfo",
    "SolveInfo",
    "SparseFactor",
    "kernel_mass",
    "magnitude",
    "nystrom",
    "random_features",
    "solve",
    "sparsify",
    "weighting_vector",
]
