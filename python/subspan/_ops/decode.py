"""Sparse rows times a dictionary, and the gradients of sparse encoders and decoders."""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection
from math import prod
from typing import Any, NamedTuple

from subspan import _arrays, _checks, _core
from subspan._ops._batch import reshaped
from subspan._ops._fresh import fresh
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["EncodeGradients", "encode_gradients", "sparse_decode"]

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def sparse_decode(
    values: Any, indices: Any, w_dec: Any, b_dec: Any = None, *, offsets: Any = None
) -> Any:
    """Return the sums of the rows of a dictionary that a sparse code selects.

    ``out[t] = b_dec + sum_i values[t, i] * w_dec[indices[t, i]]``

    Sums are made in float32 (float64 for float64) in the order of the pairs, 1024 at a time, and
    rounded once; they are the same for any number of threads. Where most of 32 rows, counted from
    the first, name at least a quarter of the features, they are made as a product, in the order of
    the features.

    Parameters
    ----------
    values : array (..., k), or (pairs,) with offsets
        float16, bfloat16, float32 or float64 of numpy, torch or another library with DLPack; on a
        CUDA device of torch or cupy; any strides, read-only too.
    indices : int64 array of the shape of values
        Rows of w_dec, 0..n-1, in any order. What is there twice counts twice.
    w_dec : array (n, d)
        Any strides; of the dtype of values.
    b_dec : array (d,), optional
        Of the dtype of values.
    offsets : int64 array (rows + 1,), optional
        Rows of different length: row t has the pairs offsets[t]..offsets[t + 1] - 1.

    Returns
    -------
    array (..., d), or (rows, d) with offsets
        In the library and dtype of values. For torch tensors it is differentiable once in values,
        w_dec and b_dec; the gradient of w_dec is dense.

    Raises
    ------
    InvalidArgumentError
        Shapes do not fit, an index is not in 0..n-1, or offsets do not ascend from 0 to the number
        of pairs.
    DtypeError
        An argument is no array, of another library than values, or of a dtype that is not served.
    UnsupportedError
        Arrays on a CUDA device are of neither torch nor cupy, or there is no CUDA library.

    Notes
    -----
    On a CUDA device nothing waits to see whether indices and offsets are right: where an index is
    not in 0..n-1 or offsets do not ascend, the row is NaN (and the gradient of that value; the
    gradient of w_dec leaves it out). Codes that name many features are summed in the order of the
    pairs there, too.

    2 d flops for each pair, and the memory traffic of one row of w_dec. A value of zero is a value:
    zero times infinity is NaN, as in the product with dense codes. Rows of w_dec that no index
    names are not read.

    The backward pass sorts the pairs by feature, stably, and makes the gradients of values and
    w_dec in one pass over the features.

    The decoder of sparse autoencoders: Gao et al. 2024, `arXiv:2406.04093
    <https://arxiv.org/abs/2406.04093>`_.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> dictionary = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> values, indices = np.array([[2.0, 3.0], [1.0, -1.0]]), np.array([[0, 2], [1, 1]])
    >>> subspan.sparse_decode(values, indices, dictionary, np.array([0.5, 0.0]))
    array([[5.5, 3. ],
           [0.5, 0. ]])
    """
    present = {"values": values, "indices": indices, "w_dec": w_dec}
    present |= {"b_dec": b_dec} if b_dec is not None else {}
    present |= {"offsets": offsets} if offsets is not None else {}
    _check("sparse_decode", present)
    if _arrays.library_of(values) == "torch":
        torch = sys.modules["torch"]
        floats = (values, w_dec, b_dec)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in floats):
            return _differentiable().apply(values, indices, w_dec, b_dec, offsets)
    return _decode(values, indices, w_dec, b_dec, offsets)


def _check(function: str, present: dict[str, Any]) -> None:
    """Libraries, devices, dtypes; and the shapes that do not depend on what is stored."""
    _arrays.require_same(function, **present)
    _arrays.require_memory(function, "values", present["values"])
    values, w_dec, b_dec = present["values"], present["w_dec"], present.get("b_dec")
    wanted = _arrays.dtype_name(values)
    if wanted not in _FLOATS:
        raise DtypeError(
            f"[{function}] values must be float16, bfloat16, float32 or float64, got {wanted}. "
            "Convert it first"
        )
    for name, x in present.items():
        needed = "int64" if name in {"indices", "offsets"} else wanted
        if (came := _arrays.dtype_name(x)) != needed:
            like = " like values" if needed is wanted else ""
            raise DtypeError(
                f"[{function}] {name} must be {needed}{like}, got {came}. Convert it first"
            )
    _checks.ndim(function, "w_dec", w_dec, 2)
    if b_dec is not None and tuple(b_dec.shape) != (w_dec.shape[1],):
        raise InvalidArgumentError(
            f"[{function}] b_dec must have shape ({w_dec.shape[1]},), as w_dec has rows of that "
            f"length, got {tuple(b_dec.shape)}"
        )
    if tuple(present["indices"].shape) != tuple(values.shape):
        raise InvalidArgumentError(
            f"[{function}] indices must have the shape of values, {tuple(values.shape)}, "
            f"got {tuple(present['indices'].shape)}"
        )
    if (offsets := present.get("offsets")) is None:
        _checks.ndim(function, "values", values, 1, or_more=True)
        return
    _checks.ndim(function, "values", values, 1)
    _checks.ndim(function, "offsets", offsets, 1)
    if offsets.shape[0] == 0:
        raise InvalidArgumentError(
            f"[{function}] offsets must have one element more than there are rows, got none"
        )


