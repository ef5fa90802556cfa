"""One step of Adam on the rows of a dictionary, and the norm of its gradient."""

from __future__ import annotations

import math
import sys
from math import prod
from typing import Any

from subspan import _arrays, _checks, _core
from subspan.errors import DtypeError, InvalidArgumentError, UnsupportedError

__all__ = ["adam_step", "gradient_norm"]

_BELOW_ONE = math.nextafter(1.0, 0.0)


def adam_step(
    w: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    scale: float = 1.0,
    row_limit: float | None = None,
    remove_parallel: bool = False,
    unit_rows: bool = False,
) -> None:
    r"""Take one step of Adam in place, with what a dictionary's rows ask for besides.

    For each row, in this order:

    .. code-block:: text

        g <- g - w (g.w) / (w.w)                                     with remove_parallel
        g <- scale g, then g min(1, row_limit / |g|)
        m <- m + (1 - beta1) (g - m)
        v <- beta2 v + (1 - beta2) g^2
        w <- (1 - lr weight_decay) w
             - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)
        w <- w / |w|                                                 with unit_rows

    Parameters
    ----------
    w : array (..., d)
        The weights, float32 or float64, of numpy, torch or cupy (CUDA); its rows lie along the last
        axis. Written.
    g : array of the shape of w
        The gradient; only read.
    m, v : arrays of the shape of w
        The running means of the gradient and of its square, zero before the first step. Written.
    step : int
        The number of this step, from 1.
    lr, betas, eps : floats
        As ``torch.optim.Adam`` has them.
    weight_decay : float
        Decoupled, as in AdamW.
    scale : float
        What the gradient is multiplied by: ``min(1, limit / gradient_norm(g, w))`` clips it.
    row_limit : float, optional
        The greatest length of a row of the gradient; longer ones are shortened to it.
    remove_parallel : bool
        Leave out what would only change the length of a row.
    unit_rows : bool
        Bring the rows to length 1 after the step; rows of zeros stay.

    Raises
    ------
    InvalidArgumentError
        The arrays differ in shape or memory order, overlap, are read-only or have gaps; they are
        not in C order where rows matter (row_limit, remove_parallel, unit_rows); or a number is out
        of its range.
    DtypeError
        An argument is no array, of another library or dtype than w, or neither float32 nor float64.
    UnsupportedError
        An array requires a gradient outside of ``torch.no_grad()``, or is on a CUDA device and of
        neither torch nor cupy; or there is no CUDA library.

    Notes
    -----
    One pass over memory, 7 elements for each weight: separate passes for the projection and the
    lengths would read and write 7 more. Rows are spread over our threads; the bits do not depend on
    their number. The four arrays may also lie transposed in memory, all of them, where rows do not
    matter.

    Elements are computed in the dtype of w, in the order of operations of torch's unfused Adam,
    with fused products at the same places: m and v have its bits on CPUs with such products. w
    differs in the last bits, as torch's square root is not always the nearest. Products and lengths
    of rows are summed in float64. NaN and infinity pass, as they do in torch. On a CUDA device the
    step is ordered on the current stream, and nothing waits.

    Adam: Kingma and Ba 2015, `arXiv:1412.6980 <https://arxiv.org/abs/1412.6980>`_; decoupled weight
    decay: Loshchilov and Hutter 2019, `arXiv:1711.05101 <https://arxiv.org/abs/1711.05101>`_; the
    parallel gradient: Bricken et al. 2023, `Towards Monosemanticity
    <https://transformer-circuits.pub/2023/monosemantic-features>`_.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> w, g = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[5.0, 1.0], [3.0, 4.0]])
    >>> m, v = np.zeros_like(w), np.zeros_like(w)
    >>> subspan.adam_step(w, g, m, v, step=1, lr=0.1, remove_parallel=True, unit_rows=True)
    >>> np.round(w, 4)  # the second row's gradient was along the row
    array([[ 0.995 , -0.0995],
           [ 0.6   ,  0.8   ]])
    """
    function = "adam_step"
    by_rows = remove_parallel or unit_rows or row_limit is not None
    rows, gradient, mean, square = _rows(function, by_rows, w=w, g=g, m=m, v=v)
    try:
        beta1, beta2 = betas
    except (TypeError, ValueError):
        raise DtypeError(f"[{function}] betas must be two numbers, got {betas!r}") from None
    limit = 0.0
    if row_limit is not None:
        limit = _finite(function, "row_limit", row_limit, low=math.ulp(0.0))
    _core.adam_step(
        rows,
        gradient,
        mean,
        square,
        _checks.integer(function, "step", step, low=1),
        _finite(function, "lr", lr),
        _checks.real(function, "betas[0]", beta1, low=0.0, high=_BELOW_ONE),
        _checks.real(function, "betas[1]", beta2, low=0.0, high=_BELOW_ONE),
        _finite(function, "eps", eps),
        _finite(function, "weight_decay", weight_decay),
        _finite(function, "scale", scale),
        limit,
        bool(remove_parallel),
        bool(unit_rows),
        _arrays.stream_of(w),
    )
    if _arrays.library_of(w) == "torch":  # autograd shall notice that they are not what they were
        sys.modules["torch"].autograd.graph.increment_version((w, m, v))


