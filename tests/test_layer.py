"""FixedPointLayer as a module: solves, gradients, copies, state dicts and training."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rbp_lightning import (
    BPTT,
    CGRBP,
    ConvergenceWarning,
    ExactAdjoint,
    FixedPoint,
    FixedPointLayer,
    Implicit,
    NeumannRBP,
    Picard,
    SpectralNormBound,
    Status,
    UserError,
    WarmStart,
    ignoring,
    jacobian_penalty,
)
from tests.cells import Cell, dense, loss_of, relative_error
from tests.training import QUIET


class TanhCell(nn.Module):
    """tanh(h W + x + b), initialised with ||W|| = 0.8."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        with torch.no_grad():
            self.linear.weight.mul_(0.8 / torch.linalg.matrix_norm(self.linear.weight, 2))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(h) + x)


class PairCell(nn.Module):
    """A state of two leaves, and two inputs with shapes of their own."""

    def forward(self, state: dict[str, Tensor], x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"b": 0.5 * state["b"] + x.sum(1), "a": 0.3 * torch.tanh(state["a"] + state["b"][:, None]) + scale * x}


@pytest.fixture
def layer() -> FixedPointLayer:
    torch.manual_seed(0)
    return FixedPointLayer(TanhCell(), NeumannRBP(60, Picard(200, 1e-7)))


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


def test_the_output_is_the_fixed_point(layer: FixedPointLayer) -> None:
    x = inputs()
    state = layer(x)
    torch.testing.assert_close(layer.cell(state, x), state, rtol=1e-5, atol=1e-6)
    solved = layer.solve(x)
    assert isinstance(solved, FixedPoint)
    assert solved.status is Status.CONVERGED
    assert solved.sample_status.shape == (3,)
    assert torch.equal(solved.state, state)


@pytest.mark.parametrize("estimator", [BPTT, NeumannRBP, CGRBP, ExactAdjoint])
def test_gradients_equal_the_dense_ones(estimator: type) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {NeumannRBP: {"steps": 200}, CGRBP: {"steps": 60, "tol": 1e-13}}.get(estimator, {})
    layer = FixedPointLayer(TanhCell().double(), estimator(**options, solver=Picard(1000, 1e-14)))
    x = inputs().double().requires_grad_()
    tensors = [x, *layer.parameters()]
    exact = dense(Cell(lambda h: layer.cell(h, x), torch.zeros(3, 4, dtype=torch.float64), tensors, 1)).gradients
    found = torch.autograd.grad(loss_of(layer(x)), tensors)
    assert relative_error(list(found), exact) < 1e-9


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_layer_can_be_copied_and_pickled(layer: FixedPointLayer, again: Callable[[Any], Any]) -> None:
    x = inputs()
    layer(x).sum().backward()  # a used layer holds state from its solves
    other = again(layer)
    assert repr(other) == repr(layer)
    assert torch.equal(other(x), layer(x))
    with torch.no_grad():
        other.cell.linear.weight.zero_()
    assert not torch.equal(other(x), layer(x))


def test_the_state_dict_holds_the_cell_alone(layer: FixedPointLayer, tmp_path) -> None:
    assert list(layer.state_dict()) == ["cell.linear.weight", "cell.linear.bias"]
    torch.save(layer.state_dict(), tmp_path / "weights")
    torch.manual_seed(1)
    other = FixedPointLayer(TanhCell(), CGRBP(60, 1e-7, solver=Picard(200, 1e-7)))  # an estimator has no weights
    other.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    torch.testing.assert_close(other(inputs()), layer(inputs()))


def test_the_repr_shows_cell_estimator_and_solver(layer: FixedPointLayer) -> None:
    shown = repr(layer)
    assert "NeumannRBP(steps=60" in shown
    assert "Picard(max_steps=200" in shown
    assert "batch_dims=1" in shown
    assert "Linear(in_features=4" in shown


def test_device_dtype_and_training_mode_apply_to_the_cell(layer: FixedPointLayer) -> None:
    assert layer.double()(inputs().double()).dtype is torch.float64
    assert not layer.eval().cell.training
    assert layer.to("meta").cell.linear.weight.is_meta


