"""Sparse encoders: of (x - b_pre) @ w_enc + b_enc only what is selected comes to exist."""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from math import prod
from typing import Any

from subspan import _arrays, _checks, _core
from subspan._ops._batch import reshaped
from subspan._ops._codes import RaggedCode, SparseCode
from subspan._ops.decode import encode_gradients
from subspan.errors import DtypeError, UnsupportedError

__all__ = ["RaggedCode", "SparseCode", "batch_topk_encode", "threshold_encode", "topk_encode"]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_ACTIVATIONS = ("relu", "relu_first", "identity")
_PRECISIONS = ("exact", "certified")


def topk_encode(
    x: Any,
    w_enc: Any,
    b_enc: Any = None,
    *,
    k: int,
    b_pre: Any = None,
    activation: str = "relu",
    precision: str = "exact",
) -> SparseCode:
    """Return the k largest entries of every row of an affine map, without the map's other entries.

    ``z = (x - b_pre) @ w_enc + b_enc``

    Products are made tile by tile and compared with the k best so far in registers: z, of rows
    times n, is never stored. Of equal entries the smaller index comes first; NaN follow all
    numbers, by index. A row's code is the same to the bit for any number of threads and any batch.

    Parameters
    ----------
    x : array (..., d)
        float16, bfloat16, float32 or float64 of numpy, torch or another library with DLPack; on a
        CUDA device of torch or cupy; any strides, read-only too.
    w_enc : array (d, n)
        Any strides: a transposed (n, d) as well. All arrays are of one library and dtype.
    b_enc : array (n,), optional
    k : int
        1..n.
    b_pre : array (d,), optional
    activation : {"relu", "relu_first", "identity"}
        Where the rectifier max(z, 0) stands. "relu": after the selection, so that a code of a row
        with fewer than k positive entries holds zeros at the largest of the others. "relu_first":
        before it, so that those zeros are at the smallest indices. "identity": nowhere.
    precision : {"exact", "certified"}
        The code is the same to the bit. "certified": candidates come from products in bfloat16,
        whose error has a proved bound, and what it leaves in doubt is computed again; rows that
        have too many such entries are encoded once more. Pays for many rows and k well below n, on
        CPUs with AVX512_BF16; elsewhere it is "exact".

    Returns
    -------
    SparseCode (values, indices)
        Both (..., k), in descending order of z; values in the library and dtype of x, indices
        int64. For torch tensors, values are differentiable once in x, w_enc, b_enc and b_pre; where
        a rectifier left zero, the gradient is zero.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, k is not in 1..n, or activation or precision is none of those above.
    DtypeError
        An argument is no array, of another library than x, or of a dtype that is not served.
    UnsupportedError
        CUDA arrays are of neither torch nor cupy, or there is no CUDA library or no cuBLAS.

    Notes
    -----
    On a CUDA device cuBLAS makes the products, the last bits of z may depend on the batch, and
    "certified" is "exact". z exists in tiles of 32 MiB. For float16 and bfloat16, whose rounding
    x - b_pre would suffer, b_pre enters as ``b_enc - b_pre @ w_enc``.

    On the CPU: 2 d n flops for each row; sums in float32 (float64 for float64) over d in order.
    Memory: up to 16 MiB of packed w_enc, a strip of packed rows, and 24 k bytes of candidates for
    each row of it, at least 1.5 KiB; "certified" has 2 k + k d / 1024 + 16 candidates for k, and
    8 bytes more for each. Up to eight rows read w_enc where it lies. The backward pass costs 2 d k
    for each row and each of x and w_enc, whose gradient is dense and in the memory order of w_enc.

    TopK autoencoders: Gao et al. 2024, `arXiv:2406.04093 <https://arxiv.org/abs/2406.04093>`_.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> directions = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> code = subspan.topk_encode(np.array([[3.0, 1.0], [-1.0, -2.0]]), directions, k=2)
    >>> code.values
    array([[4., 3.],
           [0., 0.]])
    >>> code.indices
    array([[2, 0],
           [0, 1]])
    """
    function = "topk_encode"
    _check(function, x, w_enc, b_enc, b_pre)
    _arrays.require_memory(function, "x", x)
    k = _checks.integer(function, "k", k, low=1, high=int(w_enc.shape[1]))
    _checks.choice(function, "activation", activation, _ACTIVATIONS)
    certified = _checks.choice(function, "precision", precision, _PRECISIONS) == "certified"

    def run(x: Any, *encoder: Any) -> SparseCode:
        rows = _rows(function, x)
        count = int(rows.shape[0])
        values = _arrays.empty_like_on(x, (count, k))
        indices = _arrays.empty_like_on(x, (count, k), "int64")
        arrays = _exported(function, *encoder)
        stream = _arrays.stream_of(x)
        _core.topk_encode(rows, *arrays, values, indices, activation, certified, stream)
        shape = (*x.shape[:-1], k)
        return SparseCode(*(_arrays.deliver(x, out.reshape(shape)) for out in (values, indices)))

    return SparseCode(*_encoded(run, activation != "identity", x, w_enc, b_enc, b_pre))


