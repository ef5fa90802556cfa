"""Decompositions of tensors into few parts: CP, Tucker, RESCAL, and models with thresholds."""

from subspan.tensors.cp import CPResult, cp
from subspan.tensors.cp_tensor import CPTensor
from subspan.tensors.nested import (
    NestedSample,
    SpikeLimit,
    nested_bound,
    nested_density,
    nested_rank_one,
    nested_sample,
    nested_unfolding,
)
from subspan.tensors.rescal import Rescal, RescalK, RescalScan, rescal, rescal_k
from subspan.tensors.spiked import (
    RankOneLimit,
    SpikedSample,
    UnfoldingSpectrum,
    clustering_accuracy,
    spiked_cubic,
    spiked_rank_one,
    spiked_sample,
    unfolding_spectrum,
)
from subspan.tensors.tucker import TuckerResult, tucker
from subspan.tensors.tucker_tensor import TuckerTensor
from subspan.tensors.unfolding import (
    fold,
    khatri_rao,
    kronecker,
    mode_product,
    multi_mode_product,
    unfold,
)

__all__ = [
    "CPResult",
    "CPTensor",
    "NestedSample",
    "RankOneLimit",
    "Rescal",
    "RescalK",
    "RescalScan",
    "SpikeLimit",
    "SpikedSample",
    "TuckerResult",
    "TuckerTensor",
    "UnfoldingSpectrum",
    "clustering_accuracy",
    "cp",
    "fold",
    "khatri_rao",
    "kronecker",
    "mode_product",
    "multi_mode_product",
    "nested_bound",
    "nested_density",
    "nested_rank_one",
    "nested_sample",
    "nested_unfolding",
    "rescal",
    "rescal_k",
    "spiked_cubic",
    "spiked_rank_one",
    "spiked_sample",
    "tucker",
    "unfold",
    "unfolding_spectrum",
]
