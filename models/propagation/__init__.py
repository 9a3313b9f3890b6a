"""Cells that propagate node states along the edges of a graph."""

from models.propagation.base import PropagationCell
from models.propagation.contractive import ContractiveCell
from models.propagation.gru import GRUPropagation
from models.propagation.page_rank import PageRankCell

__all__ = ["ContractiveCell", "GRUPropagation", "PageRankCell", "PropagationCell"]