class _Code(NamedTuple):
    """What the core takes: 1-D values and indices, offsets or None, the number of rows."""

    values: Any
    indices: Any
    offsets: Any
    rows: int


def _code(function: str, values: Any, indices: Any, offsets: Any) -> tuple[_Code, tuple[int, ...]]:
    """Return the code and the leading axes of what it decodes to."""
    lead = tuple(int(extent) for extent in values.shape[:-1])
    if offsets is not None:
        lead = (int(offsets.shape[0]) - 1,)
        offsets = _arrays.exportable(function, "offsets", offsets)
    pairs = (prod(int(extent) for extent in values.shape),)
    values = reshaped(_arrays.exportable(function, "values", values), pairs)
    indices = reshaped(_arrays.exportable(function, "indices", indices), pairs)
    return _Code(values, indices, offsets, prod(lead)), lead


def _decode(values: Any, indices: Any, w_dec: Any, b_dec: Any, offsets: Any) -> Any:
    function = "sparse_decode"
    code, lead = _code(function, values, indices, offsets)
    out = fresh(values, (code.rows, int(w_dec.shape[1])))
    bias = None if b_dec is None else _arrays.exportable(function, "b_dec", b_dec)
    matrix = _arrays.exportable(function, "w_dec", w_dec)
    _core.sparse_decode(*code, matrix, bias, out, _arrays.stream_of(values))
    return _arrays.deliver(values, out.reshape((*lead, out.shape[1])))


@functools.cache
def _differentiable() -> Any:
    """Return the autograd function; made once, where torch is there."""
    import torch
    from torch.autograd.function import once_differentiable

    class Decoding(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(values: Any, indices: Any, w_dec: Any, b_dec: Any, offsets: Any) -> Any:
            bias = None if b_dec is None else b_dec.detach()
            return _decode(values.detach(), indices, w_dec.detach(), bias, offsets)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Any) -> None:
            values, indices, w_dec, _, offsets = inputs
            ctx.save_for_backward(values, indices, w_dec, offsets)

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, of_out: Any) -> tuple[Any, ...]:
            values, indices, w_dec, offsets = ctx.saved_tensors
            wants_values, _, wants_matrix, wants_bias, _ = ctx.needs_input_grad
            code, _ = _code("sparse_decode", values, indices, offsets)
            width = int(w_dec.shape[1])
            of_values = torch.empty_like(code.values) if wants_values else None
            of_matrix = fresh(values, tuple(w_dec.shape)) if wants_matrix else None
            of_bias = values.new_empty(width) if wants_bias else None
            gradient = of_out.detach().reshape(code.rows, width)
            outputs = (of_values, of_matrix, of_bias)
            stream = _arrays.stream_of(values)
            _core.sparse_decode_backward(*code, w_dec.detach(), gradient, *outputs, stream)
            if of_values is not None:
                of_values = of_values.reshape(values.shape)
            return of_values, None, of_matrix, of_bias, None

    return Decoding


class EncodeGradients(NamedTuple):
    """Gradients of a TopK encoder; None where they were not wanted."""

    w_enc: Any
    b_enc: Any
    x: Any
    b_pre: Any


def encode_gradients(
    dz: Any,
    indices: Any,
    x: Any,
    w_enc: Any,
    b_pre: Any = None,
    *,
    wanted: Collection[str],
    offsets: Any = None,
) -> EncodeGradients:
    """Gradients of the selected pre-activations ``(x - b_pre) @ w_enc + b_enc`` of torch tensors.

    dz (..., k) are the gradients of the pre-activations at indices (..., k) (int64, columns of
    w_enc; with offsets both are 1-D), zero where an activation function stopped them; x is
    (..., d), w_enc (d, n), b_pre (d,), all of one float dtype, contiguous or not. wanted names the
    fields of the result that are made:

    * w_enc (d, n), complete, with memory order of w_enc: transposed (strides (1, d)) if w_enc is,
      C order otherwise
    * b_enc (n,)
    * x, of the shape of x
    * b_pre (d,): ``-w_enc @ grad_b_enc``, by way of the unrounded sums

    Shapes and dtypes are the caller's to check; nothing is differentiable.
    """
    function = "topk_encode"
    code, _ = _code(function, dz.detach(), indices, offsets)
    d, n = (int(extent) for extent in w_enc.shape)
    of_matrix = None
    if "w_enc" in wanted:
        if w_enc.stride(0) == 1 and w_enc.stride(1) != 1:
            of_matrix = fresh(w_enc, (n, d)).t()
        else:
            of_matrix = fresh(w_enc, (d, n))
    out = EncodeGradients(
        of_matrix,
        dz.new_empty(n) if "b_enc" in wanted else None,
        fresh(dz, (code.rows, d)) if "x" in wanted else None,
        dz.new_empty(d) if "b_pre" in wanted else None,
    )
    _core.topk_encode_backward(
        *code,
        n,
        x.detach().reshape(code.rows, d),
        None if b_pre is None else b_pre.detach(),
        w_enc.detach(),
        *out,
        _arrays.stream_of(dz),
    )
    return out if out.x is None else out._replace(x=out.x.reshape(x.shape))
