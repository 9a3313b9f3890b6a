"""Hyperparameter optimisation by hypergradients."""

import copy
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import binary_auroc
from tqdm import tqdm

from models.classes_file import write_classes
from models.hyperparameters import Examples, ExampleWeights, Hyperparameter
from models.inner_curves import InnerCurves
from models.inner_training import LOSSES, MLP, InnerObjective, MomentumSGD, SGDUpdate, share_of
from models.labels import check_labels
from rbp_lightning import Failure, FixedPoint, GradientEstimator, ImplicitEstimator, NeumannRBP, UserError
from rbp_lightning.errors import check_choice, check_count, check_number
from rbp_lightning.nn.replicated import replicated

MOST_INNER_LOSSES = 100
"""How many losses of an inner training are kept for its curve."""


class HyperparameterOptimizer(LightningModule):
    """Learns hyperparameters of a network's training by the gradient through that training (paper, section 4.3).

    The inner training, SGD with momentum, is a recurrent network whose state is (parameters, velocities) and whose
    weights are the hyperparameters. A training step of this module is a whole inner training, as many steps long as the
    estimator's solver takes, and one step of the outer optimiser on the hyperparameters.

    At the optimum of the inner training the parameters do not depend on learning rates and momenta. The hypergradient
    of those is that of how far the training gets within its steps: ``BPTT`` has it, ``TBPTT`` that of the last steps,
    and the implicit estimators, which take the last state for the optimum, return a biased one. Hyperparameters in the
    loss are what the implicit estimators are right for.

    Args:
        network: The network to train, a module that maps images to class scores; its parameters are those that each
            inner training starts from. ``None`` is ``MLP()``.
        hyperparameters: What is learned beside learning rates and momenta.
        num_classes: Number of classes, at least 2.
        batch_size: Examples in a minibatch of the inner training, of all processes together.
        inner_learning_rate: Learning rate of every tensor to start from, above 0.
        inner_momentum: Momentum of every tensor to start from, in (0, 1).
        learn_optimizer: Whether learning rates and momenta are learned as well.
        loss: ``"cross_entropy"``, or ``"squared_error"`` of the scores from the one-hot labels; inner and outer.
        outer_objective: ``"validation"``, or ``"training"`` as in the paper's released code: the split whose loss,
            without the hyperparameters in it, the trained network is judged by.
        inner_start: ``"restart"`` begins each inner training from the same parameters and takes the same minibatches;
            ``"last"`` goes on from the parameters that the last one reached, at rest, with new minibatches.
        inner_seed: Seed of the minibatches' order, and of what the network draws at random.
        linearization_batches: With an implicit estimator, how many minibatches the last step of the inner training is
            taken on, at which the adjoint equation is set up; ``None`` is the whole training split, as in the paper's
            released code. The others differentiate the steps as they are.
        learning_rate: Learning rate of Adam on the hyperparameters, which ``--optimizer`` takes the place of.
        inner_curves_every: Outer steps between two inner loss curves in TensorBoard.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> network = MLP([4, 2])
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
        linearization_batches: int | None = None,
        learning_rate: float = 0.05,
        inner_curves_every: int = 10,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`")
            self.save_hyperparameters()
        made = [self.hparams["network"], *(self.hparams["hyperparameters"] or [])]
        if any(isinstance(module, nn.Module) for module in made):
            # Made in Python: a checkpoint is loaded with these objects as further arguments.
            self.save_hyperparameters(ignore=["network", "hyperparameters"])
        self.num_classes = check_count(self, "num_classes", num_classes, 2)
        self.batch_size = check_count(self, "batch_size", batch_size, 1)
        self.outer_objective = check_choice(self, "outer_objective", outer_objective, ("validation", "training"))
        self.inner_start = check_choice(self, "inner_start", inner_start, ("restart", "last"))
        self.inner_seed = check_count(self, "inner_seed", inner_seed, 0)
        if linearization_batches is not None:
            check_count(self, "linearization_batches", linearization_batches, 1)
        self.linearization_batches = linearization_batches
        self.learning_rate = check_number(self, "learning_rate", learning_rate, 0.0, low_allowed=False)
        self.inner_curves_every = check_count(self, "inner_curves_every", inner_curves_every, 1)

        network = (MLP() if network is None else network).requires_grad_(False)
        for module in network.modules():
            if getattr(module, "track_running_stats", False):
                raise UserError(
                    f"HyperparameterOptimizer: the network has a {type(module).__name__} that tracks running "
                    "statistics, which are no part of the training's state: take GroupNorm or LayerNorm."
                )
        named = dict(network.named_parameters())
        if not named:
            raise UserError("HyperparameterOptimizer: the network has no parameters to train.")
        hyperparameters = hyperparameters or []
        for hyperparameter in hyperparameters:
            hyperparameter.bind(named)
        names = [name for hyperparameter in hyperparameters for name in hyperparameter.values()]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(
                f"HyperparameterOptimizer: {', '.join(sorted(twice))} occurs twice among the hyperparameters: keep one."
            )
        self.objective = InnerObjective(network, hyperparameters, check_choice(self, "loss", loss, LOSSES))
        self.sgd = MomentumSGD(
            list(named),
            check_number(self, "inner_learning_rate", inner_learning_rate, 0.0, low_allowed=False),
            check_number(self, "inner_momentum", inner_momentum, 0.0, low_allowed=False),
        ).requires_grad_(learn_optimizer)
        self.trained = copy.deepcopy(network)
        # A Trainer's estimator takes its place.
        self.estimator: GradientEstimator = NeumannRBP()
        metrics = MetricCollection({"accuracy": MulticlassAccuracy(num_classes, average="micro")})
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (logits) by the network that was trained last, of shape ``[batch, num_classes]``."""
        scores: Tensor = self.trained(images)
        return scores

    def train_network(
        self, training: Examples, on_step: Callable[[int, Tensor], None] | None = None, restart: bool = False
    ) -> FixedPoint:
        """Trains the network with the hyperparameters as they are.

        Args:
            training: The training split.
            on_step: Called after each step with the number of steps and the loss before it, of this process's share.
            restart: Whether to start from the first parameters whatever ``inner_start`` says.

        Returns:
            The last state, ``parameters`` and ``velocities`` by name, with a gradient where gradients are enabled. Its
            status says whether the training settled, which it need not.

        Raises:
            UserError: If the split does not fit the hyperparameters.
        """
        for hyperparameter in self.objective.hyperparameters:
            hyperparameter.check(training)
        linearization_size = None
        if isinstance(self.estimator, ImplicitEstimator):
            whole = len(training["labels"])
            batches = self.linearization_batches
            linearization_size = whole if batches is None else min(whole, batches * self.batch_size)
        go_on = self.inner_start == "last" and not restart
        seed = int(np.random.SeedSequence([self.inner_seed, self.global_step if go_on else 0]).generate_state(1)[0])
        update = SGDUpdate(self.objective, self.sgd, training, self.batch_size, seed, linearization_size, on_step)
        start = update.start(self.trained if go_on else self.objective.network)
        devices = [self.device] if self.device.type == "cuda" else []
        # A training that speeds up before it settles is no failure; one that is not finite is looked for below.
        with torch.random.fork_rng(devices), self.estimator.policy.ignoring(Failure.DIVERGED, Failure.NAN):
            torch.manual_seed(seed)  # of what the network draws
            fixed_point: FixedPoint = self.estimator(update, start)
        return fixed_point

    def training_step(self, batch: dict[str, Examples], batch_idx: int) -> Tensor:
        """Trains the network and returns its outer loss.

        Args:
            batch: The splits ``train`` and ``val``, whole.
            batch_idx: Number of the batch.

        Raises:
            UserError: If the inner training or the outer loss is not finite, unless the policy is to skip the step.
        """
        training, outer = batch["train"], batch["val" if self.outer_objective == "validation" else "train"]
        self._check(training)
        self.inner_losses: dict[int, Tensor] = {}
        with self._progress_bar() as bar:

            def on_step(step: int, loss: Tensor) -> None:
                if step > self.estimator.solver.max_steps:  # a monitor looks at the training once it is over
                    return
                bar.update()
                if (step - 1) % math.ceil(self.estimator.solver.max_steps / MOST_INNER_LOSSES) == 0:
                    self.inner_losses[step] = loss

            fixed_point = self.train_network(training, on_step)
        share, count = share_of(outer, slice(None))
        parameters = fixed_point.state["parameters"]
        loss = self.objective.plain({name: replicated(leaf) for name, leaf in parameters.items()}, share, count)
        if not self._everywhere(bool(loss.isfinite())):
            if self.estimator.policy.action(Failure.NAN) != "skip":
                self._find_failure(training)
            self.estimator.report(Failure.NAN, f"The outer loss is {float(loss)} in outer step {self.global_step + 1}")
            return loss
        with torch.no_grad():
            for name, parameter in self.trained.named_parameters():
                parameter.copy_(parameters[name])
        self.log("train/outer_loss", loss, prog_bar=True, sync_dist=True, batch_size=1)
        self.log("train/steps", float(fixed_point.steps), batch_size=1)
        self.log("train/residual", fixed_point.residual.max(), batch_size=1)
        self._log_values(training)
        return loss

    def _everywhere(self, decision: bool) -> bool:
        """Whether all processes, which look at shares of their own, decide so."""
        return self.trainer.strategy.reduce_boolean_decision(decision, all=True)

    def _find_failure(self, training: Examples) -> None:
        def refuse(step: int, loss: Tensor) -> None:
            if not self._everywhere(bool(loss.isfinite())):
                rates = self.sgd.log_learning_rates.exp()
                name = self.sgd.names[int(rates.argmax())]
                raise UserError(
                    f"The inner training has a loss of {float(loss)} at step {step} of "
                    f"{self.estimator.solver.max_steps}, in outer step {self.global_step + 1}, with learning rates of "
                    f"up to {float(rates.max()):.3g} ({name}): lower inner_learning_rate, or the outer learning rate "
                    "that raised it."
                )

        with torch.no_grad():
            self.train_network(training, refuse)
        raise UserError(
            "The outer loss is not finite after an inner training that was: lower inner_learning_rate, and look for "
            f"NaN in the {self.outer_objective} images."
        )

    def _log_values(self, training: Examples) -> None:
        for name, values in self.hyperparameter_values().items():
            if values.dim() == 0:
                self.log(f"hyperparameters/{name}", values, batch_size=1)
            else:
                for what in ("min", "mean", "max"):
                    self.log(f"hyperparameters/{name}/{what}", getattr(values, what)(), batch_size=1)
        for hyperparameter in self.objective.hyperparameters:
            if isinstance(hyperparameter, ExampleWeights) and "clean" in training and not training["clean"].all():
                found = binary_auroc(hyperparameter.weights().detach(), training["clean"].long())
                self.log("train/clean_auroc", found, prog_bar=True, batch_size=1)

    def hyperparameter_values(self) -> dict[str, Tensor]:
        """All hyperparameters by name, in natural units."""
        values = self.sgd.values()
        for hyperparameter in self.objective.hyperparameters:
            values.update(hyperparameter.values())
        return {name: value.detach() for name, value in values.items()}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs the norms of the hypergradients.

        Raises:
            UserError: If one of them is not finite.
        """
        norms = {name: leaf.grad.norm() for name, leaf in self.named_parameters() if leaf.grad is not None}
        # With a loss scale, overflow is what lowers it.
        if self.trainer.precision != "16-mixed" and (bad := [name for name in norms if not norms[name].isfinite()]):
            raise UserError(
                f"The hypergradient of {', '.join(bad)} is not finite in outer step {self.global_step + 1}: the "
                "adjoint grows from step to step where the inner training is far from an optimum; lower the "
                "estimator's steps or inner_learning_rate."
            )
        self.log_dict({f"hypergradient/{name}": norm for name, norm in norms.items()}, batch_size=1)

    def _evaluate(self, examples: Examples, metrics: MetricCollection, stage: str) -> None:
        self._check(examples)
        size = len(examples["labels"])
        loss = self.objective.plain(dict(self.trained.named_parameters()), examples, size)
        metrics.update(self(examples["images"]), examples["labels"])
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=True)
        self.log_dict(metrics, prog_bar=True, batch_size=size)
        if stage == "val":
            self.log("hp_metric", metrics["accuracy"], batch_size=size)  # what TensorBoard's HPARAMS compares runs by

    def validation_step(self, batch: Examples, batch_idx: int) -> None:
        """Classifies validation images by the network that was trained last."""
        self._evaluate(batch, self.val_metrics, "val")

    def test_step(self, batch: Examples, batch_idx: int) -> None:
        """Classifies test images by the network that was trained last."""
        self._evaluate(batch, self.test_metrics, "test")

    def predict_step(self, batch: Examples, batch_idx: int) -> Tensor:
        """Classifies images.

        Returns:
            Classes, int64, of shape ``[batch]``.
        """
        classes: Tensor = self(batch["images"]).argmax(1)
        self._predicted.append(torch.stack([batch["index"], classes]))
        return classes

    def on_predict_epoch_start(self) -> None:
        """Forgets an earlier prediction."""
        self._predicted: list[Tensor] = []

    def on_predict_epoch_end(self) -> None:
        """Leaves the classes of all images in ``classes.txt`` of the log folder, in their order."""
        own = torch.cat(self._predicted, 1).cpu()
        shares = [own] * self.trainer.world_size
        if self.trainer.world_size > 1:
            # The processes' shares differ in size.
            torch.distributed.all_gather_object(shares, own)
        index, classes = torch.cat(shares, 1)
        in_order = classes.new_empty(int(index.max()) + 1)
        in_order[index] = classes
        write_classes(self.trainer, in_order)

    def _check(self, examples: Examples) -> None:
        check_labels(self, self.num_classes, examples["labels"])
        try:
            outputs = self(examples["images"][:1]).shape[1:]
        except RuntimeError as error:
            raise UserError(
                f"HyperparameterOptimizer: the network does not take images of shape "
                f"{tuple(examples['images'].shape[1:])}: give it another first layer, such as torch.nn.Flatten. "
                f"({str(error).splitlines()[0]})"
            ) from error
        if outputs != (self.num_classes,):
            raise UserError(
                f"HyperparameterOptimizer: num_classes={self.num_classes}, but the network's outputs have the shape "
                f"{tuple(outputs)}: make them as many scores as there are classes."
            )

    @contextmanager
    def _progress_bar(self) -> Iterator[Any]:
        outer = self.trainer.progress_bar_callback
        shown = isinstance(outer, TQDMProgressBar) and outer.is_enabled
        steps = self.estimator.solver.max_steps
        with tqdm(total=steps, desc="inner steps", position=1, leave=False, disable=not shown, file=sys.stdout) as bar:
            yield bar

    def configure_callbacks(self) -> list[Callback]:
        """Adds to TensorBoard what is no scalar."""
        return [InnerCurves(self.inner_curves_every)]

    def setup(self, stage: str) -> None:
        """Refuses a training that has nothing to learn.

        Raises:
            UserError: If there is no hyperparameter to learn.
        """
        if stage == "fit" and not any(parameter.requires_grad for parameter in self.parameters()):
            raise UserError(
                "HyperparameterOptimizer: there is nothing to learn: set learn_optimizer to True, or give it "
                "hyperparameters."
            )

    def configure_optimizers(self) -> Optimizer:
        """Adam on all hyperparameters."""
        return Adam([parameter for parameter in self.parameters() if parameter.requires_grad], lr=self.learning_rate)
