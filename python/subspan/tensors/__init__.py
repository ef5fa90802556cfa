"""Tensors: sums of powers of vectors, best rank-one approximations, packed symmetric tensors."""

from subspan.tensors.hopm import HOPM, hopm
from subspan.tensors.spm import SPM, SPMInfo, spm, spm_from_samples
from subspan.tensors.symmetric import symmetric_pack, symmetric_unpack, symmetrize

__all__ = [
    "HOPM",
    "SPM",
    "SPMInfo",
    "hopm",
    "spm",
    "spm_from_samples",
    "symmetric_pack",
    "symmetric_unpack",
    "symmetrize",
]
