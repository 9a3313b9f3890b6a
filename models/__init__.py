"""LightningModules, one per task."""

from models.citation_gnn import CitationGNN
from models.hopfield import HopfieldMemory
from models.hyperparameter_optimization import HyperparameterOptimizer, RandomSearch
from models.hyperparameters import ClassWeights, ExampleWeights, Hyperparameter, LabelSmoothing, WeightDecay
from models.inner_training import MLP
from models.linear_classifier import LinearClassifier
from models.propagation import ContractiveCell, GRUPropagation, PageRankCell, PropagationCell

__all__ = [
    "MLP",
    "CitationGNN",
    "ClassWeights",
    "ContractiveCell",
    "ExampleWeights",
    "GRUPropagation",
    "HopfieldMemory",
    "Hyperparameter",
    "HyperparameterOptimizer",
    "LabelSmoothing",
    "LinearClassifier",
    "PageRankCell",
    "PropagationCell",
    "RandomSearch",
    "WeightDecay",
]
