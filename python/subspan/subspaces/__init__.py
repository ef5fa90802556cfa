"""Geometry of subspaces: angles and distances, geodesics, means, flags, differences."""

from subspan.subspaces._iterate import Record
from subspan.subspaces.angles import PrincipalAngles, principal_angles
from subspan.subspaces.differences import (
    DifferenceSubspace,
    SeriesMagnitudes,
    difference_magnitudes,
    difference_subspace,
    second_difference_subspace,
)
from subspan.subspaces.distances import METRICS, Metric, distance, from_angles, metrics_table
from subspan.subspaces.flags import (
    FlagAverage,
    chordal_flag_mean,
    chordal_flag_median,
    flag_distance,
)
from subspan.subspaces.geometry import exp, geodesic, log, transport
from subspan.subspaces.means import (
    FlagMean,
    FlagMedian,
    KarcherMean,
    flag_mean,
    flag_median,
    karcher_mean,
)
from subspan.subspaces.spaces import Subspaces, span

__all__ = [
    "METRICS",
    "DifferenceSubspace",
    "FlagAverage",
    "FlagMean",
    "FlagMedian",
    "KarcherMean",
    "Metric",
    "PrincipalAngles",
    "Record",
    "SeriesMagnitudes",
    "Subspaces",
    "chordal_flag_mean",
    "chordal_flag_median",
    "difference_magnitudes",
    "difference_subspace",
    "distance",
    "exp",
    "flag_distance",
    "flag_mean",
    "flag_median",
    "from_angles",
    "geodesic",
    "karcher_mean",
    "log",
    "metrics_table",
    "principal_angles",
    "second_difference_subspace",
    "span",
    "transport",
]
