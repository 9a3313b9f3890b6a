"""Hyperparameter optimisation by hypergradients."""

from models.hyperparameter_optimization.optimizer import HyperparameterOptimizer
from models.hyperparameter_optimization.random_search import RandomSearch

__all__ = ["HyperparameterOptimizer", "RandomSearch"]
