"""Two models, checkpoints or stores of activations side by side: which layers match, and how well.

``compare_models(a, b, texts, out="folder")`` is the whole job; ``subspan compare`` is the same on
the command line. ``perturbed`` gives a model with noise on its weights, or with truncated ones.
"""

from subspan.comparison._job import SCHEMA, ModelComparison, compare_models
from subspan.comparison._perturb import perturbed

__all__ = ["SCHEMA", "ModelComparison", "compare_models", "perturbed"]
