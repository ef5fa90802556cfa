"""THE array-library seam: where an array comes from, and how to make one beside it.

A library is looked at only if it is already imported, so ``import subspan`` stays light, and what a
user did not import costs nothing.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Protocol

import numpy as np

from subspan.errors import DtypeError, UnsupportedError

__all__ = [
    "ArrayLike",
    "deliver",
    "device_of",
    "dtype_name",
    "empty_like_on",
    "exportable",
    "from_numpy",
    "library_of",
    "require_array",
    "require_memory",
    "require_same",
    "stream_of",
    "to_numpy",
]


class ArrayLike(Protocol):
    """What every supported array has: a shape, a dtype, and numpy's buffer or DLPack."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...


def library_of(x: object) -> str:
    """Name of the library that ``x`` belongs to: numpy, torch, cupy, another producer, or ''."""
    if isinstance(x, np.ndarray):
        return "numpy"
    for name, kind in (("torch", "Tensor"), ("cupy", "ndarray")):
        module = sys.modules.get(name)
        if module is not None and isinstance(x, getattr(module, kind)):
            return name
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        return type(x).__module__.partition(".")[0]
    return ""


def require_array(function: str, name: str, x: object) -> str:
    """Library of ``x``; raises DtypeError if it is no array."""
    library = library_of(x)
    if not library:
        raise DtypeError(
            f"[{function}] {name} must be an array (numpy, torch, cupy, or any other with "
            f"__dlpack__), got {type(x).__name__}. Convert it with numpy.asarray"
        )
    if library == "numpy" and isinstance(x, np.ma.MaskedArray):
        raise DtypeError(
            f"[{function}] {name} must have no mask, got a MaskedArray. Fill it, or give the rows "
            "that do not count weight 0 where a function takes weights"
        )
    return library


def device_of(x: Any) -> str:
    """``cpu`` or ``cuda:0`` and the like."""
    library = library_of(x)
    if library == "torch":
        return str(x.device)
    if library == "numpy":
        return "cpu"
    kind, index = x.__dlpack_device__()
    return {1: "cpu", 3: "cpu"}.get(int(kind), f"cuda:{index}")


def require_memory(function: str, name: str, x: Any) -> None:
    """Results on a CUDA device need memory that its library allocates: of torch or cupy."""
    if device_of(x) != "cpu" and library_of(x) not in {"torch", "cupy"}:
        raise UnsupportedError(
            f"[{function}] {name} on a CUDA device must be of torch or cupy, whose memory the "
            f"results take, got {library_of(x)}. Hand it over by torch.from_dlpack"
        )


def require_same(function: str, **arrays: Any) -> None:
    """All arrays that are not None must be of one library and on one device."""
    present = [(name, x) for name, x in arrays.items() if x is not None]
    first_name, first = present[0]
    home = (require_array(function, first_name, first), device_of(first))
    for name, x in present[1:]:
        came = (require_array(function, name, x), device_of(x))
        if came != home:
            raise DtypeError(
                f"[{function}] {name} must be of the library and on the device of {first_name} "
                f"({home[0]}, {home[1]}), got {came[0]}, {came[1]}"
            )


def dtype_name(x: Any) -> str:
    """Name of the element type without the library's prefix: float32, bfloat16, int64."""
    return _name_of(type(x.dtype).__module__, x.dtype)


@functools.cache  # numpy takes microseconds to spell a dtype; the module keeps libraries apart
def _name_of(_: str, dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


def stream_of(x: Any) -> int:
    """CUDA stream that the library orders its work on, 0 for the CPU and the default stream."""
    if not device_of(x).startswith("cuda"):
        return 0
    library = library_of(x)
    module = sys.modules.get(library)
    if library == "torch" and module is not None:
        return int(module.cuda.current_stream(x.device).cuda_stream)
    if library == "cupy" and module is not None:
        return int(module.cuda.get_current_stream().ptr)
    return 0


def exportable(function: str, name: str, x: Any) -> Any:
    """``x`` in a form that can be read in place; refuses what would silently lose a gradient."""
    library = require_array(function, name, x)
    if library == "numpy":
        return np.asarray(x)  # a view: subclasses such as numpy.matrix reshape in their own ways
    if library != "torch":
        return x
    torch = sys.modules["torch"]
    if x.layout != torch.strided or x.device.type not in {"cpu", "cuda"}:
        raise UnsupportedError(
            f"[{function}] {name} must be a dense tensor on the CPU or on a CUDA device, "
            f"got {x.layout} on {x.device}"
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise UnsupportedError(
            f"[{function}] {name} must not require a gradient: {function} has none. "
            "Pass x.detach(), or call inside torch.no_grad()"
        )
    # Lazy conjugation and negation are not visible to other libraries.
    return x.detach().resolve_conj().resolve_neg()


def empty_like_on(x: Any, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """Uninitialised C-ordered array of ``x``'s library on its device; ``dtype`` is a name.

    Libraries that are neither numpy, torch nor cupy get a numpy array, which `deliver` hands over.
    """
    name = dtype or dtype_name(x)
    library = library_of(x)
    if library == "torch":
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, name), device=x.device)
    if library == "cupy":
        cupy = sys.modules["cupy"]
        with x.device:
            return cupy.empty(shape, dtype=name)
    return np.empty(shape, dtype=name)


def deliver(x: Any, out: Any) -> Any:
    """``out`` as an array of ``x``'s library."""
    library = library_of(x)
    if library in {"numpy", "torch", "cupy"}:
        return out
    namespace = x.__array_namespace__() if hasattr(x, "__array_namespace__") else None
    return out if namespace is None else namespace.asarray(out)


def from_numpy(x: Any, out: np.ndarray[Any, Any]) -> Any:
    """``out``, made by numpy, as an array of ``x``'s library on its device."""
    library = library_of(x)
    if library == "torch":
        return sys.modules["torch"].from_numpy(out).to(x.device)
    if library == "cupy":
        with x.device:
            return sys.modules["cupy"].asarray(out)
    return deliver(x, out)


def to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """``x`` as a numpy array, copied only if it must be (another device, bfloat16)."""
    library = library_of(x)
    if library == "torch":
        x = x.detach().cpu()
        if dtype_name(x) == "bfloat16":
            x = x.float()
        return np.asarray(x.numpy())
    if library == "cupy":
        return np.asarray(x.get())
    if library and library != "numpy":
        return np.asarray(np.from_dlpack(x))
    return np.asarray(x)
