"""What neighbours are for: an estimator, graphs, searches in parts, matching of descriptors."""

from subspan.neighbors.builder import KnnBuilder
from subspan.neighbors.estimator import NearestNeighbors
from subspan.neighbors.graphs import knn_graph
from subspan.neighbors.matching import Match, match

__all__ = ["KnnBuilder", "Match", "NearestNeighbors", "knn_graph", "match"]
