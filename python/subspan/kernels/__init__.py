"""What kernel matrices are for beyond products: weightings and magnitudes of sets of points."""

from subspan.kernels.weighting import magnitude, weighting_vector

__all__ = ["magnitude", "weighting_vector"]