def test_a_layer_trains_inside_a_sequential() -> None:
    torch.manual_seed(0)
    cell = TanhCell(8)
    nn.utils.parametrize.register_parametrization(cell.linear, "weight", SpectralNormBound(0.8))
    model = nn.Sequential(nn.Linear(4, 8), FixedPointLayer(cell, CGRBP()), nn.ReLU(inplace=True), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, losses = torch.randn(64, 4), []
    targets = x.prod(dim=1, keepdim=True)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_state_may_be_a_pytree_and_there_may_be_several_inputs() -> None:
    x, scale = inputs(), torch.tensor(0.5, requires_grad=True)
    layer = FixedPointLayer(PairCell(), CGRBP())
    start = {"a": torch.zeros(3, 4), "b": torch.zeros(3)}
    state = layer(x, scale, initial_state=start)
    assert set(state) == {"a", "b"}
    torch.testing.assert_close(state["b"].detach(), 2 * x.sum(1), rtol=1e-4, atol=1e-5)
    loss_of(state).backward()
    assert float(scale.grad.abs()) > 0


def test_max_steps_of_a_call_override_those_of_the_solver(layer: FixedPointLayer) -> None:
    layer.estimator = NeumannRBP(5, Picard(5, 1e-7))
    with pytest.warns(ConvergenceWarning, match="did not converge"), torch.no_grad():
        shallow = layer.solve(inputs())
    with torch.no_grad():
        deep = layer.solve(inputs(), max_steps=300)
    assert shallow.steps < deep.steps <= 300
    assert deep.converged


def test_the_default_estimator_is_implicit_and_a_given_state_is_the_start() -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(TanhCell())
    assert isinstance(layer.estimator, Implicit)
    state = layer.solve(inputs()).state
    again = layer.solve(inputs(), initial_state=state.detach())
    assert again.steps < 12
    torch.testing.assert_close(again.state, state, rtol=1e-4, atol=1e-5)


# --- initial state and number of steps


class FromInput(nn.Module):
    """A learned initial state."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x


def test_the_initial_state_can_be_learned() -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(TanhCell(), BPTT(Picard(3, tol=0)), initial_state=FromInput())
    x = inputs()
    h = 0.5 * x
    for _ in range(3):
        h = layer.cell(h, x)
    torch.testing.assert_close(layer(x), h)
    loss_of(layer(x)).backward()
    exact = torch.func.grad(lambda gain: loss_of(layer(x, initial_state=gain * x)))(torch.tensor(0.5))
    torch.testing.assert_close(layer.initial_state.gain.grad, exact.detach())


def test_warm_starts_are_kept_per_batch_position_and_in_the_state_dict(tmp_path) -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(TanhCell(), Implicit(solver=Picard(200, 1e-6, check_every=1)), warm_start=True)
    x = inputs()
    cold, warm = layer.solve(x).steps, layer.solve(x).steps
    assert warm <= 3 < cold
    swapped = layer.solve(x.flip(0))  # each sample starts from the state of another one
    assert warm < swapped.steps
    assert layer.solve(x[:2]).steps > 3  # another shape
    layer.solve(x)
    assert layer.eval().solve(x).steps == cold  # evaluations keep separate states
    torch.save(layer.state_dict(), tmp_path / "weights")
    other = FixedPointLayer(TanhCell(), layer.estimator, warm_start=True)
    other.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    assert other.solve(x).steps == layer.train().solve(x).steps <= 3
    layer.kept_solves.clear()
    assert layer.solve(x).steps == cold


def test_state_dicts_load_between_layers_with_and_without_warm_starts() -> None:
    torch.manual_seed(0)
    warm, cold = FixedPointLayer(TanhCell(), warm_start=True), FixedPointLayer(TanhCell())
    warm(inputs())
    nn.Sequential(cold).load_state_dict(nn.Sequential(warm).state_dict())
    assert torch.equal(cold.cell.linear.weight, warm.cell.linear.weight)
    again = FixedPointLayer(TanhCell(), warm_start=True)
    again.load_state_dict(cold.state_dict())
    assert torch.equal(again(inputs()), cold(inputs()))


def test_eval_max_steps_applies_to_evaluations_only() -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(TanhCell(), BPTT(Picard(4, tol=0)), eval_max_steps=40)
    assert layer.solve(inputs()).steps == 4
    assert layer.eval().solve(inputs()).steps == 40
    assert layer.solve(inputs(), max_steps=7).steps == 7


# --- dropout and penalties


def test_dropout_in_the_cell_keeps_one_mask_per_solve() -> None:
    torch.manual_seed(0)
    cell = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh())

    class Driven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = cell

        def forward(self, h: Tensor, x: Tensor) -> Tensor:
            return 0.5 * self.inner(h) + x

    layer = FixedPointLayer(Driven(), CGRBP(30, 1e-6, solver=Picard(100, 1e-6)))
    for _ in range(3):
        solved = layer.solve(inputs())  # an update that draws in each step would cause a warning
        solved.state.sum().backward()
        assert solved.converged
        assert solved.adjoint.converged
    assert not torch.equal(layer(inputs()), layer(inputs()))
    layer.eval()
    assert torch.equal(layer(inputs()), layer(inputs()))


def test_a_penalty_is_taken_at_the_solution_and_in_training_only() -> None:
    torch.manual_seed(0)
    layer = FixedPointLayer(TanhCell(), penalty=partial(jacobian_penalty, samples=64))
    x = inputs()
    solved = layer.solve(x)
    jacobian = torch.autograd.functional.jacobian(lambda h: layer.cell(h, x).reshape(-1), solved.state.detach())
    gram = jacobian.reshape(12, 12) @ jacobian.reshape(12, 12).T
    deviation = float(gram.norm()) * (2 / 64) ** 0.5 / 12  # of Hutchinson's estimate with 64 samples
    assert float(solved.penalty.detach()) == pytest.approx(float(gram.trace()) / 12, abs=4 * deviation)
    solved.penalty.backward()
    assert float(layer.cell.linear.weight.grad.norm()) > 0
    assert layer.eval().solve(x).penalty is None


# --- in a Trainer


class TwoLayers(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.free, self.fixed = FixedPointLayer(TanhCell()), FixedPointLayer(TanhCell(), NeumannRBP(3))

    def training_step(self, batch: Tensor) -> Tensor:
        return loss_of(self.fixed(self.free(batch)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_a_trainer_sets_the_estimator_of_layers_without_their_own() -> None:
    model, estimator = TwoLayers(), CGRBP(30, 1e-5)
    own = model.fixed.estimator
    with ignoring():
        Trainer(max_steps=1, callbacks=[estimator], **QUIET).fit(model, DataLoader(inputs(), batch_size=3))
    assert model.free.estimator is estimator
    assert model.fixed.estimator is own


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: FixedPointLayer(TanhCell(), order=0), "order=0"),
        (lambda: FixedPointLayer(TanhCell(), initial_state=torch.zeros(4)), r"initial_state=.* is not of type Module"),
        (lambda: FixedPointLayer(TanhCell(), warm_start=WarmStart()), r"warm_start=.* is not of type bool"),
        (lambda: FixedPointLayer(TanhCell(), eval_max_steps=0), "eval_max_steps=0"),
        (lambda: FixedPointLayer(TanhCell(), penalty=0.1), r"penalty=0.1 is not a function"),
        (lambda: FixedPointLayer(torch.tanh), r"cell=.* is not of type Module"),
        (lambda: FixedPointLayer(TanhCell), r"cell=.* is not of type Module"),
        (lambda: FixedPointLayer(TanhCell(), CGRBP), r"estimator=.* is not of type GradientEstimator"),
        (lambda: FixedPointLayer(TanhCell(), "CGRBP"), r"estimator='CGRBP' is not of type GradientEstimator"),
        (lambda: FixedPointLayer(TanhCell(), Picard()), r"estimator=.* is not of type GradientEstimator"),
        (lambda: FixedPointLayer(TanhCell(), batch_dims=-1), "batch_dims=-1"),
        (lambda: FixedPointLayer(TanhCell())(), "pass an initial_state"),
        (lambda: FixedPointLayer(TanhCell())({"x": inputs()}), "pass an initial_state"),
        (lambda: FixedPointLayer(nn.Linear(4, 3))(inputs(), initial_state=inputs()), "2 positional|takes"),
        (lambda: FixedPointLayer(TanhCell(), batch_dims=3)(inputs()), "batch_dims=3"),
        (lambda: FixedPointLayer(TanhCell()).solve(inputs(), max_steps=0), "max_steps=0"),
    ],
)
def test_invalid_arguments_are_refused(make: Callable[[], Any], what: str) -> None:
    with pytest.raises((UserError, TypeError), match=what):
        make()
