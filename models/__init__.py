"""The LightningModules of the example tasks, and their cells."""

from models.citation_gnn import CitationGNN
from models.equilibrium_classifier import (
    ConvolutionalImageCell,
    EquilibriumClassifier,
    ImageCell,
    MultiscaleImageCell,
)
from models.equilibrium_reasoner import (
    AttentionCell,
    ConvolutionalCell,
    EquilibriumReasoner,
    ReasoningCell,
    TwoLevelCell,
)
from models.hopfield import HopfieldMemory
from models.hyperparameter_optimization import HyperparameterOptimizer, RandomSearch
from models.hyperparameters import ClassWeights, ExampleWeights, Hyperparameter, LabelSmoothing, WeightDecay
from models.inner_training import MLP
from models.linear_classifier import LinearClassifier
from models.partitioned_gnn import PartitionedGNN
from models.propagation import ContractiveCell, GRUPropagation, PageRankCell, PropagationCell

__all__ = [
    "MLP",
    "AttentionCell",
    "CitationGNN",
    "ClassWeights",
    "ContractiveCell",
    "ConvolutionalCell",
    "ConvolutionalImageCell",
    "EquilibriumClassifier",
    "EquilibriumReasoner",
    "ExampleWeights",
    "GRUPropagation",
    "HopfieldMemory",
    "Hyperparameter",
    "HyperparameterOptimizer",
    "ImageCell",
    "LabelSmoothing",
    "LinearClassifier",
    "MultiscaleImageCell",
    "PageRankCell",
    "PartitionedGNN",
    "PropagationCell",
    "RandomSearch",
    "ReasoningCell",
    "TwoLevelCell",
    "WeightDecay",
]
