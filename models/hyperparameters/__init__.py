"""Hyperparameters in the loss of the inner training."""

from models.hyperparameters.base import Examples, Hyperparameter
from models.hyperparameters.label_smoothing import LabelSmoothing
from models.hyperparameters.loss_weights import ClassWeights, ExampleWeights
from models.hyperparameters.weight_decay import WeightDecay

__all__ = ["ClassWeights", "ExampleWeights", "Examples", "Hyperparameter", "LabelSmoothing", "WeightDecay"]