def batch_topk_encode(
    x: Any,
    w_enc: Any,
    b_enc: Any = None,
    *,
    k: float,
    b_pre: Any = None,
    activation: str = "relu",
) -> RaggedCode:
    """Return the largest entries of an affine map of a whole batch, k for each row on average.

    ``z = (x - b_pre) @ w_enc + b_enc``; kept are the ``int(k * rows)`` largest of all of z.

    Of equal entries those of the earlier row, then of the smaller index are kept. NaN never is.
    z is never stored. The code is the same to the bit for any number of threads.

    Parameters
    ----------
    x : array (..., d)
        As in `topk_encode`; leading axes make one batch, in C order.
    w_enc : array (d, n)
    b_enc : array (n,), optional
    k : int or float
        0..n, the average number of codes per row.
    b_pre : array (d,), optional
    activation : {"relu", "relu_first", "identity"}
        With "relu", which "relu_first" equals here, only positive entries are kept, so there may be
        fewer than int(k * rows).

    Returns
    -------
    RaggedCode (values, indices, offsets)
        values (nnz,) in the library and dtype of x, indices (nnz,) and offsets (rows + 1,) int64;
        rows in ascending order of the index. Values are differentiable as in `topk_encode`.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, k is not in 0..n, or activation is none of the three.
    DtypeError
        An argument is no array, of another library than x, or of a dtype that is not served, or k
        is no number.
    UnsupportedError
        An array is on a CUDA device.

    Notes
    -----
    As `topk_encode`; candidates take 40 bytes for each entry kept and each thread.

    What a row keeps depends on the other rows. For inference take a threshold, the mean of the
    smallest value that batches keep, and `threshold_encode`.

    BatchTopK: Bussmann et al. 2024, `arXiv:2412.06410 <https://arxiv.org/abs/2412.06410>`_. The
    same selection is Mutual Choice: Ayonrinde 2024, `arXiv:2411.02124
    <https://arxiv.org/abs/2411.02124>`_.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> directions = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> code = subspan.batch_topk_encode(np.array([[3.0, 1.0], [1.0, 1.0]]), directions, k=1.5)
    >>> code.values, code.indices, code.offsets
    (array([3., 4., 2.]), array([0, 2, 2]), array([0, 2, 3]))
    >>> code.to_dense(3)
    array([[3., 0., 4.],
           [0., 0., 2.]])
    """
    function = "batch_topk_encode"
    _check(function, x, w_enc, b_enc, b_pre)
    count = _count(function, k, prod(int(extent) for extent in x.shape[:-1]), int(w_enc.shape[1]))
    _checks.choice(function, "activation", activation, _ACTIVATIONS)

    def run(x: Any, *encoder: Any) -> RaggedCode:
        return _ragged(_core.batch_topk_encode, function, x, encoder, count, activation)

    return RaggedCode(*_encoded(run, False, x, w_enc, b_enc, b_pre))


