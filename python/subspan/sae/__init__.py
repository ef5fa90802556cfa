"""Sparse autoencoders: trained, judged, read from and written to files, used on plain arrays.

An `Autoencoder` is a finished one: weights and a rule of selection, on numpy or torch arrays,
without torch if the arrays are numpy's. What is trained are torch modules, which are imported when
one of them is asked for (``pip install 'subspan[models]'``).
"""

import importlib
from typing import TYPE_CHECKING, Any

from subspan.sae.autoencoder import ARCHITECTURES as ARCHITECTURES
from subspan.sae.autoencoder import Autoencoder as Autoencoder
from subspan.sae.evaluation import Evaluation as Evaluation
from subspan.sae.evaluation import evaluate as evaluate
from subspan.sae.reporting import Report as Report
from subspan.sae.reporting import report as report
from subspan.sae.study import study as study

if TYPE_CHECKING:
    from subspan.sae._initialize import geometric_median as geometric_median
    from subspan.sae.base import SAE as SAE
    from subspan.sae.base import LossTerms as LossTerms
    from subspan.sae.choice import FeatureChoiceSAE as FeatureChoiceSAE
    from subspan.sae.choice import MutualChoiceSAE as MutualChoiceSAE
    from subspan.sae.choice import Zipf as Zipf
    from subspan.sae.choice import fit_zipf as fit_zipf
    from subspan.sae.config import TrainConfig as TrainConfig
    from subspan.sae.make import make_sae as make_sae
    from subspan.sae.nested import MatryoshkaSAE as MatryoshkaSAE
    from subspan.sae.nested import OrthogonalSAE as OrthogonalSAE
    from subspan.sae.penalized import GatedSAE as GatedSAE
    from subspan.sae.penalized import JumpReLUSAE as JumpReLUSAE
    from subspan.sae.penalized import PenalizedSAE as PenalizedSAE
    from subspan.sae.penalized import ReLUSAE as ReLUSAE
    from subspan.sae.pursuit import MatchingPursuitSAE as MatchingPursuitSAE
    from subspan.sae.run import Training as Training
    from subspan.sae.run import train as train
    from subspan.sae.selection import BatchTopKSAE as BatchTopKSAE
    from subspan.sae.selection import SelectionSAE as SelectionSAE
    from subspan.sae.selection import TopKSAE as TopKSAE
    from subspan.sae.trainer import Trainer as Trainer

# Names that need torch, and where they are.
_LAZY = {
    "BatchTopKSAE": "selection",
    "FeatureChoiceSAE": "choice",
    "GatedSAE": "penalized",
    "JumpReLUSAE": "penalized",
    "LossTerms": "base",
    "MatchingPursuitSAE": "pursuit",
    "MatryoshkaSAE": "nested",
    "MutualChoiceSAE": "choice",
    "OrthogonalSAE": "nested",
    "PenalizedSAE": "penalized",
    "ReLUSAE": "penalized",
    "SAE": "base",
    "SelectionSAE": "selection",
    "TopKSAE": "selection",
    "TrainConfig": "config",
    "Trainer": "trainer",
    "Training": "run",
    "Zipf": "choice",
    "fit_zipf": "choice",
    "geometric_median": "_initialize",
    "make_sae": "make",
    "train": "run",
}

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "Autoencoder",
    "BatchTopKSAE",
    "Evaluation",
    "FeatureChoiceSAE",
    "GatedSAE",
    "JumpReLUSAE",
    "LossTerms",
    "MatchingPursuitSAE",
    "MatryoshkaSAE",
    "MutualChoiceSAE",
    "OrthogonalSAE",
    "PenalizedSAE",
    "ReLUSAE",
    "Report",
    "SelectionSAE",
    "TopKSAE",
    "TrainConfig",
    "Trainer",
    "Training",
    "Zipf",
    "evaluate",
    "fit_zipf",
    "geometric_median",
    "make_sae",
    "report",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
