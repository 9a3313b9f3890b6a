"""A warning points to the user's line, once per line outside of a Trainer and once per epoch in one."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ConvergenceWarning,
    ExactAdjoint,
    FailurePolicy,
    FixedPointLayer,
    GradientEstimator,
    NeumannRBP,
    Picard,
)
from tests.training import GOOD, GROWING, Rates, convergence_warnings, fit_rates, make_trainer, neumann

SOLVER = Picard(20, tol=1e-6)
ESTIMATORS = [BPTT(SOLVER), TBPTT(2, SOLVER), RBP(3, solver=SOLVER), NeumannRBP(2, SOLVER), CGRBP(1, solver=SOLVER)]
ESTIMATORS += [AdaptiveNeumann(1e-3, 2, fallback="policy", solver=SOLVER), ExactAdjoint(solver=SOLVER)]
EACH_ESTIMATOR = [pytest.param(estimator, id=type(estimator).__name__) for estimator in ESTIMATORS]


def line_of(function: Callable[..., Any], marked: str) -> int:
    """The line of a function's source that ends in a comment."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [number for number, line in enumerate(lines) if line.rstrip().endswith(f"# {marked}")]
    return first + number


def solve(estimator: GradientEstimator, rate: float) -> Tensor:
    weight = torch.tensor([[1.0, 0.3], [0.0, 0.8]], requires_grad=True)
    return estimator(lambda h: rate * h @ weight + 1, torch.zeros(2)).state  # the solve


@pytest.mark.parametrize("estimator", EACH_ESTIMATOR)
def test_forward_and_backward_warnings_point_to_the_line_of_the_solve(estimator: GradientEstimator) -> None:
    def run() -> None:
        state = solve(estimator, 0.97)
        state.sum().backward()

    found = convergence_warnings(run)
    assert len(found) >= (1 if isinstance(estimator, ExactAdjoint) else 2)  # the exact adjoint causes no warning
    assert {(one.filename, one.lineno) for one in found} == {(__file__, line_of(solve, "the solve"))}


class Cell(torch.nn.Module):
    def forward(self, state: Tensor, inputs: Tensor) -> Tensor:
        return GROWING * state + inputs


class Layered(Rates):
    """A layer in a ``torch.nn.Sequential``, so that frames of PyTorch are in between."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(FixedPointLayer(Cell(), neumann()))

    def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
        return self.layer(self.weight[None]).sum()  # the layer

    validation_step = test_step = predict_step = training_step


def test_a_layer_s_warning_points_to_the_line_that_called_the_layer() -> None:
    expected = {(__file__, line_of(Layered, "the layer"))}
    module = Layered()
    outside = convergence_warnings(lambda: module.training_step(torch.zeros(1), 0))
    inside = convergence_warnings(lambda: fit_rates([GOOD], FailurePolicy(), module=Layered()))
    for found in (outside, inside):
        assert {(one.filename, one.lineno) for one in found} == expected


def test_a_loop_outside_of_a_trainer_warns_once_per_line_and_kind() -> None:
    def loop() -> None:
        estimator, weight = NeumannRBP(2, SOLVER), torch.tensor(0.97, requires_grad=True)
        for step in range(60):
            update = lambda h, scale=1 + 1e-5 * step: scale * weight * h + 1  # noqa: E731  other texts in each step
            first = estimator(update, torch.zeros(2)).state
            second = estimator(update, torch.zeros(2)).state
            (first + second).sum().backward()

    assert len(convergence_warnings(loop, "default")) == 2 * 2
    # The warning filters "always" and "error" apply to every warning.
    assert len(convergence_warnings(loop, "always")) == 2 * 2 * 60
    with pytest.raises(ConvergenceWarning):
        convergence_warnings(loop, "error")


def test_a_loop_under_a_policy_outside_of_a_trainer_warns_once_per_line() -> None:
    def loop() -> None:
        with FailurePolicy():
            for _ in range(20):
                solve(neumann(), GROWING)

    assert len(convergence_warnings(loop, "default")) == 1


class Everywhere(Rates):
    """Diverges in every stage, on two lines."""

    def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
        self.solve(rates, self.weight)
        state = self.estimator(lambda h: rates * h + self.weight, torch.zeros(3)).state
        return state.sum()

    validation_step = training_step


def test_a_trainer_warns_once_per_kind_epoch_and_stage() -> None:
    def run() -> None:
        data = DataLoader(torch.full((8,), GROWING))
        trainer = make_trainer(neumann(), FailurePolicy(), max_epochs=3, num_sanity_val_steps=0)
        trainer.fit(Everywhere(), data, data)

    assert len(convergence_warnings(run, "default")) == 3 * 2
