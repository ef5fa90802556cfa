"""Find, compare, encode and compress subspaces of features.

Fast and exact C++/CUDA primitives on numpy, torch and cupy arrays, and the workflows that people
run with them on the activations and weights of neural networks.
"""

from subspan import errors
from subspan._ops.native import __version__

# isort: split
from subspan._config import cpu_level, get_num_threads, set_num_threads, show_config
from subspan._ops.adam import adam_step, gradient_norm
from subspan._ops.cholesky import CholeskyInfo, cholesky
from subspan._ops.decode import sparse_decode
from subspan._ops.eigh import Eigh, EighInfo, eigh, eigvalsh
from subspan._ops.encode import (
    RaggedCode,
    SparseCode,
    batch_topk_encode,
    threshold_encode,
    topk_encode,
)
from subspan._ops.gram import Grams, gram, gram_inner, grams
from subspan._ops.joint_kernel_sums import JointSums, joint_kernel_sums
from subspan._ops.kernel_logsumexp import kernel_logsumexp
from subspan._ops.kernel_matvec import kernel_matvec
from subspan._ops.knn import KNN, Radius, knn, knn_both, radius_neighbors
from subspan._ops.moments import Moments
from subspan._ops.mttkrp import mttkrp
from subspan._ops.pca import PCA
from subspan._ops.qr import QR, qr
from subspan._ops.solve_triangular import SolveTriangularInfo, solve_triangular
from subspan._ops.svd import SVD, SVDInfo, svd, svdvals
from subspan._ops.tensor_power import TensorPower, tensor_power
from subspan._ops.topk import TopK, topk

# isort: split
from subspan import spectrum  # made of the primitives above

__all__ = [
    "KNN",
    "PCA",
    "QR",
    "SVD",
    "CholeskyInfo",
    "Eigh",
    "EighInfo",
    "Grams",
    "JointSums",
    "Moments",
    "Radius",
    "RaggedCode",
    "SVDInfo",
    "SolveTriangularInfo",
    "SparseCode",
    "TensorPower",
    "TopK",
    "__version__",
    "adam_step",
    "batch_topk_encode",
    "cholesky",
    "cpu_level",
    "eigh",
    "eigvalsh",
    "errors",
    "get_num_threads",
    "gradient_norm",
    "gram",
    "gram_inner",
    "grams",
    "joint_kernel_sums",
    "kernel_logsumexp",
    "kernel_matvec",
    "knn",
    "knn_both",
    "mttkrp",
    "qr",
    "radius_neighbors",
    "set_num_threads",
    "show_config",
    "solve_triangular",
    "sparse_decode",
    "spectrum",
    "svd",
    "svdvals",
    "tensor_power",
    "threshold_encode",
    "topk",
    "topk_encode",
]
