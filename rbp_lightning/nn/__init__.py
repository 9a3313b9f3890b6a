"""What makes an update a contraction, and products that are constant over a solve."""

from rbp_lightning.nn.norm_bounds import FrobeniusNormBound, InfinityNormBound, SpectralNormBound
from rbp_lightning.nn.penalties import column_sum_penalty, jacobian_penalty
from rbp_lightning.nn.replicated import replicated
from rbp_lightning.nn.sparse import SparseMatrix

__all__ = [
    "FrobeniusNormBound",
    "InfinityNormBound",
    "SparseMatrix",
    "SpectralNormBound",
    "column_sum_penalty",
    "jacobian_penalty",
    "replicated",
]
