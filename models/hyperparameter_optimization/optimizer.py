"""Hyperparameter optimisation by hypergradients."""

import copy
import warnings
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from models.hyperparameter_optimization.checks import check_examples, check_linearization, check_solver
from models.hyperparameter_optimization.finite_check import check_finite
from models.hyperparameter_optimization.hypergradient_norms import HypergradientNorms
from models.hyperparameter_optimization.inner_curves import InnerCurves
from models.hyperparameter_optimization.inner_progress import InnerProgress
from models.hyperparameter_optimization.inner_run import run_inner_training
from models.hyperparameter_optimization.inner_setup import set_up_inner_training
from models.hyperparameter_optimization.logged_values import clean_auroc, scalars_of
from models.hyperparameter_optimization.trained_classifier import TrainedClassifier
from models.hyperparameters import Examples, Hyperparameter
from models.inner_training import OnStep, SGDUpdate, local_shard
from rbp_lightning import FixedPoint, GradientEstimator, NeumannRBP, Picard
from rbp_lightning.errors import check_choice, check_count, check_number, check_seed
from rbp_lightning.nn.replicated import replicated


class HyperparameterOptimizer(TrainedClassifier):
    """Learns hyperparameters of a network's training by the gradient through that training (paper, section 4.3).

    The inner training, SGD with momentum, is a recurrent network whose state is (parameters, velocities) and whose
    weights are the hyperparameters. One training step of this module is a whole inner training, of as many steps as
    the estimator's solver takes, followed by one step of the outer optimiser on the hyperparameters.

    The optimum of the inner training does not depend on learning rates and momenta; their hypergradient comes from how
    far the training gets within its steps. ``BPTT`` computes it, and ``TBPTT`` that of the last steps. The implicit
    estimators treat the last state as the optimum, so their hypergradient is biased; use them for hyperparameters in
    the loss.

    Args:
        network: The network to train, a module that maps images to class scores. Each inner training trains a copy,
            starting from its parameters; those with ``requires_grad=False`` are frozen. ``None`` for ``MLP()``.
        hyperparameters: Hyperparameters to learn beside learning rates and momenta.
        num_classes: Number of classes, at least 2.
        batch_size: Examples in a minibatch of the inner training, over all processes.
        inner_learning_rate: Initial learning rate of every tensor, above 0.
        inner_momentum: Initial momentum of every tensor, in [0, 1). 0 is plain gradient descent, without a momentum to
            learn; with ``learn_optimizer=False`` its Jacobian is symmetric, as ``Nystrom`` requires.
        learn_optimizer: Whether to learn learning rates and momenta.
        loss: ``"cross_entropy"``, or ``"squared_error"`` between scores and one-hot labels, for both loops.
        outer_objective: Split whose plain loss is the outer loss: ``"validation"``, or ``"training"`` as in the paper's
            released code.
        inner_start: ``"restart"`` starts each inner training from the same parameters, with the same minibatches;
            ``"last"`` starts from the last trained parameters, with zero velocities and new minibatches.
        inner_seed: Seed of the order of the examples and of the network's random numbers.
        linearization_batches: Number of minibatches in the last step of the inner training, at which implicit
            estimators linearise. ``"all"`` uses the whole training split, as in the paper's released code; with 1 it is
            a step like the others. ``"fresh"`` is 1 with a new minibatch at every evaluation of the step, as
            ``StochasticNeumannSeries`` requires.
        learning_rate: Learning rate of Adam on the hyperparameters. ``--optimizer`` replaces it.
        inner_curves_every: Outer steps from one inner loss curve in TensorBoard to the next.

    Raises:
        UserError: If an argument is out of its range, or the network has nothing to train.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> model = HyperparameterOptimizer(network, num_classes=2)
        >>> training = {"images": torch.rand(6, 1, 2, 2), "labels": torch.tensor([0, 1, 0, 1, 0, 1])}
        >>> model.estimator = NeumannRBP(solver=Picard(max_steps=20, tol=0))
        >>> model.train_network(training).steps
        20
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        hyperparameters: list[Hyperparameter] | None = None,
        num_classes: int = 10,
        batch_size: int = 200,
        inner_learning_rate: float = 0.1,
        inner_momentum: float = 0.5,
        learn_optimizer: bool = True,
        loss: Literal["cross_entropy", "squared_error"] = "cross_entropy",
        outer_objective: Literal["validation", "training"] = "validation",
        inner_start: Literal["restart", "last"] = "restart",
        inner_seed: int = 0,
        linearization_batches: int | Literal["all", "fresh"] = "all",
        learning_rate: float = 0.05,
        inner_curves_every: int = 10,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`")
            self.save_hyperparameters()
        saved = [self.hparams["network"], *(self.hparams["hyperparameters"] or [])]
        if any(isinstance(module, nn.Module) for module in saved):
            # Made in Python: load_from_checkpoint must be passed these objects.
            self.save_hyperparameters(ignore=["network", "hyperparameters"])
        self.num_classes = check_count(self, "num_classes", num_classes, 2)
        self.batch_size = check_count(self, "batch_size", batch_size, 1)
        self.outer_objective = check_choice(self, "outer_objective", outer_objective, ("validation", "training"))
        self.inner_start = check_choice(self, "inner_start", inner_start, ("restart", "last"))
        self.inner_seed = check_seed(self, "inner_seed", inner_seed)
        self.linearization_batches = check_linearization(self, linearization_batches)
        self.learning_rate = check_number(self, "learning_rate", learning_rate, 0.0, low_allowed=False)
        self.inner_curves_every = check_count(self, "inner_curves_every", inner_curves_every, 1)
        self.objective, self.sgd = set_up_inner_training(
            self, network, hyperparameters or [], loss, inner_learning_rate, inner_momentum
        )
        self.sgd.requires_grad_(learn_optimizer)
        self.trained = copy.deepcopy(self.objective.network)
        self.inner_losses: Mapping[int, Tensor] = {}
        # A Trainer's estimator replaces it.
        self.estimator: GradientEstimator = NeumannRBP(solver=Picard(tol=0.0))
        self.make_metrics()

    def train_network(self, training: Examples, on_step: OnStep | None = None, restart: bool = False) -> FixedPoint:
        """Trains the network with the current hyperparameters.

        Args:
            training: The training split.
            on_step: Called after each step with the number of steps so far, the loss before the step over this
                process's shard, and the state after it.
            restart: Whether to start from the initial parameters regardless of ``inner_start``.

        Returns:
            The last state: ``parameters`` and, with a momentum, ``velocities`` of the trained tensors by name,
            differentiable if gradients are enabled. Its status says whether the training converged, which it need not.

        Raises:
            UserError: If the split does not fit the hyperparameters, or the estimator's solver does not fit a training
                on minibatches.
        """
        for hyperparameter in self.objective.hyperparameters:
            hyperparameter.check(training)
        num_examples, solver = len(training["labels"]), self.estimator.solver
        check_solver(solver, self.batch_size, num_examples)
        batches = self.linearization_batches
        resume = self.inner_start == "last" and not restart
        seed = int(np.random.SeedSequence([self.inner_seed, self.global_step if resume else 0]).generate_state(1)[0])
        update = SGDUpdate(
            self.objective,
            self.sgd,
            training,
            self.batch_size,
            seed,
            minibatch_steps=None if batches == "fresh" else solver.max_steps - 1,
            linearization_size=batches * self.batch_size if isinstance(batches, int) else None,
            on_step=on_step,
        )
        network = self.trained if resume else self.objective.network
        return run_inner_training(self.estimator, update, network, seed, self.device)

    def training_step(self, batch: dict[str, Examples], batch_idx: int) -> Tensor:
        """Trains the network and returns the outer loss.

        Args:
            batch: The whole splits ``train`` and ``val``.
            batch_idx: Index of the batch.

        Raises:
            UserError: If the inner training or the outer loss is not finite, unless the policy is to skip the step.
        """
        training, outer = batch["train"], batch["val" if self.outer_objective == "validation" else "train"]
        check_examples(self, self.num_classes, training)
        with InnerProgress(self.trainer, self.estimator.solver.max_steps) as progress:
            fixed_point = self.train_network(training, progress)
        self.inner_losses = progress.losses
        shard, divisor = local_shard(outer)
        parameters: Mapping[str, Tensor] = fixed_point.state["parameters"]
        loss = self.objective.plain({name: replicated(leaf) for name, leaf in parameters.items()}, shard, divisor)
        if not check_finite(self.trainer, self.sgd, progress, fixed_point, loss):
            return loss  # its step is skipped
        with torch.no_grad():
            for name, parameter in parameters.items():
                self.trained.get_parameter(name).copy_(parameter)
        self.log("train/outer_loss", loss, prog_bar=True, sync_dist=True, batch_size=1)
        self.log("train/steps", float(fixed_point.steps), batch_size=1)
        self.log("train/residual", fixed_point.residual.max(), batch_size=1)
        self.log_dict(scalars_of("hyperparameters", self.hyperparameter_values()), batch_size=1)
        if (auroc := clean_auroc(self.objective.hyperparameters, training)) is not None:
            self.log("train/clean_auroc", auroc, prog_bar=True, batch_size=1)
        return loss

    def hyperparameter_values(self) -> dict[str, Tensor]:
        """Returns all hyperparameters by name, in natural units."""
        values = self.sgd.values()
        for hyperparameter in self.objective.hyperparameters:
            values.update(hyperparameter.values())
        return {name: value.detach() for name, value in values.items()}

    def configure_callbacks(self) -> list[Callback]:
        """Adds loss curves, histograms and norms of the hypergradients."""
        return [*super().configure_callbacks(), InnerCurves(self.inner_curves_every), HypergradientNorms()]

    def configure_optimizers(self) -> Optimizer:
        """Returns Adam on all hyperparameters."""
        return Adam([parameter for parameter in self.parameters() if parameter.requires_grad], lr=self.learning_rate)
