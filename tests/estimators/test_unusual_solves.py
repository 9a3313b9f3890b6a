"""Unusual solves: failing samples, observers, single steps and changing shapes."""

import math

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    TBPTT,
    FailurePolicy,
    JacobianOperator,
    NeumannRBP,
    Picard,
    SolveObserver,
    UserError,
    ignoring,
    observing,
)


class OnceDifferentiableSquare(torch.autograd.Function):
    """A square without a second derivative, so products with J use forward mode."""

    @staticmethod
    def forward(ctx, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        ctx.save_for_forward(h)
        return h.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient

    @staticmethod
    def jvp(ctx, tangent: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * tangent


def test_a_sample_is_frozen_in_forward_mode_too() -> None:
    rates = torch.tensor([[0.1], [3.0]], dtype=torch.float64)
    found = []
    for square in (OnceDifferentiableSquare.apply, torch.square):
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        start = torch.zeros(2, 1, dtype=torch.float64)
        with ignoring():
            fixed_point = CGRBP(solver=Picard(1000))(lambda h, f=square, w=weight: w * rates * f(h) + 1, start, 1)
            fixed_point.state.sum().backward()
        found.append(weight.grad)
    torch.testing.assert_close(found[0], found[1])
    assert bool(found[0].isfinite())


def test_observers_get_the_jacobian_of_a_solve_of_one_step() -> None:
    seen = []

    class Observer(SolveObserver):
        def on_solve_end(self, fixed_point, operator: JacobianOperator) -> None:
            seen.append(operator.vjp([torch.ones_like(fixed_point.state)])[0])

    weight = torch.tensor(0.5, requires_grad=True)
    with observing(Observer), ignoring():
        for estimator in (BPTT(Picard(1)), TBPTT(1, Picard(1)), NeumannRBP(solver=Picard(1))):
            estimator(lambda h: weight * h + 1, torch.zeros(2))
        BPTT()(lambda h: 0.5 * h + 1, torch.zeros(2))  # without parameters
    assert all(torch.equal(product, torch.full((2,), 0.5)) for product in seen)
    assert len(seen) == 4


@pytest.mark.parametrize(
    "estimator", [BPTT(), TBPTT(5, Picard()), NeumannRBP(solver=Picard())], ids=lambda one: type(one).__name__
)
def test_the_jacobian_for_observers_is_zero_for_a_frozen_sample(estimator) -> None:
    seen = []

    class Observer(SolveObserver):
        def on_solve_end(self, fixed_point, operator: JacobianOperator) -> None:
            seen.append(operator.vjp([torch.ones_like(fixed_point.state)])[0].flatten())

    rates = torch.tensor([[0.5], [2.0]], requires_grad=True)
    with observing(Observer), ignoring():
        estimator(lambda h: rates * h + 1, torch.zeros(2, 1), batch_dims=1)
    torch.testing.assert_close(seen[0], torch.tensor([0.5, 0.0]))


def test_a_sample_with_a_nan_input_has_a_nan_residual() -> None:
    inputs = torch.tensor([[0.0], [torch.nan]])
    with ignoring():
        fixed_point = NeumannRBP()(lambda h: 0.5 * h + inputs, torch.zeros(2, 1), batch_dims=1)
    assert fixed_point.residual.isnan().tolist() == [False, True]
    assert fixed_point.sample_steps.tolist() == [1, fixed_point.steps]


def test_an_update_that_changes_its_shape_later_is_refused() -> None:
    calls = []

    def update(h: Tensor) -> Tensor:
        calls.append(h)
        return (0.5 * h + 1)[: 3 if len(calls) < 3 else 1]

    with pytest.raises(UserError, match=r"\(3, 2\).*\(1, 2\)"):
        NeumannRBP()(update, torch.zeros(3, 2))


@pytest.mark.parametrize("estimator", [BPTT(), TBPTT(5), NeumannRBP(), CGRBP()], ids=lambda one: type(one).__name__)
def test_the_initial_state_may_come_from_inference_mode(estimator) -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    with torch.inference_mode():
        start = torch.zeros(3)
    with ignoring():
        estimator(lambda h: torch.tanh(weight * h + 1), start).state.sum().backward()
    h = 0.0
    for _ in range(100):
        h = math.tanh(0.5 * h + 1)
    slope = 1 - h**2
    assert float(weight.grad) == pytest.approx(3 * slope * h / (1 - 0.5 * slope), rel=1e-3)


def test_max_steps_below_the_taped_steps_are_allowed_without_gradients_only() -> None:
    with torch.no_grad(), ignoring():
        assert TBPTT(20)(lambda h: 0.5 * h + 1, torch.zeros(2), max_steps=5).steps >= 5
    with pytest.raises(UserError, match="max_steps=5"):
        TBPTT(20)(lambda h: 0.5 * h + 1, torch.zeros(2), max_steps=5)


def test_a_policy_stays_in_force_if_a_trainer_fails_in_setup(tmp_path) -> None:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel

    from rbp_lightning import ConvergenceError
    from tests.training import QUIET

    class Fails(Callback):
        def setup(self, trainer, pl_module, stage) -> None:
            raise ValueError

    with FailurePolicy(diverged="raise") as policy:
        with pytest.raises(ValueError):  # noqa: PT011
            Trainer(callbacks=[Fails(), NeumannRBP(), policy], max_epochs=1, **QUIET).fit(BoringModel())
        with pytest.raises(ConvergenceError):
            NeumannRBP(solver=Picard())(lambda h: 2 * h + 1, torch.zeros(2))
