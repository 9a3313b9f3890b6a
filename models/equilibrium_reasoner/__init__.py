"""Equilibrium networks that solve puzzles by iterating a cell."""

from models.equilibrium_reasoner.attention import AttentionCell
from models.equilibrium_reasoner.cell import ReasoningCell
from models.equilibrium_reasoner.convolutional import ConvolutionalCell
from models.equilibrium_reasoner.reasoner import EquilibriumReasoner
from models.equilibrium_reasoner.two_level import TwoLevelCell

__all__ = ["AttentionCell", "ConvolutionalCell", "EquilibriumReasoner", "ReasoningCell", "TwoLevelCell"]