def gradient_norm(g: Any, w: Any = None) -> float:
    """Return the Frobenius norm of a gradient, or of what `adam_step` leaves of it.

    ``|g|``; with w, ``|g - w (g.w) / (w.w)|`` with the products row by row.

    Parameters
    ----------
    g : array (..., d)
        float32 or float64 of numpy, torch or cupy (CUDA); its rows lie along the last axis.
    w : array of the shape of g, optional
        Removes what of g is parallel to its rows, as ``remove_parallel`` does.

    Returns
    -------
    float
        Summed in float64; the same for any number of threads.

    Raises
    ------
    InvalidArgumentError
        The arrays differ in shape or memory order, or have gaps; or they are not in C order and w
        is given.
    DtypeError
        An argument is no array, of another library or dtype than g, or neither float32 nor float64.
    UnsupportedError
        An array requires a gradient outside of ``torch.no_grad()``, or is on a CUDA device and of
        neither torch nor cupy; or there is no CUDA library.

    Notes
    -----
    One read of the arrays. The number is on the host, so on a CUDA device this waits for it.

    Examples
    --------
    >>> import numpy as np, subspan
    >>> g = np.array([[3.0, 4.0], [0.0, 12.0]])
    >>> subspan.gradient_norm(g)
    13.0
    >>> subspan.gradient_norm(g, np.array([[0.0, 1.0], [0.0, 2.0]]))
    3.0
    """
    present = {"g": g} if w is None else {"g": g, "w": w}
    rows = _rows("gradient_norm", w is not None, **present)
    return float(
        _core.gradient_norm(rows[0], rows[1] if w is not None else None, _arrays.stream_of(g))
    )


def _finite(function: str, name: str, value: Any, *, low: float = 0.0) -> float:
    return _checks.real(function, name, value, low=low, high=sys.float_info.max)


def _rows(function: str, by_rows: bool, **arrays: Any) -> list[Any]:
    """Return all arrays as [n, d] in C order, views of what was given."""
    _arrays.require_same(function, **arrays)
    (first, model), *_ = arrays.items()
    library = _arrays.library_of(model)
    if library not in {"torch", "cupy"} and _arrays.device_of(model) != "cpu":
        raise UnsupportedError(
            f"[{function}] {first} must be of torch or cupy to be on a CUDA device, got {library}. "
            "Hand it over by torch.from_dlpack"
        )
    shape, dtype = tuple(map(int, model.shape)), _arrays.dtype_name(model)
    if dtype not in {"float32", "float64"}:
        raise DtypeError(
            f"[{function}] {first} must be float32 or float64, got {dtype}. Convert it first"
        )
    _checks.ndim(function, first, model, 1, or_more=True)
    transposed = not _in_c_order(model) and len(shape) == 2 and _in_c_order(model.T)
    rows = []
    for name, x in arrays.items():
        if (came := _arrays.dtype_name(x)) != dtype:
            raise DtypeError(f"[{function}] {name} must be {dtype} like {first}, got {came}")
        if tuple(x.shape) != shape:
            raise InvalidArgumentError(
                f"[{function}] {name} must have the shape of {first}, {shape}, got {tuple(x.shape)}"
            )
        array = _arrays.exportable(function, name, x.T if transposed else x)
        if not _in_c_order(array) or (transposed and by_rows):
            wanted = "in C order" if by_rows else f"in one memory order without gaps, as {first}"
            raise InvalidArgumentError(
                f"[{function}] {name} must lie {wanted}, got other strides. Make it contiguous"
            )
        rows.append(array.reshape((prod(shape[:-1]), shape[-1]) if not transposed else shape[::-1]))
    return rows


def _in_c_order(x: Any) -> bool:
    if _arrays.library_of(x) == "torch":
        return bool(x.is_contiguous())
    flags = getattr(x, "flags", None)
    return True if flags is None else bool(flags.c_contiguous)
