"""How alike layers are: canonical correlations, kernel alignment, Procrustes, distances of samples.

Functions take the activations of two layers on the same samples, rows = samples; `compare` takes
many layers and works out all pairs, with permutation nulls.
"""

from subspan.similarity.alignment import MinibatchCKA, cka
from subspan.similarity.comparison import Comparison, compare
from subspan.similarity.correlations import Correlations, cca, pwcca, svcca
from subspan.similarity.dissimilarity import rsa
from subspan.similarity.measures import MEASURES, Measure
from subspan.similarity.shapes import procrustes

__all__ = [
    "MEASURES",
    "Comparison",
    "Correlations",
    "Measure",
    "MinibatchCKA",
    "cca",
    "cka",
    "compare",
    "procrustes",
    "pwcca",
    "rsa",
    "svcca",
]
