"""Sparse autoencoders."""

from subspan.sae.evaluation import Evaluation as Evaluation
from subspan.sae.evaluation import evaluate as evaluate
