"""Which class trains which architecture."""

from __future__ import annotations

from typing import Any

from subspan._checks import choice
from subspan.errors import InvalidArgumentError
from subspan.sae.autoencoder import Autoencoder
from subspan.sae.modules.base import SAE
from subspan.sae.modules.choice import FeatureChoiceSAE, MutualChoiceSAE
from subspan.sae.modules.nested import MatryoshkaSAE, OrthogonalSAE
from subspan.sae.modules.penalized import GatedSAE, JumpReLUSAE, PenalizedSAE, ReLUSAE
from subspan.sae.modules.pursuit import MatchingPursuitSAE
from subspan.sae.modules.selection import BatchTopKSAE, TopKSAE

__all__ = ["CLASSES", "make_sae", "restored"]

CLASSES: dict[str, type[SAE]] = {
    "topk": TopKSAE,
    "batch_topk": BatchTopKSAE,
    "jumprelu": JumpReLUSAE,
    "relu": ReLUSAE,
    "gated": GatedSAE,
    "matryoshka": MatryoshkaSAE,
    "matching_pursuit": MatchingPursuitSAE,
    "mutual_choice": MutualChoiceSAE,
    "feature_choice": FeatureChoiceSAE,
    "orthogonal": OrthogonalSAE,
}


def make_sae(architecture: str, width: int, n_latents: int, **options: Any) -> SAE:
    """Return a sparse autoencoder to train, by the name of its architecture.

    Parameters
    ----------
    architecture : str
        One of the `ARCHITECTURES` of finished ones, or "orthogonal", which becomes a "batch_topk".
    width, n_latents : int
    **options
        Arguments of the class.

    Returns
    -------
    SAE

    Raises
    ------
    InvalidArgumentError
        There is no such architecture, or an option is out of its range.

    Examples
    --------
    >>> from subspan.sae import make_sae
    >>> make_sae("topk", 16, 64, k=4)
    TopKSAE(width=16, n_latents=64, k=4)
    """
    choice("make_sae", "architecture", architecture, CLASSES)
    return CLASSES[architecture](width, n_latents, **options)


def restored(autoencoder: Autoencoder, cls: type[SAE], options: dict[str, Any]) -> SAE:
    """Return a module of the class of an autoencoder, or of cls, with its weights."""
    import torch

    function = "SAE.from_autoencoder"
    if autoencoder.normalize != "none":
        raise InvalidArgumentError(
            f"[{function}] normalize must be 'none', got {autoencoder.normalize!r}. Normalise the "
            "rows first, and train on those"
        )
    known = CLASSES[autoencoder.architecture]
    kind = known if cls is SAE else cls
    if kind.architecture != autoencoder.architecture:
        raise InvalidArgumentError(
            f"[{function}] architecture must be {kind.architecture!r} for {kind.__name__}, got "
            f"{autoencoder.architecture!r}"
        )
    source = autoencoder.to_torch()
    chosen: dict[str, Any] = {"pre_bias": source.pre_bias}
    if not issubclass(kind, PenalizedSAE):
        if source.k is None and "k" not in options:
            raise InvalidArgumentError(
                f"[{function}] k must be given, as the autoencoder has a threshold alone, got None"
            )
        chosen["k"] = source.k
    if source.group_sizes:
        chosen["group_sizes"] = source.group_sizes
    options = chosen | options
    sae = kind(source.width, source.n_latents, dtype=source.dtype, **options)
    with torch.no_grad():
        for name in ("w_enc", "w_dec", "b_dec", "b_enc"):
            parameter, value = getattr(sae, name, None), getattr(source, name)
            if parameter is not None and value is not None:
                parameter.copy_(value)
        sae.scale.fill_(source.scale)
        sae._restore(source)
    sae.started = True
    return sae
