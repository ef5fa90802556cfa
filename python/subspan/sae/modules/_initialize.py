"""Where training starts: directions of latents, and the middle of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from subspan import PCA, sparse_decode
from subspan._checks import integer, real
from subspan.errors import InvalidArgumentError
from subspan.sae.modules._arithmetic import row_blocks, total

__all__ = ["active_subspace", "geometric_median", "unit_rows"]


_SHARE = 0.99  # of the variance that the active subspace has where no rank is given
_SAMPLE = 32_768  # rows for the geometric median


def unit_rows(n: int, d: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Return n random directions (n, d), uniform on the sphere."""
    rows = torch.randn((n, d), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)).to(dtype)


def active_subspace(x: Tensor, n: int, rank: int | None, seed: int) -> Tensor:
    """Return n random directions (n, d) in the span of the first principal components of rows x.

    Without a rank it is the smallest with 99 % of the variance.
    """
    rows, width = x.shape
    if rank is not None:
        integer("SAE.initialize", "rank", rank, low=1, high=width)
    if rows <= (rank or 1):
        raise InvalidArgumentError(
            f"[SAE.initialize] x_sample must have more rows than rank, got {rows} for rank "
            f"{rank or 1}. Take a larger sample"
        )
    pca = PCA(n_components=_SHARE if rank is None else rank).fit(x.detach())
    variances = pca.explained_variance_
    alive = int((variances > variances[0] * 1e-12).sum()) if variances[0] > 0 else 0
    if alive < len(variances):
        raise InvalidArgumentError(
            f"[SAE.initialize] rank must be at most {alive}, the rank of x_sample less its mean, "
            f"got {len(variances)}"
        )
    basis = torch.from_numpy(pca.components_).double()
    weights = unit_rows(n, len(basis), seed, torch.float64)
    return (weights @ basis).to(x.dtype)


def geometric_median(x: Tensor, *, max_iterations: int = 100, tol: float = 1e-5) -> Tensor:
    """Return the point (d,) with the least sum of distances to the rows of x (rows, d).

    Weiszfeld's iteration from the mean; at an iterate that is a row itself, whose weight would be
    infinite, the step of Vardi and Zhang.

    Parameters
    ----------
    x : tensor (rows, d)
        At least one row; of more than 32 768 those at equal distances are taken.
    max_iterations : int
    tol : float
        It ends when a step moves by less than tol times the mean distance.

    Returns
    -------
    tensor (d,)

    Raises
    ------
    InvalidArgumentError
        x has no rows, or NaN or infinity.

    Notes
    -----
    3 rows d flops and two reads of x for an iteration. E. Weiszfeld, Tohoku Math. J. 43, 1937;
    Y. Vardi and C.-H. Zhang, PNAS 97, 2000.

    Examples
    --------
    >>> import torch
    >>> from subspan.sae import geometric_median
    >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    >>> geometric_median(x)
    tensor([0.5000, 0.5000])
    """
    integer("geometric_median", "max_iterations", max_iterations, low=1)
    real("geometric_median", "tol", tol, low=0.0)
    if x.dim() != 2 or x.shape[0] == 0:
        raise InvalidArgumentError(
            f"[geometric_median] x must be 2-D with rows, got shape {tuple(x.shape)}"
        )
    x = x.detach()
    if x.shape[0] > _SAMPLE:
        x = x[torch.linspace(0, x.shape[0] - 1, _SAMPLE, dtype=torch.float64).long()]
    rows = torch.arange(x.shape[0])[None]
    middle = sparse_decode(x.new_full(rows.shape, 1.0 / x.shape[0]), rows, x)[0]
    for _ in range(max_iterations):
        distances = torch.cat(
            [torch.linalg.vector_norm(x[block] - middle, dim=-1) for block in row_blocks(x)]
        ).double()
        if not bool(torch.isfinite(distances).all()):
            raise InvalidArgumentError(
                "[geometric_median] x must be finite, got NaN or infinity. Drop such rows first"
            )
        hit = distances == 0
        if bool(hit.all()):
            return middle
        inverse = torch.where(hit, 0.0, 1 / distances)
        weights = inverse / total(inverse)
        step = sparse_decode(weights.to(x.dtype)[None], rows, x)[0]
        if bool(hit.any()):
            pull = torch.linalg.vector_norm((step - middle).double()) * total(inverse)
            stay = min(1.0, float(hit.sum() / pull)) if pull > 0 else 1.0
            step = (1 - stay) * step + stay * middle
        moved = torch.linalg.vector_norm(step - middle)
        middle = step
        if float(moved) <= tol * float(total(distances)) / x.shape[0]:
            break
    return middle
