"""
Native core of subspan. Private: use the functions of the subspan package.
"""
from __future__ import annotations
import collections.abc
import typing
__all__: list[str] = ['adam_step', 'batch_topk_encode', 'blas_name', 'cholesky', 'cpu_level', 'cross_moments_merge', 'cross_moments_update', 'describe', 'eigh', 'fill_normal', 'get_num_threads', 'gradient_norm', 'gram', 'gram_inner', 'grams', 'group_sums', 'has_cuda', 'joint_kernel_sums', 'joint_kernel_sums_backward', 'kernel_logsumexp', 'kernel_logsumexp_backward', 'kernel_matvec', 'kernel_matvec_backward', 'knn', 'knn_both', 'moments_merge', 'moments_update', 'mttkrp', 'philox', 'principal_axes', 'qr', 'radius_neighbors', 'set_num_threads', 'solve_triangular', 'sparse_decode', 'sparse_decode_backward', 'svd', 'tensor_power', 'threshold_encode', 'topk', 'topk_encode', 'topk_encode_backward']
def adam_step(w: typing.Any, g: typing.Any, m: typing.Any, v: typing.Any, step: typing.SupportsInt | typing.SupportsIndex, lr: typing.SupportsFloat | typing.SupportsIndex, beta1: typing.SupportsFloat | typing.SupportsIndex, beta2: typing.SupportsFloat | typing.SupportsIndex, eps: typing.SupportsFloat | typing.SupportsIndex, weight_decay: typing.SupportsFloat | typing.SupportsIndex, scale: typing.SupportsFloat | typing.SupportsIndex, row_limit: typing.SupportsFloat | typing.SupportsIndex, remove_parallel: bool, unit_rows: bool, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    One step of Adam on the rows of w [n, d], m and v, in place.
    """
def batch_topk_encode(x: typing.Any, w_enc: typing.Any, b_enc: typing.Any, b_pre: typing.Any, count: typing.SupportsInt | typing.SupportsIndex, offsets: typing.Any, allocate: collections.abc.Callable, activation: str, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    The count largest of all rows into arrays that allocate(n) returns, and offsets [B + 1].
    """
def blas_name() -> str:
    """
    The BLAS behind the library.
    """
def cholesky(a: typing.Any, l: typing.Any, info: typing.Any, nonfinite: str, raise_not_definite: bool, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Lower Cholesky factors of a batch [batch, n, n] into caller-owned outputs.
    """
def cpu_level() -> str:
    """
    Instruction-set level in use: baseline, v3 or v4.
    """
def cross_moments_merge(state: tuple, other: tuple) -> None:
    """
    Merges a cross state into another.
    """
def cross_moments_update(x: typing.Any, y: typing.Any, weights: typing.Any, state: tuple, float64: bool) -> None:
    """
    Adds paired rows to a cross state.
    """
def describe(array: typing.Any) -> tuple[str, str, int, tuple, tuple, bool, int]:
    """
    What the reader sees: dtype, device, index, shape, strides, read-only, address.
    """
def eigh(a: typing.Any, values: typing.Any, vectors: typing.Any, info: typing.Any, nonfinite: str, raise_no_convergence: bool, function: str = 'eigh', stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Symmetric eigendecomposition of a batch [batch, n, n] into caller-owned outputs.
    """
def fill_normal(out: typing.Any, seed: typing.SupportsInt | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Fills out [n] with the standard normals of (seed, stream, index).
    """
def get_num_threads() -> int:
    """
    Threads that primitives use.
    """
def gradient_norm(g: typing.Any, w: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> float:
    """
    The Frobenius norm of g [n, d], without what is parallel to the rows of w unless that is None.
    """
def gram(x: typing.Any, y: typing.Any, out: typing.Any) -> None:
    """
    x^T y, or x^T x for y None, of a batch [batch, n, p], [batch, n, q] into out.
    """
def gram_inner(xs: list, out: typing.Any) -> None:
    """
    Inner products of x x^T of matrices [n, d] into out [count, count].
    """
def grams(x: typing.Any, y: typing.Any, xx: typing.Any, xy: typing.Any, yy: typing.Any) -> None:
    """
    x^T x, x^T y and y^T y of a batch into caller-owned outputs.
    """
def group_sums(x: typing.Any, weights: typing.Any, ids: typing.Any, sums: typing.Any) -> None:
    """
    Adds the weighted sum of the rows of each group to sums [groups, d].
    """
def has_cuda() -> bool:
    """
    Whether the CUDA library and a device are present.
    """
def joint_kernel_sums(x: typing.Any, y: typing.Any, z: typing.Any, w: typing.Any, bandwidth_x: typing.Any, bandwidth_z: typing.Any, joint: typing.Any, first: typing.Any, second: typing.Any, kernel_x: str, kernel_z: str, alpha_x: typing.SupportsFloat | typing.SupportsIndex, alpha_z: typing.SupportsFloat | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Sums over pairs of one kernel of x and y, of others of z and w, and of their products.
    """
def joint_kernel_sums_backward(x: typing.Any, y: typing.Any, z: typing.Any, w: typing.Any, of_rows: typing.Any, of_columns: typing.Any, bandwidth_x: typing.Any, bandwidth_z: typing.Any, gradient: typing.Any, kernel_x: str, kernel_z: str, alpha_x: typing.SupportsFloat | typing.SupportsIndex, alpha_z: typing.SupportsFloat | typing.SupportsIndex, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    The gradient in x of weighted sums of the kernel of x and y.
    """
def kernel_logsumexp(x: typing.Any, y: typing.Any, v: typing.Any, bandwidth: typing.Any, out: typing.Any, parts: typing.Any, kernel: str, alpha: typing.SupportsFloat | typing.SupportsIndex, ranges: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Logarithms of products of kernel matrices [batch, n, m] and v into out.
    """
def kernel_logsumexp_backward(x: typing.Any, y: typing.Any, terms_x: typing.Any, terms_y: typing.Any, bandwidth: typing.Any, sums: typing.Any, of_x: typing.Any, exchanged: bool, kernel: str, alpha: typing.SupportsFloat | typing.SupportsIndex, ranges: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Gradients of kernel_logsumexp from exponents and factors.
    """
def kernel_matvec(x: typing.Any, y: typing.Any, v: typing.Any, bandwidth: typing.Any, out: typing.Any, lse: typing.Any, kernel: str, alpha: typing.SupportsFloat | typing.SupportsIndex, degree: typing.SupportsInt | typing.SupportsIndex, offset: typing.SupportsFloat | typing.SupportsIndex, cutoff: typing.SupportsFloat | typing.SupportsIndex, ranges: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Products of kernel matrices [batch, n, m] and v into out.
    """
def kernel_matvec_backward(x: typing.Any, y: typing.Any, v: typing.Any, g: typing.Any, bandwidth: typing.Any, of_x: typing.Any, kernel: str, alpha: typing.SupportsFloat | typing.SupportsIndex, degree: typing.SupportsInt | typing.SupportsIndex, offset: typing.SupportsFloat | typing.SupportsIndex, ranges: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    The gradient of <g, K v> in x into of_x.
    """
def knn(x: typing.Any, y: typing.Any, mask: typing.Any, distances: typing.Any, indices: typing.Any, metric: str, exclude_self: bool, precision: str, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> dict:
    """
    The k nearest rows of y [n, d] for every row of x [q, d] into caller-owned outputs [q, k]; returns how the search went.
    """
def knn_both(x: typing.Any, y: typing.Any, distances: typing.Any, indices: typing.Any, back_distances: typing.Any, back_indices: typing.Any, metric: str, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> dict:
    """
    knn of x [q, d] in y [n, d] into outputs [q, k], and of y in x into outputs [n, k]; returns how the search went.
    """
def moments_merge(state: tuple, other: tuple) -> None:
    """
    Merges a moments state into another.
    """
def moments_update(x: typing.Any, weights: typing.Any, state: tuple, float64: bool, stream: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Adds rows [n, d] to a moments state.
    """
def mttkrp(x: typing.Any, factors: collections.abc.Sequence, mode: typing.SupportsInt | typing.SupportsIndex, out: typing.Any) -> None:
    """
    Tensors [batch, ...] times Khatri-Rao products of factors [batch, n, r], of which that of the mode may be None, into out.
    """
def philox(counter: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(4)"], key: typing.Annotated[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], "FixedSize(2)"]) -> typing.Annotated[list[int], "FixedSize(4)"]:
    """
    One block of Philox4x32-10.
    """
def principal_axes(m2: typing.Any, denominator: typing.SupportsFloat | typing.SupportsIndex, components: typing.Any, variances: typing.Any, negative_tolerance: typing.SupportsFloat | typing.SupportsIndex) -> None:
    """
    Leading eigenpairs of m2 / denominator, descending, sign fixed.
    """
def qr(a: typing.Any, q: typing.Any, r: typing.Any, info: typing.Any, nonfinite: str, raise_no_convergence: bool = True, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Thin QR of a batch [batch, m, n] into caller-owned outputs.
    """
def radius_neighbors(x: typing.Any, y: typing.Any, mask: typing.Any, radius: typing.SupportsFloat | typing.SupportsIndex, offsets: typing.Any, allocate: collections.abc.Callable, metric: str, exclude_self: bool, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> dict:
    """
    The rows of y within radius of every row of x into arrays that allocate(n) returns, and offsets [q + 1]; returns how the search went.
    """
def set_num_threads(n: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Sets the threads that primitives use; 0 returns to the default.
    """
def solve_triangular(a: typing.Any, b: typing.Any, x: typing.Any, info: typing.Any, lower: bool, transposed: bool, unit_diagonal: bool, nonfinite: str, raise_singular: bool, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Solves the triangular systems of a batch [batch, n, n] into caller-owned outputs.
    """
def sparse_decode(values: typing.Any, indices: typing.Any, offsets: typing.Any, rows: typing.SupportsInt | typing.SupportsIndex, w_dec: typing.Any, b_dec: typing.Any, out: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    out [rows, d] = b_dec + the sums of values[i] w_dec[indices[i]] over the pairs of each row.
    """
def sparse_decode_backward(values: typing.Any, indices: typing.Any, offsets: typing.Any, rows: typing.SupportsInt | typing.SupportsIndex, w_dec: typing.Any, grad_out: typing.Any, grad_values: typing.Any, grad_w_dec: typing.Any, grad_b_dec: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    The gradients of sparse_decode that are not None.
    """
def svd(a: typing.Any, s: typing.Any, u: typing.Any, vh: typing.Any, info: typing.Any, nonfinite: str, raise_no_convergence: bool, function: str = 'svd', stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Thin SVD of a batch [batch, m, n] into caller-owned outputs.
    """
def tensor_power(a: typing.Any, starts: typing.Any, order: typing.SupportsInt | typing.SupportsIndex, pairs: tuple, runs: tuple, shift: typing.SupportsFloat | typing.SupportsIndex | None, which: str, tol: typing.SupportsFloat | typing.SupportsIndex, merge: typing.SupportsFloat | typing.SupportsIndex, max_iter: typing.SupportsInt | typing.SupportsIndex, nonfinite: str, raise_no_convergence: bool) -> None:
    """
    Eigenpairs of symmetric tensors [batch, n] from starts [batch, m, d] into caller-owned outputs: pairs = (values, vectors, residuals, kinds, counts, number), runs = (iterations, pair_of, info).
    """
def threshold_encode(x: typing.Any, w_enc: typing.Any, b_enc: typing.Any, b_pre: typing.Any, threshold: typing.Any, offsets: typing.Any, allocate: collections.abc.Callable, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    Entries above their column's threshold into arrays that allocate(n) returns, and offsets.
    """
def topk(x: typing.Any, values: typing.Any, indices: typing.Any, largest: bool, sorted: bool, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    The k best of each row of x [outer, inner, n] into caller-owned outputs.
    """
def topk_encode(x: typing.Any, w_enc: typing.Any, b_enc: typing.Any, b_pre: typing.Any, values: typing.Any, indices: typing.Any, activation: str, certified: bool, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    The k largest of each row of (x - b_pre) w_enc + b_enc into caller-owned outputs [B, k].
    """
def topk_encode_backward(values: typing.Any, indices: typing.Any, offsets: typing.Any, rows: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, x: typing.Any, b_pre: typing.Any, w_enc: typing.Any, grad_w_enc: typing.Any, grad_b_enc: typing.Any, grad_x: typing.Any, grad_b_pre: typing.Any, stream: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
    """
    The gradients of a TopK encoder that are not None; values are those of the selected pre-activations.
    """
__version__: str = '0.1.0'
