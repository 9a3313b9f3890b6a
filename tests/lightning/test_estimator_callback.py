"""Estimators as callbacks of a Trainer: accumulation, clipping, half precision, compilation, warm starts."""

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    FailurePolicy,
    GradientEstimator,
    NeumannRBP,
    Picard,
    UserError,
    WarmStart,
)
from tests.training import Tanh, fit, make_trainer, vectors

SOLVER = Picard(60, tol=0)
ESTIMATORS = [BPTT(SOLVER), TBPTT(20, SOLVER), RBP(60, solver=SOLVER), NeumannRBP(20, SOLVER), CGRBP(20, solver=SOLVER)]
EACH_ESTIMATOR = pytest.mark.parametrize(
    "estimator", [pytest.param(estimator, id=type(estimator).__name__) for estimator in ESTIMATORS]
)


def tanh() -> Tanh:
    seed_everything(0, verbose=False)
    return Tanh()


@EACH_ESTIMATOR
def test_accumulation_equals_the_whole_batch(estimator: GradientEstimator) -> None:
    whole, halves = tanh(), tanh()
    double, two = {"precision": "64-true", "max_epochs": 3}, {"accumulate_grad_batches": 2}
    fit(whole, vectors(16, batch_size=8, dtype=torch.float64), estimator, **double)
    fit(halves, vectors(16, batch_size=4, dtype=torch.float64), estimator, **double, **two)
    tolerance = 1e-3 if isinstance(estimator, RBP) else 1e-8  # RBP's own tolerance
    torch.testing.assert_close(halves.linear.weight, whole.linear.weight, rtol=tolerance, atol=tolerance)


