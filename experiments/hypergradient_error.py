"""Errors of hypergradients whose true value is known."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.report import markdown, write_csv
from models.hyperparameters import Examples, WeightDecay
from models.inner_training import InnerObjective, MomentumSGD, SGDUpdate, TrainingState
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, GradientEstimator, NeumannRBP, Picard

PROBLEMS = {"ridge regression": "squared_error", "logistic regression": "cross_entropy"}


class Problem:
    """A linear classifier of digits, with one L2 coefficient for its weight and one for its bias.

    Args:
        loss: ``"squared_error"`` or ``"cross_entropy"``.
        size: Number of training examples, and of validation examples.
        momentum: Momentum of the inner training.
    """

    def __init__(self, loss: str, size: int = 200, momentum: float = 0.5) -> None:
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        images = torch.from_numpy(digits.images[order] / 16)
        labels = torch.from_numpy(digits.target[order])
        # Pooled to 4 x 4 pixels, so that the dense Hessian is small.
        images = nn.functional.avg_pool2d(images[:, None] - images.mean(0), 2)
        self.training, self.validation = (
            {"images": images[part], "labels": labels[part]} for part in (slice(0, size), slice(size, 2 * size))
        )
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(16, 10)).double()
        for parameter in self.network.parameters():
            nn.init.zeros_(parameter)
        parameters = dict(self.network.named_parameters())
        self.decay = WeightDecay(initial=0.02)
        self.decay.bind(parameters)
        self.objective = InnerObjective(self.network, [self.decay], loss).double()
        self.sgd = MomentumSGD(list(parameters), learning_rate=0.8, momentum=momentum).double()

    def _loss(self, parameters: dict[str, Tensor], examples: Examples, plain: bool = True) -> Tensor:
        loss = self.objective.plain if plain else self.objective
        return loss(parameters, examples, len(examples["labels"]))

    def hypergradient(
        self,
        estimator: GradientEstimator,
        batch_size: int | None = None,
        seed: int = 0,
        minibatch_steps: int | None = None,
        start: TrainingState | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hypergradient of the validation loss after the inner training, by an estimator.

        Args:
            estimator: The estimator.
            batch_size: Examples per minibatch; ``None`` for all.
            seed: Seed of the minibatches.
            minibatch_steps: Number of steps on minibatches, before those on all examples; ``None`` for all steps.
            start: The initial state of the inner training; ``None`` for zero.

        Returns:
            The derivatives by the logarithms of the L2 coefficients and of the learning rates, each of shape ``[2]``.
        """
        batch_size = batch_size or len(self.training["labels"])
        update = SGDUpdate(self.objective, self.sgd, self.training, batch_size, seed, minibatch_steps)
        state = estimator(update, start or update.start(self.network)).state
        loss = self._loss(state["parameters"], self.validation)
        decay, rate = torch.autograd.grad(loss, [self.decay.log_coefficients, self.sgd.log_learning_rates])
        return decay, rate

    def optimum(self, steps: int) -> TrainingState:
        """The state after an inner training on all examples.

        Args:
            steps: Number of steps.
        """
        update = SGDUpdate(self.objective, self.sgd, self.training, len(self.training["labels"]), 0)
        with torch.no_grad():
            state: TrainingState = BPTT(Picard(steps, tol=0))(update, update.start(self.network)).state
        return state

    def exact(self) -> Tensor:
        """The true hypergradient with respect to the logarithms of the L2 coefficients, of shape ``[2]``.

        With w* minimising f(w, c), it is -d/dc [v . df/dw] where v = (d2f/dw2)^-1 dL/dw. Newton's method finds w*.
        """
        names = [name for name, _ in self.network.named_parameters()]
        shapes = [parameter.shape for parameter in self.network.parameters()]

        def unflatten(point: Tensor) -> dict[str, Tensor]:
            parts = point.split([shape.numel() for shape in shapes])
            return {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}

        def inner(point: Tensor) -> Tensor:
            return self._loss(unflatten(point), self.training, plain=False)

        point = torch.cat([parameter.detach().flatten() for parameter in self.network.parameters()])
        for _ in range(8):  # six were enough for the problems here
            gradient = torch.func.grad(inner)(point)
            point = (point - torch.cholesky_solve(gradient[:, None], self._factor(inner, point))[:, 0]).detach()
        outer = torch.func.grad(lambda w: self._loss(unflatten(w), self.validation))(point)
        adjoint = torch.cholesky_solve(outer[:, None], self._factor(inner, point))[:, 0]
        point.requires_grad_()
        slope = torch.autograd.grad(inner(point), point, create_graph=True)[0]
        return -torch.autograd.grad(slope @ adjoint, self.decay.log_coefficients)[0]

    @staticmethod
    def _factor(inner: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
        return torch.linalg.cholesky(torch.func.hessian(inner)(point).detach())


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference, relative to the norm of the exact tensor."""
    return float((found - exact).norm() / exact.norm())


def errors(problem: Problem, steps: list[int], inner_steps: int) -> dict[str, list[float]]:
    """Relative errors of the L2 coefficients' hypergradient, by estimator, for each number of steps."""
    solver, exact = Picard(inner_steps, tol=0), problem.exact()
    found: dict[str, list[float]] = {}
    for name, make in {
        "RBP": lambda count: RBP(count, tol=0, solver=solver),
        "NeumannRBP": lambda count: NeumannRBP(count, solver=solver),
        "CGRBP": lambda count: CGRBP(count, tol=0, solver=solver),
        "TBPTT": lambda count: TBPTT(count, solver=solver),
    }.items():
        found[name] = [relative_error(problem.hypergradient(make(count))[0], exact) for count in steps]
    return found


def bias(problem: Problem, lengths: list[int]) -> list[dict[str, float]]:
    """Errors of NeumannRBP's hypergradients relative to BPTT's, and the norm of these, by number of inner steps.

    Args:
        problem: The problem.
        lengths: Numbers of inner steps.
    """
    rows = []
    for length in lengths:
        solver = Picard(length, tol=0)
        true = problem.hypergradient(BPTT(solver))
        found = problem.hypergradient(NeumannRBP(2000, solver=solver))
        decay, rate = (relative_error(one, other) for one, other in zip(found, true, strict=True))
        rows.append({"inner_steps": length, "decay": decay, "rate": rate, "rate_norm": float(true[1].norm())})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the bias as Markdown.

    Args:
        rows: Rows of the CSV file.
    """
    lines = [
        [row["problem"], row["inner_steps"], *(f"{float(row[name]):.1e}" for name in ("decay", "rate", "rate_norm"))]
        for row in rows
    ]
    return markdown(["problem", "inner steps", "L2 coefficients", "learning rates", "norm of the latter"], lines)


def hypergradient_error(
    steps: list[PositiveInt] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000],
    inner_steps: PositiveInt = 4000,
    lengths: list[PositiveInt] = [50, 200, 800],
    csv: Path = Path("logs/hypergradient_error.csv"),
) -> None:
    """Errors of hypergradients whose true value is known.

    Trains ridge regression (squared error) and logistic regression on scikit-learn's digits, in float64 and with full
    batches, to convergence, and differentiates the validation loss with respect to the L2 coefficients. The true
    hypergradient follows from the optimality condition with the dense Hessian. Plots the relative error of each
    estimator against its steps. Then compares NeumannRBP's hypergradients of L2 coefficients and learning rates with
    those of BPTT, for inner trainings of several lengths.

    Args:
        steps: Numbers of steps of the estimators.
        inner_steps: Steps of the inner training in the picture.
        lengths: Steps of the inner trainings in the table.
        csv: File of the table; the picture is written next to it.
    """
    rows: list[dict[str, Any]] = []
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, len(PROBLEMS))
    for panel, (name, loss) in zip(panels, PROBLEMS.items(), strict=True):
        problem = Problem(loss)
        for estimator, values in errors(problem, steps, inner_steps).items():
            panel.loglog(steps, values, "o--" if estimator == "TBPTT" else "o-", label=estimator)
            print(f"{name}, {estimator}: " + ", ".join(f"{value:.1e}" for value in values))
        panel.set_title(name)
        panel.set_xlabel("steps")
        panel.set_ylabel("relative error of the hypergradient")
        panel.legend()
        rows += [{"problem": name, **row} for row in bias(problem, lengths)]
    write_csv(csv, rows)
    figure.savefig(csv.with_suffix(".png"), dpi=120)
    print(f"\nNeumannRBP against BPTT:\n\n{table(rows)}")