def threshold_encode(
    x: Any, w_enc: Any, b_enc: Any = None, *, threshold: Any, b_pre: Any = None
) -> RaggedCode:
    """Return the entries of an affine map that exceed the threshold of their column.

    ``z = (x - b_pre) @ w_enc + b_enc``; kept is z[t, j] where ``z[t, j] > threshold[j]``.

    NaN exceeds nothing. z is never stored. A row's code is the same to the bit for any number of
    threads and any batch.

    Parameters
    ----------
    x : array (..., d)
        As in `topk_encode`; leading axes are joined, in C order.
    w_enc : array (d, n)
    b_enc : array (n,), optional
    threshold : array (n,) or number
        Of the library and dtype of x; a number is rounded to that dtype. 0 is a rectifier.
    b_pre : array (d,), optional

    Returns
    -------
    RaggedCode (values, indices, offsets)
        values (nnz,) in the library and dtype of x, indices (nnz,) and offsets (rows + 1,) int64;
        rows in ascending order of the index. Values are differentiable as in `topk_encode`.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit.
    DtypeError
        An argument is no array, of another library than x, or of a dtype that is not served, or
        threshold is neither array nor number.
    UnsupportedError
        An array is on a CUDA device, or threshold requires a gradient: a step has none. Training a
        threshold takes an estimator of its gradient, which is for the caller to add.

    Notes
    -----
    As `topk_encode`; candidates take 20 to 32 bytes (32 to 48 for float64) for each entry kept.

    JumpReLU: Rajamanoharan et al. 2024, `arXiv:2407.14435 <https://arxiv.org/abs/2407.14435>`_.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> directions = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    >>> x = np.array([[3.0, 1.0], [0.5, -1.0]])
    >>> code = subspan.threshold_encode(x, directions, threshold=np.array([0.0, 1.0, 1.0]))
    >>> code.values, code.indices, code.offsets
    (array([3. , 4. , 0.5]), array([0, 2, 0]), array([0, 2, 3]))
    """
    function = "threshold_encode"
    bars = threshold if _arrays.library_of(threshold) else None
    if bars is None:
        threshold = _checks.real(function, "threshold", threshold)
    _check(function, x, w_enc, b_enc, b_pre, threshold=bars)
    if _needs_gradient(bars):
        raise UnsupportedError(
            f"[{function}] threshold must not require a gradient: a step has none. "
            "Pass threshold.detach(), and add what estimates its gradient"
        )
    if bars is None:
        bars = _arrays.empty_like_on(x, (int(w_enc.shape[1]),))
        bars[...] = threshold

    bars = _arrays.exportable(function, "threshold", bars)

    def run(x: Any, *encoder: Any) -> RaggedCode:
        return _ragged(_core.threshold_encode, function, x, encoder, bars)

    return RaggedCode(*_encoded(run, False, x, w_enc, b_enc, b_pre))


# ---- arguments -------------------------------------------------------------------------------


def _check(
    function: str, x: Any, w_enc: Any, b_enc: Any, b_pre: Any, *, threshold: Any = None
) -> None:
    """Libraries, devices, dtypes, axes; the core compares the lengths."""
    arrays = {"x": x, "w_enc": w_enc, "b_enc": b_enc, "b_pre": b_pre, "threshold": threshold}
    _arrays.require_same(function, **arrays)
    wanted = _arrays.dtype_name(x)
    if wanted not in _FLOATS:
        raise DtypeError(
            f"[{function}] x must be float16, bfloat16, float32 or float64, got {wanted}. "
            "Convert it first"
        )
    _checks.ndim(function, "x", x, 1, or_more=True)
    for name, array in list(arrays.items())[1:]:
        if array is None:
            continue
        if (came := _arrays.dtype_name(array)) != wanted:
            raise DtypeError(
                f"[{function}] {name} must be {wanted} like x, got {came}. Convert it first"
            )
        _checks.ndim(function, name, array, 2 if name == "w_enc" else 1)


