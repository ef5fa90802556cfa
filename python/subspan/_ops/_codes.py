"""Sparse codes: what encoders return, and what other libraries take."""

from __future__ import annotations

import sys
import warnings
from math import prod
from typing import Any, NamedTuple

import numpy as np

from subspan import _arrays, _checks
from subspan._ops._batch import reshaped

__all__ = ["RaggedCode", "SparseCode"]


class SparseCode(NamedTuple):
    """k codes for every row: ``values[..., i]`` stands in column ``indices[..., i]``."""

    values: Any
    """(..., k) floats."""
    indices: Any
    """(..., k) int64."""

    def to_scipy(self, n: int) -> Any:
        """Return a scipy CSR array with n columns, one row for each of the leading axes.

        Zeros are stored and what is there twice adds up; float16 and bfloat16 become float32,
        as scipy has neither.
        """
        return _to_scipy(_flat(self.values, self.indices), n)

    def to_torch(self, n: int) -> Any:
        """Return a torch CSR tensor with n columns, one row for each of the leading axes.

        Columns ascend, zeros are stored, what is there twice is added. Gradients pass.
        """
        return _to_torch(_flat(self.values, self.indices), n)

    def to_dense(self, n: int) -> Any:
        """Return an array (..., n) of the library of the code; what is there twice is added.

        Gradients pass.
        """
        out = _to_dense(_flat(self.values, self.indices), n)
        shape = (*(int(extent) for extent in self.values.shape[:-1]), out.shape[1])
        return _arrays.deliver(self.values, out.reshape(shape))


class RaggedCode(NamedTuple):
    """Codes of a varying number: row t has those from ``offsets[t]`` to ``offsets[t + 1] - 1``."""

    values: Any
    """(nnz,) floats."""
    indices: Any
    """(nnz,) int64."""
    offsets: Any
    """(rows + 1,) int64, from 0 to nnz."""

    def to_scipy(self, n: int) -> Any:
        """Return a scipy CSR array (rows, n).

        Zeros are stored and what is there twice adds up; float16 and bfloat16 become float32,
        as scipy has neither.
        """
        return _to_scipy(_native(self), n)

    def to_torch(self, n: int) -> Any:
        """Return a torch CSR tensor (rows, n).

        Columns ascend, zeros are stored, what is there twice is added. Gradients pass.
        """
        return _to_torch(_native(self), n)

    def to_dense(self, n: int) -> Any:
        """Return an array (rows, n) of the library of the code; what is there twice is added.

        Gradients pass.
        """
        return _arrays.deliver(self.values, _to_dense(_native(self), n))


# Below, a code is of torch or of numpy, and flat.


def _native(code: RaggedCode) -> RaggedCode:
    if _arrays.library_of(code.values) == "torch":
        return code
    return RaggedCode(*map(_arrays.to_numpy, code))


def _flat(values: Any, indices: Any) -> RaggedCode:
    shape = tuple(int(extent) for extent in values.shape)
    offsets: Any = np.arange(prod(shape[:-1]) + 1, dtype=np.int64) * shape[-1]
    if _arrays.library_of(values) == "torch":
        offsets = sys.modules["torch"].from_numpy(offsets).to(values.device)
    pairs = (prod(shape),)
    return _native(RaggedCode(reshaped(values, pairs), reshaped(indices, pairs), offsets))


def _columns(function: str, code: RaggedCode, n: int) -> int:
    least = int(code.indices.max()) + 1 if code.indices.shape[0] > 0 else 0
    return _checks.integer(function, "n", n, low=least)


def _to_scipy(code: RaggedCode, n: int) -> Any:
    from scipy.sparse import csr_array

    n = _columns("to_scipy", code, n)
    values, indices, offsets = map(_arrays.to_numpy, code)
    if _arrays.dtype_name(values) not in {"float32", "float64"}:
        values = values.astype(np.float32)
    return csr_array((values, indices, offsets), shape=(len(offsets) - 1, n))


def _to_torch(code: RaggedCode, n: int) -> Any:
    import torch

    n = _columns("to_torch", code, n)
    values, indices, offsets = (
        x if isinstance(x, torch.Tensor) else _tensor_of(torch, x) for x in code
    )
    where = torch.stack([_rows(torch, offsets), indices])
    shape = (offsets.shape[0] - 1, n)
    pairs = torch.sparse_coo_tensor(where, values, shape, check_invariants=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return pairs.coalesce().to_sparse_csr()


def _tensor_of(torch: Any, x: Any) -> Any:
    if _arrays.dtype_name(x) != "bfloat16":
        return torch.tensor(x)
    return torch.tensor(x.view(np.int16)).view(torch.bfloat16)


def _to_dense(code: RaggedCode, n: int) -> Any:
    n = _columns("to_dense", code, n)
    rows = code.offsets.shape[0] - 1
    if _arrays.library_of(code.values) != "torch":
        out = np.zeros((rows, n), code.values.dtype)
        np.add.at(out, (np.repeat(np.arange(rows), np.diff(code.offsets)), code.indices), code[0])
        return out
    torch = sys.modules["torch"]
    places = _rows(torch, code.offsets) * n + code.indices
    return code.values.new_zeros(rows * n).index_add(0, places, code.values).reshape(rows, n)


def _rows(torch: Any, offsets: Any) -> Any:
    """Return the row of every pair of a code of torch."""
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return rows.repeat_interleave(offsets.diff())
