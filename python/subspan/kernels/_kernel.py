"""A kernel with its parameters, over `subspan.kernel_matvec`: no formula is written twice."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subspan import _arrays, _checks, kernel_matvec
from subspan.errors import DtypeError, InvalidArgumentError

__all__ = ["DECREASING", "DEFINITE", "Array", "Floats", "Kernel", "generator", "points", "sides"]

Floats = NDArray[np.float64]
Array = NDArray[Any]

DECREASING = (
    *("gaussian", "laplacian", "matern12", "matern32", "matern52", "cauchy"),
    "rational_quadratic",
)
DEFINITE = (*DECREASING, "exp_dot", "linear", "polynomial")

_COLUMNS = 32  # of a matrix at a time: products with so many unit vectors cost little more than one


@dataclass(frozen=True, eq=False)
class Kernel:
    """The arguments of `subspan.kernel_matvec` that say which matrix it is."""

    name: str = "gaussian"
    bandwidth: Any = 1.0
    alpha: float = 1.0
    degree: int = 3
    offset: float = 1.0

    def check(self, function: str, d: int, allowed: tuple[str, ...]) -> None:
        """Raise unless the kernel is one of those and suits points of d coordinates."""
        _checks.choice(function, "kernel", self.name, allowed)
        if self.name == "polynomial" and allowed is DEFINITE:
            _checks.real(function, "offset", self.offset, low=0.0)
        self.multiply(np.zeros((0, d)), np.zeros((1, d)), np.zeros(1))  # its own refusals

    def multiply(self, x: Any, y: Any, v: Any, cutoff: float = 0.0) -> Any:
        """Return K(x, y) v."""
        return kernel_matvec(
            x,
            y,
            v,
            kernel=self.name,
            bandwidth=self.bandwidth,
            alpha=self.alpha,
            degree=self.degree,
            offset=self.offset,
            cutoff=cutoff,
        )

    def block(self, x: Array, y: Array) -> Array:
        """Return K(x, y) itself."""
        out: Array = np.empty((len(x), len(y)), x.dtype)
        for start in range(0, len(y), _COLUMNS):
            chosen = y[start : start + _COLUMNS]
            units = np.eye(len(chosen), dtype=x.dtype)
            out[:, start : start + len(chosen)] = self.multiply(x, chosen, units)
        return out

    def diagonal(self, x: Array) -> Floats:
        """Return k(x_i, x_i)."""
        if self.name in DECREASING:
            return np.ones(len(x))
        wide = x.astype(np.float64)
        products = (wide * wide / self.widths(x.shape[1])).sum(1)
        with np.errstate(over="ignore"):  # whoever asks refuses infinity
            if self.name == "polynomial":
                return np.asarray((products + self.offset) ** self.degree)
            return np.asarray(np.exp(products) if self.name == "exp_dot" else products)

    def profile(self, distances: Floats) -> Floats:
        """Return k as a function of D, of a kernel that decreases with it."""
        one = Kernel(self.name, 1.0, self.alpha)
        return np.asarray(one.multiply(distances[:, None], np.zeros((1, 1)), np.ones(1)))

    def radius(self, value: float) -> float:
        """Return the distance D beyond which k is below a value in (0, 1)."""
        low, high = 0.0, 1.0
        while self.profile(np.array([high]))[0] >= value:
            low, high = high, 2 * high
        while high - low > 1e-12 * high:
            grid = np.linspace(low, high, 65)
            step = int((self.profile(grid) >= value).sum())
            low, high = float(grid[step - 1]), float(grid[min(step, 64)])
        return high

    def widths(self, d: int) -> Floats:
        """Return the bandwidth of every coordinate."""
        given = np.asarray(_arrays.to_numpy(self.bandwidth), np.float64)
        out: Floats = np.broadcast_to(given, (d,)).astype(np.float64)
        return out

    def scaled(self, x: Array, centre: Floats) -> Array:
        """Return points whose Euclidean distance is D, in the dtype of x.

        They are moved before they are rounded, as in the product, so that an offset costs nothing.
        """
        return ((x - centre) / self.widths(x.shape[1])).astype(x.dtype)


def points(function: str, **arrays: Any) -> list[Array]:
    """Return points as numpy arrays (n, d): finite, of one library, dtype and number of columns.

    The first one decides, and None is left out.
    """
    given = {name: array for name, array in arrays.items() if array is not None}
    _arrays.require_same(function, **given)
    first, *_ = given
    wanted = _arrays.dtype_name(given[first])
    out: list[Array] = []
    for name, array in given.items():
        came = _arrays.dtype_name(array)
        if came != wanted or came not in {"float32", "float64"}:
            like = "float32 or float64" if name == first else f"{wanted} like {first}"
            raise DtypeError(f"[{function}] {name} must be {like}, got {came}. Convert it first")
        _checks.ndim(function, name, array, 2)
        rows = _arrays.to_numpy(_arrays.exportable(function, name, array))
        if 0 in rows.shape:
            raise InvalidArgumentError(
                f"[{function}] {name} must have rows and columns, got shape {rows.shape}"
            )
        if out and rows.shape[1] != out[0].shape[1]:
            raise InvalidArgumentError(
                f"[{function}] {name} must have {out[0].shape[1]} columns like {first}, got "
                f"{rows.shape[1]} (shape {rows.shape})"
            )
        finite(function, name, rows)
        out.append(rows)
    return out


def sides(function: str, name: str, v: Any, rows: int, dtype: np.dtype[Any]) -> tuple[Array, bool]:
    """Return right-hand sides as a numpy array (rows, e), and whether it was one vector."""
    _arrays.require_array(function, name, v)
    if (came := _arrays.dtype_name(v)) not in {"float32", "float64"}:
        raise DtypeError(
            f"[{function}] {name} must be float32 or float64, got {came}. Convert it first"
        )
    shape = tuple(int(extent) for extent in v.shape)
    if len(shape) not in {1, 2} or shape[0] != rows:
        raise InvalidArgumentError(
            f"[{function}] {name} must have shape ({rows},) or ({rows}, e), got {shape}"
        )
    values = _arrays.to_numpy(_arrays.exportable(function, name, v))
    finite(function, name, values)
    vectors = len(shape) == 1
    return (values[:, None] if vectors else values).astype(dtype, copy=False), vectors


def finite(function: str, name: str, values: Array) -> None:
    """Raise if there is NaN or infinity, naming the first place."""
    there = np.isfinite(values)
    if there.all():
        return
    place = tuple(int(i) for i in np.unravel_index(int(np.argmin(there)), values.shape))
    raise InvalidArgumentError(
        f"[{function}] {name} must be finite, got {values[place]} at {list(place)}. "
        "Drop or impute such rows first"
    )


def generator(seed: int, stream: int) -> np.random.Generator:
    """Return Philox's numbers of a seed and of what they are for."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
