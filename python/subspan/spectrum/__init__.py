"""Measures of a spectrum: how many directions a set of features really uses.

Measures of spectra take singular values or variances (eigenvalues of a covariance) of shape
``(..., r)`` in any order and work over the last axis, so one call serves all layers or all
checkpoints of a model. Arithmetic is float64 whatever comes in, on values divided by the largest,
so that nothing depends on the scale of the data. `by_layer` starts from rows or moments, `lidar`
from rows or moments with classes.

A spectrum of zeros has no directions: all measures are 0 for it, except the decay exponent, which
is NaN where fewer than two values can be fitted.
"""

from subspan.spectrum.lidar import lidar
from subspan.spectrum.measures import (
    active_fraction,
    decay_exponent,
    dimension_for,
    effective_rank,
    participation_ratio,
    rankme,
    stable_rank,
    tail_energy,
)
from subspan.spectrum.summary import LayerSpectra, SpectrumStats, by_layer, stats

__all__ = [
    "LayerSpectra",
    "SpectrumStats",
    "active_fraction",
    "by_layer",
    "decay_exponent",
    "dimension_for",
    "effective_rank",
    "lidar",
    "participation_ratio",
    "rankme",
    "stable_rank",
    "stats",
    "tail_energy",
]