def _count(function: str, k: Any, rows: int, n: int) -> int:
    """Return int(k * rows) for 0 <= k <= n: exactly for an integer k."""
    try:
        operator.index(k)
    except TypeError:
        return min(int(_checks.real(function, "k", k, low=0, high=n) * rows), n * rows)
    return _checks.integer(function, "k", k, low=0, high=n) * rows


def _rows(function: str, x: Any) -> Any:
    shape = tuple(int(extent) for extent in x.shape)
    return reshaped(_arrays.exportable(function, "x", x), (prod(shape[:-1]), shape[-1]))


def _exported(function: str, w_enc: Any, b_enc: Any, b_pre: Any) -> tuple[Any, Any, Any]:
    def export(name: str, array: Any) -> Any:
        return None if array is None else _arrays.exportable(function, name, array)

    return export("w_enc", w_enc), export("b_enc", b_enc), export("b_pre", b_pre)


def _ragged(
    core: Callable[..., None],
    function: str,
    x: Any,
    encoder: tuple[Any, ...],
    selection: Any,
    *options: Any,
) -> RaggedCode:
    """Call the core, which asks for memory once it knows the number of codes."""
    rows = _rows(function, x)
    offsets = _arrays.empty_like_on(x, (int(rows.shape[0]) + 1,), "int64")
    made: list[Any] = []

    def allocate(count: int) -> tuple[Any, Any]:
        made.extend(_arrays.empty_like_on(x, (count,), dtype) for dtype in (None, "int64"))
        return made[0], made[1]

    arrays = _exported(function, *encoder)
    core(rows, *arrays, selection, offsets, allocate, *options, _arrays.stream_of(x))
    return RaggedCode(*(_arrays.deliver(x, out) for out in (*made, offsets)))


# ---- gradients -------------------------------------------------------------------------------


def _needs_gradient(*arrays: Any) -> bool:
    torch = sys.modules.get("torch")
    return (
        torch is not None
        and torch.is_grad_enabled()
        and any(isinstance(x, torch.Tensor) and x.requires_grad for x in arrays)
    )


def _encoded(run: Callable[..., tuple[Any, ...]], rectified: bool, *arrays: Any) -> tuple[Any, ...]:
    """Return ``run(x, w_enc, b_enc, b_pre)``, for torch with gradients where they are wanted."""
    if not _needs_gradient(*arrays):
        return run(*arrays)
    return tuple(_differentiable().apply(run, rectified, *arrays))


@functools.cache
def _differentiable() -> Any:
    """Return the autograd function of all encoders; made once, where torch is there."""
    import torch
    from torch.autograd.function import once_differentiable

    class Encoding(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(run: Any, _rectified: bool, *arrays: Any) -> tuple[Any, ...]:
            return tuple(run(*arrays))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            _, ctx.rectified, x, w_enc, _, b_pre = inputs
            ctx.save_for_backward(x, w_enc, b_pre, *output)
            ctx.mark_non_differentiable(*output[1:])

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, of_values: Any, *_: Any) -> tuple[Any, ...]:
            x, w_enc, b_pre, values, indices, *offsets = ctx.saved_tensors
            dz = of_values.masked_fill(values <= 0, 0) if ctx.rectified else of_values
            names = ("x", "w_enc", "b_enc", "b_pre")
            needed = zip(names, ctx.needs_input_grad[2:], strict=True)
            gradients = encode_gradients(
                dz,
                indices,
                x,
                w_enc,
                b_pre,
                wanted={name for name, wanted in needed if wanted},
                offsets=offsets[0] if offsets else None,
            )
            return None, None, *(getattr(gradients, name) for name in names)

    return Encoding
