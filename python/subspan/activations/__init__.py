"""Activations of language models: captured while a model runs, or read from files.

The usual order is `load_model`, `tokenize`, `capture`; `open_saved` reads what is on disk
already, and `OutlierRule` names the tokens whose activations dwarf all others. To read the same
activations many times, `write_activations` keeps them in an `ActivationStore`, whose rows come back
in batches shuffled over the whole store; `array_batches` does so for arrays. Importing this
package imports neither torch nor transformers; they are needed to load and run a model
(``pip install 'subspan[models]'``).
"""

from subspan.activations._batches import ActivationBatch as ActivationBatch
from subspan.activations._batches import TokenBatch as TokenBatch
from subspan.activations._site import KINDS as KINDS
from subspan.activations._site import Site as Site
from subspan.activations._site import headline as headline
from subspan.activations._site import kind_name as kind_name
from subspan.activations.batches import RowBatches as RowBatches
from subspan.activations.batches import array_batches as array_batches
from subspan.activations.capture import capture as capture
from subspan.activations.models import Model as Model
from subspan.activations.models import load_model as load_model
from subspan.activations.outliers import OutlierRule as OutlierRule
from subspan.activations.outliers import TokenClasses as TokenClasses
from subspan.activations.resuming import resume_at as resume_at
from subspan.activations.saved import SavedActivations as SavedActivations
from subspan.activations.saved import open_saved as open_saved
from subspan.activations.sites import find_sites as find_sites
from subspan.activations.splice import splice as splice
from subspan.activations.store import ActivationStore as ActivationStore
from subspan.activations.tokens import TokenStream as TokenStream
from subspan.activations.tokens import tokenize as tokenize
from subspan.activations.writing import write_activations as write_activations

__all__ = [
    "KINDS",
    "ActivationBatch",
    "ActivationStore",
    "Model",
    "OutlierRule",
    "RowBatches",
    "SavedActivations",
    "Site",
    "TokenBatch",
    "TokenClasses",
    "TokenStream",
    "array_batches",
    "capture",
    "find_sites",
    "headline",
    "kind_name",
    "load_model",
    "open_saved",
    "resume_at",
    "splice",
    "tokenize",
    "write_activations",
]
