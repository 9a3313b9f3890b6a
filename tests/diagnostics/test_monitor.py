"""The monitor's metrics in a training, against dense matrices."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    CGRBP,
    TBPTT,
    ConvergenceError,
    EquilibriumMonitor,
    ExactAdjoint,
    FailurePolicy,
    GradientEstimator,
    NeumannRBP,
    Picard,
    UserError,
)
from tests.cells import estimators
from tests.diagnostics.monitored import SOLVER, Known, drives, fit_logged, monitor_metrics

EACH_ESTIMATOR = [pytest.param(estimator, id=type(estimator).__name__) for estimator in estimators(SOLVER)]
pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")


@pytest.mark.parametrize("estimator", EACH_ESTIMATOR)
def test_metrics_equal_those_of_the_dense_matrices(estimator: GradientEstimator, tmp_path: Path) -> None:
    module = Known()
    _, events = fit_logged(module, drives(), tmp_path, estimator, EquilibriumMonitor(100, 0))
    found, matrices = monitor_metrics(events), module.jacobians()
    norm = float(torch.linalg.matrix_norm(matrices, 2).max())
    assert found["spectral_radius"] == pytest.approx(float(torch.linalg.eigvals(matrices).abs().max()), rel=1e-3)
    assert found["spectral_radius_residual"] < 1e-2
    assert found["norm_lower"] == pytest.approx(norm, rel=1e-3)
    assert norm * (1 - 1e-6) <= found["norm_upper"] < 1
    assert found["converged"] == 1
    assert found["residual"] <= 1e-12
    assert 10 < found["steps"] < 500
    bound = found["adjoint_residual"] * (1 + found["norm_upper"]) / (1 - found["norm_upper"])
    assert found["error_bound"] == pytest.approx(bound, rel=1e-4)
    if isinstance(estimator, ExactAdjoint):
        assert found["adjoint_residual"] < 1e-12


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_adjoint_residual_is_the_true_one(steps: int, tmp_path: Path) -> None:
    module = Known()
    _, events = fit_logged(module, drives(3), tmp_path, NeumannRBP(steps, SOLVER), EquilibriumMonitor(1, 0))
    right = torch.linspace(0.5, 2, 6).double().expand(3, 6)
    term = torch.linalg.matrix_power(module.jacobians().mT, steps + 1) @ right[..., None]
    expected = float((term.squeeze(-1).norm(dim=-1) / right.norm(dim=-1)).max())
    assert monitor_metrics(events)["adjoint_residual"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_the_error_bound_bounds_the_error(batch_dims: int, tmp_path: Path) -> None:
    module = Known(batch_dims=batch_dims)
    _, events = fit_logged(module, drives(3), tmp_path, NeumannRBP(4, SOLVER), EquilibriumMonitor(1, 0))
    matrices, right = module.jacobians(), torch.linspace(0.5, 2, 6).double().expand(3, 6)[..., None]
    exact = torch.linalg.inv(torch.eye(6, dtype=torch.float64) - matrices.mT) @ right
    series = sum(torch.linalg.matrix_power(matrices.mT, power) for power in range(5)) @ right
    wrong, exact = ((vector if batch_dims else vector[None]).flatten(1) for vector in (series - exact, exact))
    error = float((wrong.norm(dim=1) / exact.norm(dim=1)).max())
    assert 0 < error <= monitor_metrics(events)["error_bound"] < 100 * error


def test_metrics_and_plots_are_logged_at_their_intervals(tmp_path: Path) -> None:
    monitor, options = EquilibriumMonitor(3, 6), {"max_epochs": 2, "log_every_n_steps": 5}
    _, events = fit_logged(Known(), drives(21), tmp_path, NeumannRBP(5, SOLVER), monitor, **options)
    assert [event.step for event in events.Scalars("monitor/spectral_radius")] == [0, 3, 6, 9, 12, 13]
    # Every six steps, at the last multiple of three before each quarter of the run, and at the end.
    assert [event.step for event in events.Images("monitor/forward_solve")] == [0, 3, 6, 9, 12, 13]


def test_accumulated_batches_are_observed_once(tmp_path: Path) -> None:
    monitor = EquilibriumMonitor(1, 0)
    _, events = fit_logged(Known(), drives(24), tmp_path, NeumannRBP(5, SOLVER), monitor, accumulate_grad_batches=4)
    assert [event.step for event in events.Scalars("monitor/spectral_radius")] == [0, 1]


def test_metrics_are_those_of_the_worst_sample_of_all_solves(tmp_path: Path) -> None:
    class Two(Known):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            one = self.estimator(lambda h: 0.3 * h + 1 + self.added, torch.zeros(6, dtype=torch.float64))
            rates, start = torch.tensor([[0.2], [0.9], [0.5]]).double(), torch.zeros(3, 6, dtype=torch.float64)
            return self.estimator(lambda h: rates * h + one.state, start, batch_dims=1).state.sum()

    _, events = fit_logged(Two(), drives(3), tmp_path, NeumannRBP(20, Picard(60, tol=1e-6)), EquilibriumMonitor(1, 0))
    found = monitor_metrics(events)
    assert found["spectral_radius"] == pytest.approx(0.9, rel=1e-3)
    assert found["converged"] == pytest.approx(2 / 3)
    assert found["steps"] >= 60


@pytest.mark.parametrize("kind", [TBPTT, NeumannRBP])
def test_solves_of_different_sizes_are_measured_separately(kind: type, tmp_path: Path) -> None:
    class Sizes(Known):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            total = torch.zeros(())
            for rate, size in ((0.9, 2), (0.1, 3)):
                start = torch.zeros(size, 4, dtype=torch.float64)
                update = lambda h, rate=rate: rate * h + self.added.mean() + 1  # noqa: E731
                total = total + self.estimator(update, start, batch_dims=1).state.sum()
            return total

    _, events = fit_logged(Sizes(), drives(3), tmp_path, kind(20, solver=SOLVER), EquilibriumMonitor(1, 1))
    found, residual = monitor_metrics(events), 0.9 ** (21 if kind is NeumannRBP else 19)  # TBPTT reports its last term
    assert found["adjoint_residual"] == pytest.approx(residual, rel=1e-5)
    bound = residual * (1 + found["norm_upper"]) / (1 - found["norm_upper"])
    assert found["error_bound"] == pytest.approx(bound, rel=1e-4)
    assert len(events.Images("monitor/forward_solve")) == 1  # that of the first solve


@pytest.mark.parametrize("estimator", [TBPTT(30, Picard(100, 1e-10)), NeumannRBP(40, Picard(100, 1e-10))])
def test_nested_solves_are_both_observed(estimator: GradientEstimator, tmp_path: Path) -> None:
    class Nested(Known):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            def outer(h: Tensor) -> Tensor:
                inner = self.estimator(lambda k: 0.6 * k + 0.1 * h + self.added, torch.zeros_like(h)).state
                return 0.5 * inner + 0.2  # J = 0.5 * 0.1 / 0.4

            return self.estimator(outer, torch.zeros(6, dtype=torch.float64)).state.sum()

    _, events = fit_logged(Nested(), drives(3), tmp_path, estimator, EquilibriumMonitor(1, 0))
    assert monitor_metrics(events)["spectral_radius"] == pytest.approx(0.6, rel=1e-6)
    assert monitor_metrics(events)["adjoint_residual"] < 1e-5


def test_a_spectral_radius_estimate_that_has_not_converged_is_not_a_failure(tmp_path: Path) -> None:
    class Dense(Known):
        def __init__(self) -> None:
            super().__init__()
            weight = torch.randn(300, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            self.weight = torch.nn.Parameter(0.95 * weight / torch.linalg.eigvals(weight).abs().max())

        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            return self.estimator(lambda h: self.weight @ h + 1, torch.zeros(300, dtype=torch.float64)).state.sum()

    callbacks = (CGRBP(50, solver=SOLVER), FailurePolicy(spectral_radius="raise"), EquilibriumMonitor(1, 0))
    _, events = fit_logged(Dense(), drives(3), tmp_path, *callbacks)
    assert monitor_metrics(events)["spectral_radius"] == pytest.approx(0.95, abs=0.05)
    assert monitor_metrics(events)["spectral_radius_residual"] > 0.05


class OnceDifferentiable(torch.autograd.Function):
    """Half of the input, without a second derivative and without forward mode."""

    @staticmethod
    def forward(ctx, inputs):
        return 0.5 * inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 0.5 * gradient


def test_an_update_without_products_with_j_has_no_norm(tmp_path: Path) -> None:
    class Opaque(Known):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            update = lambda h: OnceDifferentiable.apply(h) + self.added  # noqa: E731
            return self.estimator(update, torch.zeros_like(drive), 1).state.sum()

    _, events = fit_logged(Opaque(), drives(3), tmp_path, NeumannRBP(20, SOLVER), EquilibriumMonitor(1, 1))
    assert not {"norm_lower", "norm_upper", "error_bound"} & monitor_metrics(events).keys()
    assert monitor_metrics(events)["spectral_radius"] == pytest.approx(0.5)
    assert events.Images("monitor/adjoint_solve")


def test_metrics_are_callback_metrics(tmp_path: Path) -> None:
    trainer, _ = fit_logged(Known(), drives(), tmp_path, NeumannRBP(5, SOLVER), EquilibriumMonitor(1, 0))
    assert 0 < float(trainer.callback_metrics["monitor/spectral_radius"]) < 1


def test_infinite_bounds_are_logged(tmp_path: Path) -> None:
    estimator = NeumannRBP(5, Picard(30, 1e-9))
    _, events = fit_logged(Known(norm=4.0), drives(3), tmp_path, estimator, EquilibriumMonitor(1, 0))
    assert math.isinf(monitor_metrics(events)["error_bound"])
    assert math.isfinite(monitor_metrics(events)["spectral_radius"])


def test_a_growing_solve_with_tolerance_zero_has_its_spectral_radius(tmp_path: Path) -> None:
    class Growing(Known):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            rates = torch.tensor([[0.5], [1.2], [0.1]]).double()
            return self.estimator(lambda h: rates * h + self.added + 1, torch.zeros_like(drive), 1).state.sum()

    monitor = EquilibriumMonitor(1, 0)
    _, events = fit_logged(Growing(), drives(3), tmp_path, NeumannRBP(5, Picard(20, tol=0)), monitor)
    assert monitor_metrics(events)["spectral_radius"] == pytest.approx(1.2, rel=1e-6)
    strict = FailurePolicy(spectral_radius="raise")
    with pytest.raises(ConvergenceError):
        fit_logged(Growing(), drives(3), tmp_path, NeumannRBP(5, Picard(20, tol=0)), strict, monitor)
    # With a tolerance the growing sample is frozen and not counted.
    _, events = fit_logged(Growing(), drives(3), tmp_path, NeumannRBP(5, Picard(200, 1e-6)), strict, monitor)
    assert monitor_metrics(events)["spectral_radius"] == pytest.approx(0.5, rel=1e-6)
    assert math.isinf(monitor_metrics(events)["norm_upper"])


@pytest.mark.parametrize("arguments", [(0, 0), (10, -1), (10, 15)])
def test_arguments_are_checked_at_once(arguments: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="every_n_steps="):
        EquilibriumMonitor(*arguments)
