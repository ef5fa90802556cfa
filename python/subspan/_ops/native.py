"""What the rest of the package may know of the core besides the primitives."""

from subspan._core import (
    __version__,
    blas_name,
    cpu_level,
    get_num_threads,
    has_cuda,
    set_num_threads,
)

__all__ = [
    "__version__",
    "blas_name",
    "cpu_level",
    "get_num_threads",
    "has_cuda",
    "set_num_threads",
]
