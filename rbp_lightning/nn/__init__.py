"""Modules and functions for updates: norm bounds, penalties, constant dropout masks and sparse products."""

from rbp_lightning.nn.contractive import contractive
from rbp_lightning.nn.convolution_bounds import (
    FrobeniusConvolutionBound,
    InfinityConvolutionBound,
    SpectralConvolutionBound,
)
from rbp_lightning.nn.held import held
from rbp_lightning.nn.norm_bounds import FrobeniusNormBound, InfinityNormBound, SpectralNormBound
from rbp_lightning.nn.penalties import column_sum_penalty, jacobian_penalty
from rbp_lightning.nn.replicated import replicated
from rbp_lightning.nn.sparse import SparseMatrix
from rbp_lightning.nn.stochastic_depth import StochasticDepth

__all__ = [
    "FrobeniusConvolutionBound",
    "FrobeniusNormBound",
    "InfinityConvolutionBound",
    "InfinityNormBound",
    "SparseMatrix",
    "SpectralConvolutionBound",
    "SpectralNormBound",
    "StochasticDepth",
    "column_sum_penalty",
    "contractive",
    "held",
    "jacobian_penalty",
    "replicated",
]
