"""The monitor under the real Trainer, its figures against dense matrices and its plots read back."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import ImagePatterns
from models import HopfieldMemory
from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    EquilibriumMonitor,
    ExactAdjoint,
    FailurePolicy,
    GradientEstimator,
    NeumannRBP,
    Picard,
    UserError,
)

SOLVER = Picard(500, tol=1e-12)
ESTIMATORS = [BPTT(SOLVER), TBPTT(20, SOLVER), RBP(20, solver=SOLVER), NeumannRBP(20, SOLVER), CGRBP(20, solver=SOLVER)]
ESTIMATORS += [AdaptiveNeumann(solver=SOLVER), ExactAdjoint(solver=SOLVER)]
BY_NAME = [pytest.param(estimator, id=type(estimator).__name__) for estimator in ESTIMATORS]
pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")


class Tanh(LightningModule):
    """tanh(h W + x) in float64, whose weights stay as they are."""

    def __init__(self, norm: float = 0.8, batch_dims: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        self.weight = torch.nn.Parameter(norm * weight / torch.linalg.matrix_norm(weight, 2))
        self.added = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
        self.batch_dims = batch_dims
        self.states: list[Tensor] = []

    def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
        start = torch.zeros_like(drive)
        result = self.estimator(lambda h: torch.tanh(h @ self.weight + drive + self.added), start, self.batch_dims)
        self.states.append(result.state.detach())
        return (result.state * torch.linspace(0.5, 2, 6)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def drives(count: int = 12) -> DataLoader:
    return DataLoader(
        torch.randn(count, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64), batch_size=3
    )


def fit(module: LightningModule, data: Any, folder: Path, *callbacks: Any, **arguments: Any) -> tuple[Trainer, Any]:
    trainer = Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="run"),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "enable_checkpointing": False, **arguments},
    )
    trainer.fit(module, data)
    unlimited = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    return trainer, EventAccumulator(trainer.logger.log_dir, size_guidance=unlimited).Reload()


def jacobians(module: Tanh) -> Tensor:
    """J of each sample of the first batch, at its fixed point."""
    slope = 1 - module.states[0] ** 2
    return slope[:, :, None] * module.weight.detach().T


@pytest.mark.parametrize("estimator", BY_NAME)
def test_figures_are_those_of_the_dense_matrices(estimator: GradientEstimator, tmp_path: Path) -> None:
    module = Tanh()
    _, events = fit(module, drives(), tmp_path, estimator, EquilibriumMonitor(every_n_steps=100, plot_every_n_steps=0))
    figures = {
        tag.removeprefix("monitor/"): events.Scalars(tag)[0].value
        for tag in events.Tags()["scalars"]
        if "monitor" in tag
    }
    matrices = jacobians(module)
    norm = float(torch.linalg.matrix_norm(matrices, 2).max())
    assert figures["spectral_radius"] == pytest.approx(float(torch.linalg.eigvals(matrices).abs().max()), rel=1e-3)
    assert figures["spectral_radius_residual"] < 1e-2
    assert figures["norm_lower"] == pytest.approx(norm, rel=1e-3)
    assert norm * (1 - 1e-6) <= figures["norm_upper"] < 1
    assert figures["converged"] == 1
    assert figures["residual"] <= 1e-12
    assert 10 < figures["steps"] < 500
    assert figures["error_bound"] == pytest.approx(
        figures["adjoint_residual"] * (1 + figures["norm_upper"]) / (1 - figures["norm_upper"]), rel=1e-4
    )
    if isinstance(estimator, ExactAdjoint):
        assert figures["adjoint_residual"] < 1e-12


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_the_adjoint_residual_is_measured(steps: int, tmp_path: Path) -> None:
    module = Tanh()
    _, events = fit(module, drives(3), tmp_path, NeumannRBP(steps, SOLVER), EquilibriumMonitor(1, 0))
    matrices, right = jacobians(module), torch.linspace(0.5, 2, 6).double().expand(3, 6)
    term = right[..., None]
    for _ in range(steps + 1):
        term = matrices.mT @ term
    expected = float((term.squeeze(-1).norm(dim=-1) / right.norm(dim=-1)).max())
    assert events.Scalars("monitor/adjoint_residual")[0].value == pytest.approx(expected, rel=1e-5)


def test_the_error_bound_bounds_the_error(tmp_path: Path) -> None:
    for batch_dims in (0, 1):
        module = Tanh(batch_dims=batch_dims)
        _, events = fit(module, drives(3), tmp_path / str(batch_dims), NeumannRBP(4, SOLVER), EquilibriumMonitor(1, 0))
        matrices, right = jacobians(module), torch.linspace(0.5, 2, 6).double().expand(3, 6)[..., None]
        exact = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - matrices.mT, right)
        term = total = right
        for _ in range(4):
            term = matrices.mT @ term
            total = total + term
        wrong, exact = ((vector if batch_dims else vector[None]).flatten(1) for vector in (total - exact, exact))
        error = float((wrong.norm(dim=1) / exact.norm(dim=1)).max())
        assert 0 < error <= events.Scalars("monitor/error_bound")[0].value < 100 * error


def test_it_looks_every_so_many_steps(tmp_path: Path) -> None:
    _, events = fit(
        Tanh(),
        drives(21),
        tmp_path,
        NeumannRBP(5, SOLVER),
        EquilibriumMonitor(3, 6),
        max_epochs=2,
        log_every_n_steps=50,
    )
    assert [event.step for event in events.Scalars("monitor/spectral_radius")] == [0, 3, 6, 9, 12]
    assert [event.step for event in events.Images("monitor/forward_residual")] == [0, 6, 12]


def test_accumulated_batches_are_looked_at_once(tmp_path: Path) -> None:
    _, events = fit(
        Tanh(), drives(24), tmp_path, NeumannRBP(5, SOLVER), EquilibriumMonitor(1, 0), accumulate_grad_batches=4
    )
    assert [event.step for event in events.Scalars("monitor/spectral_radius")] == [0, 1]


def test_plots(tmp_path: Path) -> None:
    for number, estimator in enumerate((NeumannRBP(20, SOLVER), BPTT(SOLVER))):
        _, events = fit(Tanh(), drives(), tmp_path / str(number), estimator, EquilibriumMonitor(1, 2))
        for name in ("forward_residual", "adjoint_residual", "spectrum"):
            images = events.Images(f"monitor/{name}")
            assert [image.step for image in images] == [0, 2]
            assert images[0].width > 300
        (histogram, _) = events.Histograms("monitor/steps_to_convergence")
        values = histogram.histogram_value
        assert values.num == 3  # one of each sample
        assert 10 < values.min <= values.max < 200


def test_the_worst_sample_and_the_worst_of_several_solves_are_shown(tmp_path: Path) -> None:
    class Two(Tanh):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            one = self.estimator(lambda h: 0.3 * h + 1 + self.added, torch.zeros(6, dtype=torch.float64))
            rates = torch.tensor([[0.2], [0.9], [0.5]], dtype=torch.float64)
            other = self.estimator(
                lambda h: rates * h + one.state, torch.zeros(3, 6, dtype=torch.float64), batch_dims=1
            )
            return other.state.sum()

    solver = Picard(60, tol=1e-6)
    _, events = fit(Two(), drives(3), tmp_path, NeumannRBP(20, solver), EquilibriumMonitor(1, 0))
    assert events.Scalars("monitor/spectral_radius")[0].value == pytest.approx(0.9, rel=1e-3)
    assert events.Scalars("monitor/converged")[0].value == pytest.approx(2 / 3)
    assert events.Scalars("monitor/steps")[0].value == 60


@pytest.mark.parametrize("kind", [TBPTT, NeumannRBP])
def test_solves_of_several_sizes_keep_their_own_figures(kind: type, tmp_path: Path) -> None:
    class Sizes(Tanh):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            total = torch.zeros(())
            for rate, size in ((0.9, 2), (0.1, 3)):
                start = torch.zeros(size, 4, dtype=torch.float64)
                update = lambda h, rate=rate: rate * h + self.added.mean() + 1  # noqa: E731
                total = total + self.estimator(update, start, batch_dims=1).state.sum()
            return total

    _, events = fit(Sizes(), drives(3), tmp_path, kind(20, solver=SOLVER), EquilibriumMonitor(1, 1))
    residual = 0.9 ** (21 if kind is NeumannRBP else 19)  # the last term's share, of TBPTT
    assert events.Scalars("monitor/adjoint_residual")[0].value == pytest.approx(residual, rel=1e-5)
    upper = events.Scalars("monitor/norm_upper")[0].value
    assert events.Scalars("monitor/error_bound")[0].value == pytest.approx(
        residual * (1 + upper) / (1 - upper), rel=1e-4
    )
    assert len(events.Images("monitor/forward_residual")) == 1  # of the first solve


def test_buffers_are_left_as_they_are(tmp_path: Path) -> None:
    class Counting(Tanh):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            def update(h: Tensor) -> Tensor:
                self.calls += 1
                return 0.5 * h + self.added

            return self.estimator(update, torch.zeros_like(drive), 1).state.sum()

    module = Counting()
    fit(module, drives(3), tmp_path, NeumannRBP(5, Picard(20, tol=0)), EquilibriumMonitor(1, 1))
    assert float(module.calls) == 20


def test_an_exception_ends_the_watch(tmp_path: Path) -> None:
    class Failing(Tanh):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            super().training_step(drive, batch_idx)
            raise RuntimeError("the module's own")

    estimator, monitor = NeumannRBP(5, SOLVER), EquilibriumMonitor(1, 0)
    with pytest.raises(RuntimeError, match="the module's own"):
        fit(Failing(), drives(3), tmp_path, estimator, monitor)
    assert not estimator.observers
    _, events = fit(Tanh(), drives(), tmp_path, estimator, monitor)
    assert len(events.Scalars("monitor/spectral_radius")) == 4


def test_an_estimate_that_has_not_settled_is_no_failure(tmp_path: Path) -> None:
    class Dense(Tanh):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            weight = torch.randn(300, 300, generator=generator, dtype=torch.float64)
            self.weight = torch.nn.Parameter(0.95 * weight / torch.linalg.eigvals(weight).abs().max())

        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            return self.estimator(lambda h: self.weight @ h + 1, torch.zeros(300, dtype=torch.float64)).state.sum()

    policy = FailurePolicy(spectral_radius="raise")
    _, events = fit(Dense(), drives(3), tmp_path, CGRBP(50, solver=SOLVER), policy, EquilibriumMonitor(1, 0))
    assert events.Scalars("monitor/spectral_radius")[0].value == pytest.approx(0.95, abs=0.05)
    assert events.Scalars("monitor/spectral_radius_residual")[0].value > 0.05


def test_it_changes_nothing_that_is_computed(tmp_path: Path) -> None:
    class Noisy(HopfieldMemory):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (1 + 0.1 * torch.rand(()))  # drawn after the solve

    found = []
    for callbacks in ([], [EquilibriumMonitor(1, 1)]):
        seed_everything(0, verbose=False)
        model = Noisy(num_hidden=8, weight_scale=0.1)
        data = ImagePatterns(train_draws=2, eval_draws=1)
        fit(model, data, tmp_path, RBP(20, solver=Picard(60, tol=1e-4)), *callbacks, max_epochs=3)
        found.append(model.cell.parametrizations.weight.original.detach())
    assert torch.equal(*found)


def test_what_the_update_draws_is_its_own(tmp_path: Path) -> None:
    class Dropping(Tanh):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            result = self.estimator(
                lambda h: 0.5 * torch.dropout(h, 0.1, True) + self.added + drive, torch.zeros_like(drive), 1
            )
            return (result.state * torch.rand(6)).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    found = []
    for callbacks in ([], [EquilibriumMonitor(1, 1)]):
        seed_everything(0, verbose=False)
        module = Dropping()
        fit(module, drives(), tmp_path, NeumannRBP(5, Picard(20, tol=0)), *callbacks)
        found.append(module.added.detach())
    assert torch.equal(*found)


class OnceDifferentiable(torch.autograd.Function):
    """Has neither a second derivative nor a forward-mode formula."""

    @staticmethod
    def forward(ctx, inputs):
        return 0.5 * inputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 0.5 * gradient


def test_an_update_without_products_with_j_has_no_norm(tmp_path: Path) -> None:
    class Opaque(Tanh):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            update = lambda h: OnceDifferentiable.apply(h) + self.added  # noqa: E731
            return self.estimator(update, torch.zeros_like(drive), 1).state.sum()

    _, events = fit(Opaque(), drives(3), tmp_path, NeumannRBP(20, SOLVER), EquilibriumMonitor(1, 1))
    tags = events.Tags()["scalars"]
    assert "monitor/norm_lower" not in tags
    assert "monitor/error_bound" not in tags
    assert events.Scalars("monitor/spectral_radius")[0].value == pytest.approx(0.5)
    assert events.Images("monitor/adjoint_residual")


def test_figures_can_be_stopped_on(tmp_path: Path) -> None:
    trainer, _ = fit(Tanh(), drives(), tmp_path, NeumannRBP(5, SOLVER), EquilibriumMonitor(1, 0))
    assert 0 < float(trainer.callback_metrics["monitor/spectral_radius"]) < 1
    assert not trainer.callbacks[0].observers  # nothing is watched any more


def test_a_large_state_has_no_spectrum(tmp_path: Path) -> None:
    class Wide(Tanh):
        def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
            return self.estimator(lambda h: 0.5 * h + self.added.sum(), torch.zeros(600)).state.sum().double()

    _, events = fit(Wide(), drives(3), tmp_path, NeumannRBP(20, Picard(100, 1e-5)), EquilibriumMonitor(1, 1))
    assert "monitor/spectrum" not in events.Tags()["images"]
    assert "monitor/forward_residual" in events.Tags()["images"]


def test_infinite_bounds_are_logged(tmp_path: Path) -> None:
    _, events = fit(Tanh(norm=4.0), drives(3), tmp_path, NeumannRBP(5, Picard(30, 1e-9)), EquilibriumMonitor(1, 0))
    assert math.isinf(events.Scalars("monitor/error_bound")[0].value)
    assert np.isfinite(events.Scalars("monitor/spectral_radius")[0].value)


@pytest.mark.parametrize("arguments", [(0, 0), (10, -1), (10, 15)])
def test_arguments_are_checked_at_once(arguments: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="every_n_steps="):
        EquilibriumMonitor(*arguments)


def test_it_needs_an_estimator(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no gradient estimator"):
        fit(Tanh(), drives(3), tmp_path, EquilibriumMonitor())
