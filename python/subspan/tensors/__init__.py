"""Tensors taken apart: CP, Tucker, RESCAL, sums of powers, and models with thresholds."""

from subspan.tensors.cp import CPResult, cp
from subspan.tensors.cp_tensor import CPTensor
from subspan.tensors.hopm import HOPM, hopm
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
from subspan.tensors.spm import SPM, SPMInfo, spm, spm_from_samples
from subspan.tensors.symmetric import symmetric_pack, symmetric_unpack, symmetrize
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
    "HOPM",
    "SPM",
    "CPResult",
    "CPTensor",
    "NestedSample",
    "RankOneLimit",
    "Rescal",
    "RescalK",
    "RescalScan",
    "SPMInfo",
    "SpikeLimit",
    "SpikedSample",
    "TuckerResult",
    "TuckerTensor",
    "UnfoldingSpectrum",
    "clustering_accuracy",
    "cp",
    "fold",
    "hopm",
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
    "spm",
    "spm_from_samples",
    "symmetric_pack",
    "symmetric_unpack",
    "symmetrize",
    "tucker",
    "unfold",
    "unfolding_spectrum",
]
