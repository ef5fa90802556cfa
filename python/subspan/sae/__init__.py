"""Sparse autoencoders: trained, judged, read from and written to files, used on plain arrays.

An `Autoencoder` is a finished one: weights and a rule of selection, on numpy or torch arrays,
without torch if the arrays are numpy's. What is trained are torch modules, which are imported when
one of them is asked for (``pip install 'subspan[models]'``).
"""

import importlib
from typing import TYPE_CHECKING, Any

from subspan.sae.autoencoder import ARCHITECTURES as ARCHITECTURES
from subspan.sae.autoencoder import Autoencoder as Autoencoder
from subspan.sae.cards.reporting import Report as Report
from subspan.sae.cards.reporting import report as report
from subspan.sae.evaluation import Evaluation as Evaluation
from subspan.sae.evaluation import evaluate as evaluate
from subspan.sae.study import study as study

if TYPE_CHECKING:
    from subspan.sae.modules._initialize import geometric_median as geometric_median
    from subspan.sae.modules.base import SAE as SAE
    from subspan.sae.modules.base import LossTerms as LossTerms
    from subspan.sae.modules.choice import FeatureChoiceSAE as FeatureChoiceSAE
    from subspan.sae.modules.choice import MutualChoiceSAE as MutualChoiceSAE
    from subspan.sae.modules.choice import Zipf as Zipf
    from subspan.sae.modules.choice import fit_zipf as fit_zipf
    from subspan.sae.modules.make import make_sae as make_sae
    from subspan.sae.modules.nested import MatryoshkaSAE as MatryoshkaSAE
    from subspan.sae.modules.nested import OrthogonalSAE as OrthogonalSAE
    from subspan.sae.modules.penalized import GatedSAE as GatedSAE
    from subspan.sae.modules.penalized import JumpReLUSAE as JumpReLUSAE
    from subspan.sae.modules.penalized import PenalizedSAE as PenalizedSAE
    from subspan.sae.modules.penalized import ReLUSAE as ReLUSAE
    from subspan.sae.modules.pursuit import MatchingPursuitSAE as MatchingPursuitSAE
    from subspan.sae.modules.selection import BatchTopKSAE as BatchTopKSAE
    from subspan.sae.modules.selection import SelectionSAE as SelectionSAE
    from subspan.sae.modules.selection import TopKSAE as TopKSAE
    from subspan.sae.training.config import TrainConfig as TrainConfig
    from subspan.sae.training.run import Training as Training
    from subspan.sae.training.run import train as train
    from subspan.sae.training.trainer import Trainer as Trainer

# Names that need torch, and where they are.
_LAZY = {
    "BatchTopKSAE": "modules.selection",
    "FeatureChoiceSAE": "modules.choice",
    "GatedSAE": "modules.penalized",
    "JumpReLUSAE": "modules.penalized",
    "LossTerms": "modules.base",
    "MatchingPursuitSAE": "modules.pursuit",
    "MatryoshkaSAE": "modules.nested",
    "MutualChoiceSAE": "modules.choice",
    "OrthogonalSAE": "modules.nested",
    "PenalizedSAE": "modules.penalized",
    "ReLUSAE": "modules.penalized",
    "SAE": "modules.base",
    "SelectionSAE": "modules.selection",
    "TopKSAE": "modules.selection",
    "TrainConfig": "training.config",
    "Trainer": "training.trainer",
    "Training": "training.run",
    "Zipf": "modules.choice",
    "fit_zipf": "modules.choice",
    "geometric_median": "modules._initialize",
    "make_sae": "modules.make",
    "train": "training.run",
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
