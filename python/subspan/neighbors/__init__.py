"""What neighbours are for: an estimator, graphs, searches in parts, matching, a loss."""

from subspan.neighbors.builder import KnnBuilder
from subspan.neighbors.contrast import annealed_temperature, soft_nearest_neighbor_loss
from subspan.neighbors.estimator import NearestNeighbors
from subspan.neighbors.graphs import knn_graph
from subspan.neighbors.matching import Match, match

__all__ = [
    "KnnBuilder",
    "Match",
    "NearestNeighbors",
    "annealed_temperature",
    "knn_graph",
    "match",
    "soft_nearest_neighbor_loss",
]
