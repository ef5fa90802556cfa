"""How good a code is: variance explained, sparsity, loss kept, absorption.

Every measure is a ratio of sums over all rows, so it does not depend on how rows come in batches;
the forms that other libraries report are there by name, for comparison with their tables.
"""

from typing import Any

from subspan import _checks
from subspan._arrays import require_array
from subspan.errors import InvalidArgumentError
from subspan.sae._sums import FORMS, sums_of
from subspan.sae.absorption import Absorption, absorption
from subspan.sae.statistics import CodeMetrics, CodeStatistics

__all__ = [
    "Absorption",
    "CodeMetrics",
    "CodeStatistics",
    "absorption",
    "explained_variance",
    "kl_recovered",
    "loss_recovered",
]


def explained_variance(x: Any, x_hat: Any, *, form: str = "variance") -> float:
    """Return the share of the variance of rows that their reconstructions explain.

    ``1 - sum |x - x̂|^2 / sum |x - mean of x|^2``

    Parameters
    ----------
    x : array (rows, d)
        Numpy, torch or cupy, any float dtype.
    x_hat : array (rows, d)
    form : {"variance", "residual_variance", "saelens_compat", "saelens_legacy"}
        "variance" is as above. The others are what libraries report as explained variance, for
        comparison with their tables:

        * "residual_variance" (dictionary_learning) is
          ``1 - sum of variances of x - x̂ / sum of variances of x``, which takes no notice of a
          constant error.
        * "saelens_compat" (SAELens from pull request 443 to 665, 6.18 among them; SAEBench) has the
          denominator ``q - (q / d)^2``, q the mean of ``|x|^2``, which is no variance.
        * "saelens_legacy" is the mean over rows of ``1 - |x - x̂|^2 / |x - mean of x|^2``.

    Returns
    -------
    float
        At most 1; NaN where x does not vary.

    Raises
    ------
    InvalidArgumentError
        Shapes differ, there are no rows, or something is NaN or infinite.
    DtypeError
        An argument is no array.

    Notes
    -----
    Sums are float64 and centred before they are squared. For batches, see `CodeStatistics`.

    Examples
    --------
    >>> import numpy as np
    >>> from subspan.sae.metrics import explained_variance
    >>> x = np.array([[9.0, 9.0], [11.0, 11.0]])
    >>> explained_variance(x, np.array([[9.5, 9.0], [11.0, 11.5]]))
    0.875
    """
    function = "explained_variance"
    _checks.choice(function, "form", form, FORMS)
    require_array(function, "x", x)
    _checks.ndim(function, "x", x, 2)
    if not all(x.shape):
        raise InvalidArgumentError(
            f"[{function}] x must have rows and columns, got shape {tuple(x.shape)}"
        )
    return sums_of(function, x, x_hat).explained(form)


def loss_recovered(clean: float, spliced: float, ablated: float) -> float:
    """Return the share of a loss that reconstructions keep: 1 as good as the rows, 0 as without.

    ``(ablated - spliced) / (ablated - clean)``

    Parameters
    ----------
    clean, spliced, ablated : float
        Mean cross-entropy of a model as it is, with rows replaced by their reconstructions, and
        with rows replaced by zero or by their mean: say which.

    Returns
    -------
    float
        NaN where the ablation does not raise the loss, as there is nothing to recover.

    Raises
    ------
    InvalidArgumentError
        An argument is NaN.
    DtypeError
        An argument is no number.

    Examples
    --------
    >>> from subspan.sae.metrics import loss_recovered
    >>> loss_recovered(clean=3.0, spliced=3.5, ablated=8.0)
    0.9
    """
    named = {"clean": clean, "spliced": spliced, "ablated": ablated}
    clean, spliced, ablated = (
        _checks.real("loss_recovered", name, value) for name, value in named.items()
    )
    return (ablated - spliced) / (ablated - clean) if ablated > clean else float("nan")


def kl_recovered(spliced: float, ablated: float) -> float:
    """Return the share of a divergence that reconstructions avoid: ``1 - spliced / ablated``.

    Parameters
    ----------
    spliced, ablated : float
        Mean KL divergence of a model's predictions from those of the model as it is, with rows
        replaced by their reconstructions, and with rows replaced by zero or by their mean.

    Returns
    -------
    float
        NaN where the ablation changes nothing.

    Raises
    ------
    InvalidArgumentError
        An argument is NaN or negative.
    DtypeError
        An argument is no number.

    Examples
    --------
    >>> from subspan.sae.metrics import kl_recovered
    >>> kl_recovered(spliced=0.5, ablated=5.0)
    0.9
    """
    spliced = _checks.real("kl_recovered", "spliced", spliced, low=0.0)
    ablated = _checks.real("kl_recovered", "ablated", ablated, low=0.0)
    return 1 - spliced / ablated if ablated > 0 else float("nan")
