"""LightningModules, one per task."""

from models.citation_gnn import CitationGNN
from models.hopfield import HopfieldMemory
from models.linear_classifier import LinearClassifier
from models.propagation import ContractiveCell, GRUPropagation, PageRankCell, PropagationCell

__all__ = [
    "CitationGNN",
    "ContractiveCell",
    "GRUPropagation",
    "HopfieldMemory",
    "LinearClassifier",
    "PageRankCell",
    "PropagationCell",
]
