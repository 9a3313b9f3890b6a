"""A monitor does not change a training."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn

from rbp_lightning import (
    CGRBP,
    RBP,
    TBPTT,
    EquilibriumMonitor,
    GradientEstimator,
    NeumannRBP,
    Picard,
)
from tests.diagnostics.monitored import Known, drives, fit_logged
from tests.training import fit, vectors

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
SOLVER = Picard(60, tol=1e-4)
ESTIMATORS = [TBPTT(4, SOLVER), RBP(20, solver=SOLVER), CGRBP(5, solver=SOLVER)]


class Drawing(LightningModule):
    """Draws random numbers in its update and after the solve, and counts evaluations of the update."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.linear, self.layer, self.weight = nn.Linear(4, 4), layer, nn.Parameter(torch.ones(4))
        self.register_buffer("calls", torch.zeros(()))

    def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        def update(h: Tensor) -> Tensor:
            self.calls += 1
            return 0.3 * torch.tanh(self.layer(self.linear(h) + inputs)) * self.weight

        state = self.estimator(update, torch.zeros_like(inputs)).state
        return (state * torch.rand(4)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class OnceDifferentiable(torch.autograd.Function):
    """Half of the input, without a second derivative but with forward mode."""

    @staticmethod
    def forward(ctx, inputs):
        return 0.5 * inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 0.5 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 0.5 * tangent


class HalfLayer(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return OnceDifferentiable.apply(inputs)


LAYERS = {
    "batch norm": lambda: nn.BatchNorm1d(4),
    "batch norm without momentum": lambda: nn.BatchNorm1d(4, momentum=None),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    "dropout": lambda: nn.Dropout(0.2),
    "no second derivative": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.2), HalfLayer()),
    "activation in place": lambda: nn.LeakyReLU(0.1, inplace=True),
}


# Not the power iteration of spectral norm with TBPTT: it rewrites a vector that several steps on one tape need.
PAIRS = [("batch norm", 0), ("dropout", 0), ("batch norm without momentum", 1), ("spectral norm", 1), ("dropout", 1)]
PAIRS += [("batch norm", 2), ("spectral norm", 2), ("no second derivative", 2), ("activation in place", 2)]
PLOTTED = ("dropout", "no second derivative")
"""Layers with which plots are drawn too, which takes seconds."""


@pytest.mark.parametrize(
    ("name", "estimator"), [pytest.param(name, ESTIMATORS[number], id=f"{name}-{number}") for name, number in PAIRS]
)
def test_a_monitor_changes_no_weights_buffers_and_random_numbers(
    estimator: GradientEstimator, name: str, tmp_path: Path
) -> None:
    found: list[Any] = []
    for monitors in ([], [EquilibriumMonitor(1, 2 if name in PLOTTED else 0)]):
        seed_everything(0, verbose=False)
        module = Drawing(LAYERS[name]())
        fit_logged(module, vectors(8), tmp_path, estimator, *monitors)
        found.append((module.state_dict(), torch.rand(3)))
    (state, drawn), (same_state, same_drawn) = found
    assert torch.equal(drawn, same_drawn)
    assert all(torch.equal(tensor, same_state[key]) for key, tensor in state.items())


def test_a_monitor_stops_observing_after_an_exception(tmp_path: Path) -> None:
    class Failing(Known):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            super().training_step(drive, batch_idx)
            raise RuntimeError("raised by the module")

    estimator, monitor = NeumannRBP(5, SOLVER), EquilibriumMonitor(1, 0)
    with pytest.raises(RuntimeError, match="raised by the module"):
        fit_logged(Failing(), drives(3), tmp_path, estimator, monitor)
    estimator(torch.cos, torch.zeros(2))  # must not be observed
    _, events = fit_logged(Known(), drives(), tmp_path, estimator, monitor)
    assert len(events.Scalars("monitor/spectral_radius")) == 4


class Copying(Known):
    """Copies its monitor while it observes."""

    def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
        (monitor,) = (one for one in self.trainer.callbacks if isinstance(one, EquilibriumMonitor))
        self.copied = pickle.loads(pickle.dumps(copy.deepcopy(monitor)))
        return super().training_step(drive, batch_idx)


def test_a_monitor_can_be_copied_while_it_observes() -> None:
    module = Copying()
    fit(module, drives(), NeumannRBP(5, SOLVER), EquilibriumMonitor(1, 0))
    trainer = fit(Known(), drives(), NeumannRBP(5, SOLVER), module.copied)
    assert "monitor/steps" in trainer.callback_metrics
