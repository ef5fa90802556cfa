"""Smaller weights with errors that are known: array functions, and the models that use them.

On arrays: `truncated_svd`, `activation_svd`, `whitened_svd` and `fisher_svd` give the factors of
all ranks with the error of each, `sparse_dictionary` a dictionary with sparse codes; `allocate`
spends one budget over many matrices; `Storage` counts bytes; `cache_basis`, `mixed_basis` and
`utilised_rank` are for caches, integers and a look at what is used. On models: `calibrate`
collects the moments of every input once, `replace_weights` puts factors in the place of weights,
`save`, `load` and `export` write and read them, `perplexity` says what it cost, and `compress` does
all of it and writes a report. For caches of keys and values, `calibrate_cache`, `plan_cache`,
`train_cache` and `compress_cache` do the same; for integers in rotated bases, `calibrate_rotation`,
`round_weights`, `rotate_model` and `rotate`. Importing this package imports neither torch nor
transformers.
"""

from subspan.compression._job import Compression as Compression
from subspan.compression._job import compress as compress
from subspan.compression.allocation import Allocation as Allocation
from subspan.compression.allocation import Options as Options
from subspan.compression.allocation import allocate as allocate
from subspan.compression.allocation import rank_options as rank_options
from subspan.compression.caches._job import CacheCompression as CacheCompression
from subspan.compression.caches._job import compress_cache as compress_cache
from subspan.compression.caches.basis import CacheBasis as CacheBasis
from subspan.compression.caches.basis import cache_basis as cache_basis
from subspan.compression.caches.moments import CacheMoments as CacheMoments
from subspan.compression.caches.moments import calibrate_cache as calibrate_cache
from subspan.compression.caches.plan import CachePlan as CachePlan
from subspan.compression.caches.plan import plan_cache as plan_cache
from subspan.compression.caches.rates import allocate_rates as allocate_rates
from subspan.compression.caches.rates import search_rates as search_rates
from subspan.compression.caches.training import TrainedCache as TrainedCache
from subspan.compression.caches.training import train_cache as train_cache
from subspan.compression.calibration import Calibration as Calibration
from subspan.compression.calibration import calibrate as calibrate
from subspan.compression.dictionary import sparse_dictionary as sparse_dictionary
from subspan.compression.elementwise import elementwise_svd as elementwise_svd
from subspan.compression.factors import Factors as Factors
from subspan.compression.layers import Weight as Weight
from subspan.compression.layers import find_weights as find_weights
from subspan.compression.lowrank import activation_svd as activation_svd
from subspan.compression.lowrank import fisher_svd as fisher_svd
from subspan.compression.lowrank import truncated_svd as truncated_svd
from subspan.compression.lowrank import whitened_svd as whitened_svd
from subspan.compression.matrices import Dense as Dense
from subspan.compression.matrices import Integers as Integers
from subspan.compression.matrices import LowRank as LowRank
from subspan.compression.matrices import Replacement as Replacement
from subspan.compression.matrices import SparseDictionary as SparseDictionary
from subspan.compression.perplexity import Perplexity as Perplexity
from subspan.compression.perplexity import perplexity as perplexity
from subspan.compression.quantize import MixedBasis as MixedBasis
from subspan.compression.quantize import Quantized as Quantized
from subspan.compression.quantize import mixed_basis as mixed_basis
from subspan.compression.quantize import quantize as quantize
from subspan.compression.rotations._job import RotationReport as RotationReport
from subspan.compression.rotations._job import rotate as rotate
from subspan.compression.rotations.basis import Precision as Precision
from subspan.compression.rotations.basis import Rotation as Rotation
from subspan.compression.rotations.basis import rotate_residual as rotate_residual
from subspan.compression.rotations.model import Meter as Meter
from subspan.compression.rotations.model import rotate_model as rotate_model
from subspan.compression.rotations.model import rotated as rotated
from subspan.compression.rotations.model import round_weights as round_weights
from subspan.compression.rotations.moments import RotationMoments as RotationMoments
from subspan.compression.rotations.moments import calibrate_rotation as calibrate_rotation
from subspan.compression.storage import Storage as Storage
from subspan.compression.storage import cache_storage as cache_storage
from subspan.compression.storage import dense_storage as dense_storage
from subspan.compression.storage import dictionary_size as dictionary_size
from subspan.compression.storage import dictionary_storage as dictionary_storage
from subspan.compression.storage import low_rank_storage as low_rank_storage
from subspan.compression.storage import quantized_storage as quantized_storage
from subspan.compression.storage import rank_of_kept as rank_of_kept
from subspan.compression.utilised import UtilisedRank as UtilisedRank
from subspan.compression.utilised import utilised_rank as utilised_rank
from subspan.compression.weights import export as export
from subspan.compression.weights import load as load
from subspan.compression.weights import replace_weights as replace_weights
from subspan.compression.weights import replaced as replaced
from subspan.compression.weights import save as save

__all__ = [
    "Allocation",
    "CacheBasis",
    "CacheCompression",
    "CacheMoments",
    "CachePlan",
    "Calibration",
    "Compression",
    "Dense",
    "Factors",
    "Integers",
    "LowRank",
    "Meter",
    "MixedBasis",
    "Options",
    "Perplexity",
    "Precision",
    "Quantized",
    "Replacement",
    "Rotation",
    "RotationMoments",
    "RotationReport",
    "SparseDictionary",
    "Storage",
    "TrainedCache",
    "UtilisedRank",
    "Weight",
    "activation_svd",
    "allocate",
    "allocate_rates",
    "cache_basis",
    "cache_storage",
    "calibrate",
    "calibrate_cache",
    "calibrate_rotation",
    "compress",
    "compress_cache",
    "dense_storage",
    "dictionary_size",
    "dictionary_storage",
    "elementwise_svd",
    "export",
    "find_weights",
    "fisher_svd",
    "load",
    "low_rank_storage",
    "mixed_basis",
    "perplexity",
    "plan_cache",
    "quantize",
    "quantized_storage",
    "rank_of_kept",
    "rank_options",
    "replace_weights",
    "replaced",
    "rotate",
    "rotate_model",
    "rotate_residual",
    "rotated",
    "round_weights",
    "save",
    "search_rates",
    "sparse_dictionary",
    "train_cache",
    "truncated_svd",
    "utilised_rank",
    "whitened_svd",
]