class GradientNorms(Callback):
    """Records the norm of the gradient before and after clipping."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self.before.append(float(torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).norm()))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.after.append(float(torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).norm()))


@EACH_ESTIMATOR
def test_clipping_bounds_the_gradient(estimator: GradientEstimator) -> None:
    free, clipped = GradientNorms(), GradientNorms()
    fit(tanh(), vectors(), estimator, free)
    assert free.before == free.after
    limit = min(free.before) / 2
    fit(tanh(), vectors(), estimator, clipped, gradient_clip_val=limit)
    assert clipped.after == pytest.approx([limit] * 2, rel=1e-4)


def loss_gradient(model: torch.nn.Module, parameter: Tensor) -> Tensor:
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(model(inputs).state.square().mean(), [parameter])
    return gradient


@EACH_ESTIMATOR
@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # tolerances for float32 are not met
def test_gradients_under_autocast_are_close_to_those_in_float32(estimator: GradientEstimator) -> None:
    module = tanh()
    module.estimator = estimator
    exact = loss_gradient(module, module.linear.weight)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss_gradient(module, module.linear.weight)
    assert rounded.dtype is torch.float32
    # A step is rounded by less than epsilon, which the adjoint equation amplifies by 1 / (1 - 0.5).
    assert float((rounded - exact).norm() / exact.norm()) < torch.finfo(torch.bfloat16).eps / (1 - 0.5)
    before = module.linear.weight.detach().clone()
    fit(module, vectors(), estimator, precision="bf16-mixed")
    assert bool(module.linear.weight.isfinite().all())
    assert not torch.equal(module.linear.weight, before)


@pytest.mark.parametrize(
    "estimator", [BPTT(Picard(8, tol=0)), NeumannRBP(8, Picard(8, tol=0))], ids=["tape", "adjoint"]
)
@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # so few steps compile fast
def test_compiled_modules_give_the_same_gradient_and_trained_weights(estimator: GradientEstimator) -> None:
    module = tanh()
    module.estimator = estimator
    exact = loss_gradient(module, module.linear.weight)
    compiled = loss_gradient(torch.compile(module, backend="aot_eager"), module.linear.weight)
    torch.testing.assert_close(compiled, exact)
    # In a Trainer, torch.compile(module) fails on self.log for any module; this compiles only the forward.
    plain, forward_compiled = tanh(), tanh()
    forward_compiled.compile(backend="aot_eager")
    for one in (plain, forward_compiled):
        fit(one, vectors(), estimator)
    torch.testing.assert_close(forward_compiled.linear.weight, plain.linear.weight)


def test_a_module_keeps_its_estimator_after_a_run_until_it_gets_another() -> None:
    module, first, second = tanh(), BPTT(SOLVER), NeumannRBP(5, SOLVER)
    fit(module, vectors(), first)
    assert module.estimator is first
    assert module(torch.rand(2, 4)).steps == 60
    fit(module, vectors(), second)
    assert module.estimator is second


def test_two_estimators_are_refused() -> None:
    with pytest.raises(UserError, match="BPTT and NeumannRBP"):
        fit(tanh(), vectors(), BPTT(), NeumannRBP())


def test_an_estimator_can_be_used_with_several_trainers_and_modules() -> None:
    estimator, copied = NeumannRBP(5, SOLVER), copy.deepcopy(NeumannRBP(5, SOLVER))
    first, second, third = tanh(), tanh(), tanh()
    fit(first, vectors(), estimator)
    fit(second, vectors(), estimator)
    fit(third, vectors(), copied)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert torch.equal(first.linear.weight, third.linear.weight)


class Warm(Tanh):
    """Warm starts each solve, also in validations, as in full-batch training."""

    def __init__(self) -> None:
        super().__init__()
        self.warm_start, self.steps = WarmStart(), []

    def forward(self, inputs: Tensor) -> Any:
        update = lambda h: torch.tanh(0.5 * self.linear(h) + inputs)  # noqa: E731
        return self.estimator(update, torch.zeros_like(inputs), batch_dims=1, warm_start=self.warm_start)

    def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        fixed_point = self(inputs)
        self.steps.append(fixed_point.steps)
        return fixed_point.state.square().mean()

    validation_step = test_step = training_step


@pytest.mark.parametrize("kind", [BPTT, TBPTT, RBP, NeumannRBP, CGRBP])
@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # BPTT and TBPTT truncate with warm starts
def test_a_warm_start_from_an_evaluation_can_be_used_in_training(kind: type) -> None:
    seed_everything(0, verbose=False)
    module, data = Warm(), vectors(4)
    before = module.linear.weight.detach().clone()
    trainer = make_trainer(kind(solver=Picard(200, 1e-5, check_every=1)), FailurePolicy(), max_epochs=2)
    trainer.validate(module, data, verbose=False)  # in inference mode
    trainer.test(module, data, verbose=False)
    trainer.fit(module, data, data)  # with a sanity check, and a validation after each epoch
    assert min(module.steps[1:]) < module.steps[0]
    assert not torch.equal(module.linear.weight, before)


class Deeper(Tanh):
    """Evaluates with more steps than it trains with."""

    def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        fixed_point = self(inputs)
        self.trained = fixed_point.steps
        return fixed_point.state.square().mean()

    def validation_step(self, inputs: Tensor, batch_idx: int) -> None:
        update = lambda h: torch.tanh(0.5 * self.linear(h) + inputs)  # noqa: E731
        self.evaluated = self.estimator(update, torch.zeros_like(inputs), batch_dims=1, max_steps=150)


@EACH_ESTIMATOR
def test_max_steps_of_a_call_override_those_of_the_solver(estimator: GradientEstimator) -> None:
    module = Deeper()
    trainer = make_trainer(estimator)
    trainer.fit(module, vectors(), vectors())
    assert module.trained in (60, 61)  # implicit estimators tape one more step
    assert module.evaluated.steps == 150
    update = lambda h: torch.tanh(0.5 * module.linear(h))  # noqa: E731
    for budget in (25, 59, 61, 200):
        assert estimator(update, torch.ones(2, 4), max_steps=budget).steps == budget
    assert estimator.solver.max_steps == 60
    for wrong in (0, -1, 2.5):
        with pytest.raises(UserError, match="max_steps="):
            estimator(update, torch.ones(2, 4), max_steps=wrong)
    if isinstance(estimator, TBPTT):
        with pytest.raises(UserError, match="steps=20 is more than max_steps=19"):
            estimator(update, torch.ones(2, 4), max_steps=19)


def test_the_error_of_a_failing_solve_says_how_often_f_was_applied() -> None:
    with FailurePolicy(not_converged="raise"), pytest.raises(RuntimeError, match="applied F 7 times"):
        NeumannRBP(solver=Picard(500, 1e-6))(lambda h: 0.9 * h + 1, torch.zeros(2), max_steps=6)
