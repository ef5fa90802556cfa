"""Whether samples depend on each other, how far apart samples are, and how many modes they have.

All sums over pairs go tile by tile: memory grows with the number of rows.
"""

from subspan.dependence.bandwidths import kernel_bandwidth
from subspan.dependence.cauchy_schwarz import (
    conditional_cs_divergence,
    cs_divergence,
    cs_mutual_information,
)
from subspan.dependence.diffusion import (
    SpectralEntropy,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
)
from subspan.dependence.distances import distance_correlation, distance_covariance
from subspan.dependence.independence import IndependenceTest, independence_test
from subspan.dependence.kernels import hsic

__all__ = [
    "IndependenceTest",
    "SpectralEntropy",
    "conditional_cs_divergence",
    "cs_divergence",
    "cs_mutual_information",
    "diffusion_spectral_entropy",
    "diffusion_spectral_mutual_information",
    "distance_correlation",
    "distance_covariance",
    "hsic",
    "independence_test",
    "kernel_bandwidth",
]
