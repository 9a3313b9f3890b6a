"""What every gradient estimator does. A new estimator is a line in ``ESTIMATORS``."""

import copy
import gc
import inspect
import pickle
import threading
import traceback
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached, register_parametrization

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    SHINE,
    TBPTT,
    AdaptiveNeumann,
    Auto,
    Broyden,
    CheckpointedBPTT,
    ConvergenceError,
    ConvergenceWarning,
    ExactAdjoint,
    Failure,
    FailurePolicy,
    FixedPointSolver,
    GradientEstimator,
    Implicit,
    JacobianOperator,
    LinearSolution,
    LinearSolver,
    NeumannRBP,
    PhantomGradient,
    Picard,
    SolveObserver,
    SpectralNormBound,
    UserError,
    WarmStart,
    ignoring,
    observing,
)
from rbp_lightning.estimators import describe
from rbp_lightning.estimators.describe import as_call, from_description
from rbp_lightning.linear import Direct, NeumannSeries, Richardson
from tests.cells import Cell, cells, dense, loss_of, relative_error, tanh_cell
from tests.zoo import named

EXACT = Picard(max_steps=1000, tol=1e-15)


@dataclass
class Entry:
    """An estimator to test.

    Attributes:
        kind: The class.
        exact: An estimator with enough steps for the dense solution.
        short: An estimator with few steps, for cheap tests of everything else.
        implicit: Whether it tapes one step and replaces the gradient by an adjoint.
        solver: The class of its forward solver.
    """

    kind: type[GradientEstimator]
    exact: GradientEstimator
    short: GradientEstimator
    implicit: bool = True
    solver: type[FixedPointSolver] = Picard


ESTIMATORS = {
    "BPTT": Entry(BPTT, BPTT(EXACT), BPTT(), implicit=False),
    "CheckpointedBPTT": Entry(CheckpointedBPTT, CheckpointedBPTT(EXACT), CheckpointedBPTT(), implicit=False),
    "TBPTT": Entry(TBPTT, TBPTT(250, EXACT), TBPTT(5), implicit=False),  # 0.9^250 is 4e-12
    "RBP": Entry(RBP, RBP(1000, 1e-14, solver=EXACT), RBP(5)),
    "NeumannRBP": Entry(NeumannRBP, NeumannRBP(250, EXACT), NeumannRBP(5)),
    "PhantomGradient": Entry(PhantomGradient, PhantomGradient(250, 0.9, EXACT), PhantomGradient(8, 0.9)),
    "SHINE": Entry(SHINE, SHINE(1000, 1e-14, solver=Broyden(1000, 1e-15)), SHINE(9), solver=Broyden),
    "CGRBP": Entry(CGRBP, CGRBP(100, 1e-14, solver=EXACT), CGRBP(5)),
    "AdaptiveNeumann": Entry(AdaptiveNeumann, AdaptiveNeumann(1e-12, solver=EXACT), AdaptiveNeumann(1e-2)),
    "ExactAdjoint": Entry(ExactAdjoint, ExactAdjoint(solver=EXACT), ExactAdjoint()),
    "ExactAdjoint by GMRES": Entry(ExactAdjoint, ExactAdjoint(0, solver=EXACT), ExactAdjoint(0)),
    "Implicit(Direct)": Entry(Implicit, Implicit(Direct(), EXACT), Implicit(Direct())),
    "Implicit(Auto, Auto)": Entry(
        Implicit, Implicit(Auto(1000, 1e-14), Auto(1000, 1e-15)), Implicit(Auto(20, 1e-2)), solver=Auto
    ),
    "Implicit(Richardson)": Entry(Implicit, Implicit(Richardson(1000, 1e-14), EXACT), Implicit(Richardson(5, 1e-4))),
}

EVERY_ESTIMATOR = pytest.mark.parametrize("entry", ESTIMATORS.values(), ids=list(ESTIMATORS))
EVERY_IMPLICIT_ESTIMATOR = pytest.mark.parametrize(
    "entry",
    [entry for entry in ESTIMATORS.values() if entry.implicit],
    ids=[name for name, entry in ESTIMATORS.items() if entry.implicit],
)


def gradients(estimator: GradientEstimator, cell: Cell, scale: float = 1.0) -> list[Tensor]:
    state = estimator(cell.update, cell.start, batch_dims=cell.batch_dims).state
    return list(torch.autograd.grad(scale * loss_of(state), cell.tensors))


# --- the gradient


@EVERY_ESTIMATOR
@settings(max_examples=8, deadline=None)
@given(cell=cells())
def test_the_gradient_equals_the_dense_solution(entry: Entry, cell: Cell) -> None:
    with ignoring():
        assert relative_error(gradients(entry.exact, cell), dense(cell).gradients) < 1e-9


@settings(max_examples=8, deadline=None)
@given(cell=cells(), steps=st.integers(1, 12))
def test_neumann_rbp_tbptt_and_rbp_from_the_gradient_are_equal(cell: Cell, steps: int) -> None:
    fixed = Picard(max_steps=800, tol=0)
    with ignoring():
        neumann = gradients(NeumannRBP(steps, fixed), cell)
        for other in (
            TBPTT(steps + 1, fixed),
            RBP(steps, tol=0, start="gradient", solver=fixed),
            Implicit(NeumannSeries(steps), fixed),
        ):
            assert relative_error(gradients(other, cell), neumann) < 1e-12


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.floats(0.1, 0.95), steps=st.integers(0, 30))
def test_the_error_of_the_neumann_series_is_bounded(seed: int, norm: float, steps: int) -> None:
    cell = tanh_cell(seed, norm)
    # The gradient of an input added to the state is z.
    added = torch.zeros_like(cell.start, requires_grad=True)
    with ignoring():
        state = NeumannRBP(steps, EXACT)(lambda h: cell.update(h) + added, cell.start, batch_dims=1).state
        adjoint = torch.autograd.grad(loss_of(state), added)[0].reshape(-1)
    exact = dense(cell)
    identity = torch.eye(len(exact.jacobian), dtype=torch.float64)
    inverse_norm = torch.linalg.matrix_norm(torch.linalg.inv(identity - exact.jacobian), 2)
    jacobian_norm = torch.linalg.matrix_norm(exact.jacobian, 2)
    bound = inverse_norm * jacobian_norm ** (steps + 1) * exact.gradient.norm()
    assert (adjoint - exact.adjoint).norm() <= bound + 1e-12


@EVERY_ESTIMATOR
def test_gradcheck(entry: Entry) -> None:
    def fixed_point(weight: Tensor, drive: Tensor) -> Tensor:
        return entry.exact(lambda h: torch.tanh(h @ weight + drive), torch.zeros_like(drive), batch_dims=1).state

    weight, drive = (tensor.detach().requires_grad_() for tensor in tanh_cell(3, norm=0.5, batch=2, size=2).tensors)
    with ignoring():
        assert torch.autograd.gradcheck(fixed_point, (weight, drive), nondet_tol=1e-10)


@EVERY_ESTIMATOR
def test_gradients_reach_every_tensor_that_the_update_uses(entry: Entry) -> None:
    """Parameters of modules, inputs with an earlier graph, and tensors of another dtype."""
    torch.manual_seed(0)
    inner, encoder = nn.Linear(4, 4).double(), nn.Linear(3, 4).double()
    with torch.no_grad():
        inner.weight.mul_(0.6 / torch.linalg.matrix_norm(inner.weight, 2))
    inputs = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    gate = torch.tensor(0.9, requires_grad=True)  # float32
    tensors = [inner.weight, inner.bias, encoder.weight, encoder.bias, inputs, gate]

    def found(estimator: GradientEstimator) -> list[Tensor]:
        encoded = encoder(inputs).tanh()

        def update(h: Tensor) -> Tensor:
            return gate.double() * torch.tanh(inner(h) + encoded) + 0.01 * encoded.square()

        state = estimator(update, torch.zeros(2, 4, dtype=torch.float64), batch_dims=1).state
        return list(torch.autograd.grad(loss_of(state), tensors))

    with ignoring():
        reference = found(BPTT(EXACT))
        assert all(float(gradient.norm()) > 1e-3 for gradient in reference)
        for one, other in zip(found(entry.exact), reference, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@EVERY_ESTIMATOR
def test_an_update_may_return_a_captured_tensor(entry: Entry) -> None:
    captured = torch.tensor([2.0, 3.0], requires_grad=True)
    with ignoring():
        fixed_point = entry.short(lambda h: captured, torch.zeros(2))
        fixed_point.state.sum().backward()
    assert fixed_point.state.tolist() == [2.0, 3.0]
    assert captured.grad.tolist() == pytest.approx([1.0, 1.0], rel=1e-6)


@EVERY_ESTIMATOR
def test_a_state_can_be_used_twice_and_in_another_solve(entry: Entry) -> None:
    first, second = tanh_cell(0), tanh_cell(1)

    def found(estimator: GradientEstimator) -> list[Tensor]:
        state = estimator(first.update, first.start, batch_dims=1).state
        stacked = estimator(lambda h: second.update(h) + 0.1 * state, second.start, batch_dims=1).state
        loss = loss_of(stacked) + loss_of(state) + loss_of(state**2)
        return list(torch.autograd.grad(loss, first.tensors + second.tensors))

    with ignoring():
        assert relative_error(found(entry.exact), found(BPTT(EXACT))) < 1e-9


@EVERY_ESTIMATOR
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scaling_the_loss_scales_the_gradient(entry: Entry, scale: float) -> None:
    cell = tanh_cell(0, norm=0.9)
    with ignoring():
        plain, scaled = gradients(entry.short, cell), gradients(entry.short, cell, scale)
    assert relative_error([gradient / scale for gradient in scaled], plain) < 1e-9


@EVERY_ESTIMATOR
@pytest.mark.parametrize("scale", [1e-24, 1e24])
def test_float32_gradients_do_not_depend_on_the_scale_of_the_loss(entry: Entry, scale: float) -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    with ignoring():
        (scale * entry.short(lambda h: weight * h + 1, torch.zeros(3)).state).sum().backward()
    # Five steps at the rate 1/2 leave 2^-5; all other entries are more accurate.
    allowed = 1e-4 if entry.kind is ExactAdjoint else 2**-5 * 1.001
    assert float(weight.grad) / scale == pytest.approx(12, rel=allowed)


@EVERY_IMPLICIT_ESTIMATOR
@pytest.mark.parametrize("small", [0.0, 1e-36, 1e-40])
def test_a_sample_with_a_vanishing_gradient_does_not_change_others(entry: Entry, small: float) -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    with ignoring():
        state = entry.exact(lambda h: weight * h + 1, torch.zeros(2, 3), batch_dims=1).state
        state.backward(torch.tensor([[small] * 3, [1.0] * 3]))
    assert float(weight.grad) == pytest.approx(12, rel=1e-4)


@EVERY_ESTIMATOR
def test_samples_without_a_gradient_get_none(entry: Entry) -> None:
    cell = tanh_cell(0)
    with ignoring():
        state = entry.exact(cell.update, cell.start, batch_dims=1).state
        (found,) = torch.autograd.grad(state[0].sum(), cell.tensors[1:])
    assert float(found[0].norm()) > 0
    assert torch.equal(found[1:], torch.zeros_like(found[1:]))


@EVERY_ESTIMATOR
def test_nan_in_the_gradient_stays_in_its_sample_and_is_reported(entry: Entry) -> None:
    drive = torch.ones(3, 2, requires_grad=True)
    state = entry.exact(lambda h: 0.5 * h.flip(1) + drive, torch.zeros(3, 2), batch_dims=1).state
    for bad in (float("nan"), float("inf")):
        drive.grad = None
        with pytest.warns(ConvergenceWarning) as warning:
            state.backward(torch.tensor([[bad, 1.0], [1.0, 1.0], [0.0, 0.0]]), retain_graph=True)
        assert not bool(drive.grad[0].isfinite().all())
        torch.testing.assert_close(drive.grad[1:], torch.tensor([[2.0, 2.0], [0.0, 0.0]]), rtol=1e-3, atol=0)
        assert len(warning) == 1


# --- the state


@EVERY_ESTIMATOR
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_state_is_the_same_without_gradients(entry: Entry, mode: Any) -> None:
    cell = tanh_cell(0)
    estimator = copy.deepcopy(entry.short)
    estimator.solver = entry.solver(60, tol=0)
    with ignoring():
        taped = estimator(cell.update, cell.start, batch_dims=1)
        with mode():
            plain = estimator(cell.update, cell.start, batch_dims=1)
    assert not plain.state.requires_grad
    # Past convergence, the steps of an accelerated solver amplify rounding, which may depend on memory alignment.
    torch.testing.assert_close(plain.state, taped.state.detach(), rtol=0, atol=1e-15 if entry.solver is Broyden else 0)
    assert plain.steps == taped.steps == 60


@EVERY_ESTIMATOR
def test_the_state_may_be_changed_in_place(entry: Entry) -> None:
    heads = [
        nn.ReLU(inplace=True),
        nn.Dropout(0.1, inplace=True),
        lambda state: state.add_(1),
        lambda state: state.mul_(2),
    ]
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 8), torch.randn(4, 8)
    with ignoring():
        for head in heads:
            layer.zero_grad()
            state = entry.short(lambda h: torch.tanh(0.5 * layer(h) + inputs), torch.zeros(4, 8), batch_dims=1).state
            head(state).sum().backward()
            assert float(layer.weight.grad.norm()) > 0
            with torch.no_grad():  # also without a tape
                head(entry.short(lambda h: torch.tanh(0.5 * layer(h) + inputs), torch.zeros(4, 8), batch_dims=1).state)

    def gradient(in_place: bool) -> Tensor:
        layer.zero_grad()
        state = entry.short(lambda h: torch.tanh(0.5 * layer(h) + inputs), torch.zeros(4, 8), batch_dims=1).state
        (state.mul_(2).square() if in_place else (2 * state).square()).sum().backward()
        return layer.weight.grad.clone()

    with ignoring():
        torch.testing.assert_close(gradient(True), gradient(False))


@EVERY_ESTIMATOR
def test_only_bptt_reaches_the_initial_state(entry: Entry) -> None:
    start = torch.ones(3, requires_grad=True)
    weight = torch.tensor(0.5, requires_grad=True)
    with ignoring():
        state = entry.short(lambda h: weight * h + 1, start).state
        reached = torch.autograd.grad(state.sum(), start, allow_unused=True)[0]
    assert (reached is not None) == issubclass(entry.kind, BPTT)


@EVERY_ESTIMATOR
def test_a_state_may_have_leaves_of_two_precisions(entry: Entry) -> None:
    start = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.float64)}
    drive = torch.tensor(1.0, requires_grad=True)
    with ignoring():
        state = entry.exact(lambda h: {"b": 0.5 * h["b"] + drive.double(), "a": 0.5 * h["a"] + drive}, start).state
        (state["a"].sum() + state["b"].float().sum()).backward()
    assert float(drive.grad) == pytest.approx(8, rel=1e-5)


@EVERY_ESTIMATOR
def test_updates_that_cannot_be_iterated_are_refused(entry: Entry) -> None:
    for update in (lambda h: h.mul_(0.9).add_(1), lambda h: h.mul_(0.9) + 1, lambda h: h):
        with torch.no_grad(), pytest.raises(UserError, match=r"in place|the state itself"):
            entry.short(update, torch.zeros(3))
    with pytest.raises(UserError, match="close over"):
        entry.short(lambda s: {"h": 0.5 * s["h"] + s["x"], "x": s["x"]}, {"h": torch.zeros(2), "x": torch.ones(2)})


@EVERY_ESTIMATOR
@pytest.mark.parametrize("solver", ["picard", Picard])
def test_an_invalid_forward_solver_is_refused(entry: Entry, solver: Any) -> None:
    arguments = [Direct()] if entry.kind is Implicit else []
    with pytest.raises(UserError, match=f"{entry.kind.__name__}: .*is not of type FixedPointSolver"):
        entry.kind(*arguments, solver=solver)


def test_an_invalid_linear_solver_is_refused() -> None:
    for wrong in ("direct", Direct, Picard):
        with pytest.raises(UserError, match="is not a solver"):
            Implicit(wrong)


# --- solves do not affect each other


@EVERY_ESTIMATOR
def test_an_estimator_can_be_copied_pickled_and_described(entry: Entry) -> None:
    """And a solve does not change it."""
    cell = tanh_cell(0)
    before = {name: (value, dict(getattr(value, "__dict__", {}))) for name, value in vars(entry.short).items()}
    with ignoring():
        expected = gradients(entry.short, cell)
        for other in (
            copy.deepcopy(entry.short),
            pickle.loads(pickle.dumps(entry.short)),
            from_description(describe(entry.short), GradientEstimator),
        ):
            assert repr(other) == repr(entry.short)
            assert describe(other) == describe(entry.short)
            for one, another in zip(gradients(other, cell), expected, strict=True):
                assert torch.equal(one, another)
    assert entry.kind.__name__ in repr(entry.short)
    assert f"{type(entry.short.solver).__name__}(max_steps=100" in repr(entry.short)
    assert vars(entry.short).keys() == before.keys()
    for name, value in vars(entry.short).items():
        assert value is before[name][0]
        assert dict(getattr(value, "__dict__", {})) == before[name][1]


@EVERY_ESTIMATOR
def test_two_solves_before_one_backward(entry: Entry) -> None:
    first, second = tanh_cell(0), tanh_cell(1, norm=0.5)
    with ignoring():
        apart = [gradients(entry.short, cell) for cell in (first, second)]
        solved = [entry.short(cell.update, cell.start, batch_dims=1) for cell in (first, second)]
        assert [fixed_point.adjoint for fixed_point in solved] == [None, None]
        found = torch.autograd.grad(loss_of(solved[0].state) + loss_of(solved[1].state), first.tensors + second.tensors)
    for one, other in zip(found, apart[0] + apart[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    adjoints = [fixed_point.adjoint for fixed_point in solved]
    assert all(isinstance(adjoint, LinearSolution) for adjoint in adjoints)
    assert float((adjoints[0].residual - adjoints[1].residual).abs().max()) > 0


@EVERY_ESTIMATOR
def test_repeated_backward_passes_give_the_same_gradient(entry: Entry) -> None:
    cell = tanh_cell(0)
    seen = []

    class Watch(SolveObserver):
        def on_adjoint(self, solution: LinearSolution) -> None:
            seen.append((solution.steps, solution.products, solution.residual.tolist()))

    with ignoring(), observing(Watch):
        fixed_point = entry.short(cell.update, cell.start, batch_dims=1)
        loss = loss_of(fixed_point.state)
        found, reports = [], []
        for keep in (True, True, False):
            found.append(torch.autograd.grad(loss, cell.tensors, retain_graph=keep))
            reports.append((fixed_point.adjoint.steps, fixed_point.adjoint.products))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
    assert reports[1:] == reports[:1] * 2
    assert seen[1:] == seen[:1] * 2


@EVERY_ESTIMATOR
@pytest.mark.parametrize("nested", [False, True])
def test_observers_see_every_solve_once(entry: Entry, nested: bool) -> None:
    weight = torch.tensor(0.3, requires_grad=True)
    observed: list[Counter[str]] = []

    class Watch(SolveObserver):
        def __init__(self) -> None:
            self.events: Counter[str] = Counter()
            observed.append(self.events)

        def on_solve_end(self, fixed_point: Any, operator: JacobianOperator) -> None:
            self.events["solve"] += 1

        def on_gradient(self, gradient: Any) -> None:
            self.events["gradient"] += 1

        def on_adjoint(self, solution: LinearSolution) -> None:
            self.events["adjoint"] += 1

    def update(h: Tensor) -> Tensor:
        inner = entry.short(lambda z: 0.2 * z + weight, torch.zeros(2)).state if nested else weight
        return 0.5 * h + 0.1 * inner

    with ignoring():
        with observing(Watch):
            fixed_point = entry.short(update, torch.zeros(2))
        fixed_point.state.sum().backward()
    outer = observed[0]
    assert outer == Counter(solve=1, gradient=1, adjoint=1)
    if nested:
        assert len(observed) > 1
        # Taped inner solves see each backward pass through them, the others see none.
        assert all(events["solve"] == 1 for events in observed)
        assert all(events["gradient"] == events["adjoint"] for events in observed)


class TwoTerms(LinearSolver):
    """z = g + J^T g with its residual, which is far from the solution."""

    def solve(self, operator, gradient, start=None):
        vector = [one + other for one, other in zip(gradient, operator.vjp(gradient), strict=True)]
        return LinearSolution(vector, 1, 1, operator.adjoint_residual(gradient, vector))


@pytest.mark.parametrize("nested", [False, True])
def test_a_nested_solve_does_not_hide_the_outer_one_s_error(nested: bool) -> None:
    weight = torch.tensor(0.95, requires_grad=True)
    estimator = Implicit(TwoTerms(), Picard(2000, 1e-7))

    def update(h: Tensor) -> Tensor:
        inner = estimator(lambda z: 0.01 * z + 0.0 * h + 1, torch.zeros(2)).state if nested else torch.ones(2)
        return weight * h + 0.1 * inner

    fixed_point = estimator(update, torch.zeros(2))
    with pytest.warns(ConvergenceWarning, match="Implicit: .*adjoint solve took 1 steps"):
        fixed_point.state.sum().backward()
    assert float(fixed_point.adjoint.residual) == pytest.approx(0.95**2, rel=1e-3)


@EVERY_ESTIMATOR
def test_nested_solves_get_the_gradient_of_the_joint_problem(entry: Entry) -> None:
    outer, inner = tanh_cell(0, norm=0.5, batch=1, size=3), tanh_cell(1, norm=0.4, batch=1, size=3)

    def found(estimator: GradientEstimator) -> tuple[list[Tensor], Any]:
        def update(h: Tensor) -> Tensor:
            return outer.update(0.5 * h + 0.2 * estimator(lambda z: inner.update(z) + 0.1 * h, inner.start, 1).state)

        fixed_point = estimator(update, outer.start, batch_dims=1)
        return list(torch.autograd.grad(loss_of(fixed_point.state), outer.tensors + inner.tensors)), fixed_point

    if entry.kind in (TBPTT, NeumannRBP, PhantomGradient):  # nesting 250 steps in each of 250 would be slow
        solver = Picard(40, 1e-12)
        few = {"damping": 1.0} if entry.kind is PhantomGradient else {}
        estimator = entry.kind(30, solver=solver, **few)
    else:
        estimator = copy.deepcopy(entry.exact)
        estimator.solver = entry.solver(40, 1e-12)
    with ignoring():
        reference, _ = found(BPTT(Picard(40, 1e-12)))
        gradient, fixed_point = found(estimator)
    assert relative_error(gradient, reference) < 1e-7
    assert fixed_point.adjoint is not None


@EVERY_ESTIMATOR
def test_threads_may_share_an_estimator(entry: Entry) -> None:
    jobs = [tanh_cell(seed, norm=0.3 + 0.1 * seed) for seed in range(4)]
    with ignoring():
        expected = [gradients(entry.short, cell) for cell in jobs]
    found: dict[int, list[list[Tensor]]] = {}

    def work(index: int) -> None:
        with ignoring():
            found[index] = [gradients(entry.short, jobs[index]) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, reference in enumerate(expected):
        for again in found[index]:
            assert all(torch.equal(one, other) for one, other in zip(again, reference, strict=True))


# --- warm starts


@EVERY_ESTIMATOR
def test_warm_starts_do_not_change_the_gradient(entry: Entry) -> None:
    if issubclass(entry.kind, BPTT):
        pytest.skip("its gradient is that of the steps taken")
    cell, warm_start = tanh_cell(0), WarmStart()
    exact = dense(cell).gradients
    steps = []
    with ignoring():
        for _ in range(3):
            fixed_point = entry.exact(cell.update, cell.start, batch_dims=1, warm_start=warm_start)
            found = list(torch.autograd.grad(loss_of(fixed_point.state), cell.tensors))
            assert relative_error(found, exact) < 1e-9
            steps.append(fixed_point.steps)
    assert steps[0] > (50 if entry.solver is Picard else 15)
    if entry.kind is not TBPTT:  # which always tapes 250 steps
        assert max(steps[1:]) <= 12


@EVERY_ESTIMATOR
def test_a_warm_start_from_inference_mode_can_be_used_in_training(entry: Entry) -> None:
    cell, warm_start = tanh_cell(0), WarmStart()
    with ignoring():
        expected = gradients(entry.short, cell)
        with torch.inference_mode():
            entry.short(cell.update, cell.start, batch_dims=1, warm_start=warm_start)
        state = entry.short(cell.update, cell.start, batch_dims=1, warm_start=warm_start).state
        found = torch.autograd.grad(loss_of(state), cell.tensors)
        with torch.inference_mode():  # and the reverse
            entry.short(cell.update, cell.start, batch_dims=1, warm_start=warm_start)
    # The forward tolerance of 1e-6, amplified by 1 / (1 - 0.8). BPTT's gradient is that of the steps taken; SHINE's
    # inverse is made from them, and refined.
    if not issubclass(entry.kind, BPTT):
        assert relative_error(list(found), expected) < (0.05 if entry.kind is SHINE else 5e-6)


# --- modules in an update


@EVERY_ESTIMATOR
def test_a_cached_parametrization_gets_its_gradient(entry: Entry) -> None:
    """The cache is first filled in the untaped solve."""
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))

    def found(cache: bool) -> list[Tensor]:
        torch.manual_seed(0)
        layer = register_parametrization(nn.Linear(6, 6), "weight", SpectralNormBound(0.8))

        def run() -> None:
            entry.short(
                lambda h: torch.tanh(layer(h) + inputs), torch.zeros(4, 6), batch_dims=1
            ).state.square().sum().backward()

        if cache:
            with cached():
                run()
        else:
            run()
        return [layer.parametrizations.weight.original.grad, layer.bias.grad]

    with ignoring():
        expected = found(False)
        assert relative_error(found(True), expected) < 1e-5
    assert float(expected[0].norm()) > 0


def batch_norm_cell() -> tuple[Callable[[Tensor], Tensor], Tensor, list[Tensor]]:
    torch.manual_seed(0)
    linear, inputs = nn.Linear(6, 6).double(), torch.randn(8, 6, dtype=torch.float64)
    norm = nn.BatchNorm1d(6, track_running_stats=False).double()
    tensors = [*linear.parameters(), *norm.parameters()]
    return lambda h: 0.6 * torch.tanh(norm(linear(h) + inputs)), torch.zeros(8, 6, dtype=torch.float64), tensors


@EVERY_IMPLICIT_ESTIMATOR
@pytest.mark.parametrize("weight", [1.0, 1e-3])
def test_coupled_samples_get_the_right_gradient_and_are_reported(entry: Entry, weight: float) -> None:
    """Batch normalisation couples the samples; the loss depends on one of them only."""
    update, start, tensors = batch_norm_cell()

    def loss(state: Tensor) -> Tensor:
        return weight * state[0].square().sum()

    with ignoring():
        state = BPTT(EXACT)(update, start).state
        exact = torch.autograd.grad(loss(state), tensors)

    def found() -> list[Tensor]:
        # Spot checks are per line, so each estimator solves on a line of its own.
        namespace: dict[str, Any] = {"estimator": entry.exact, "update": update, "start": start}
        exec(
            compile("state = estimator(update, start, 1).state", f"{as_call(entry.exact)} {weight}", "exec"), namespace
        )
        return list(torch.autograd.grad(loss(namespace["state"]), tensors))

    policy = FailurePolicy(diverged="ignore", not_converged="ignore", adjoint="ignore", coupled_samples="warn")
    with policy, pytest.warns(ConvergenceWarning, match="depends on the states of others"):
        assert relative_error(found(), list(exact)) < 1e-8
    with ignoring():
        for _ in range(3):
            assert relative_error(found(), list(exact)) < 1e-8


def test_coupled_samples_can_be_an_error() -> None:
    update, start, _ = batch_norm_cell()
    with FailurePolicy(coupled_samples="raise"):
        state = NeumannRBP(60, Picard(2000, 1e-9))(update, start, batch_dims=1).state
    with pytest.raises(ConvergenceError, match="pass batch_dims=0"):
        state.sum().backward()


@EVERY_IMPLICIT_ESTIMATOR
def test_independent_samples_are_not_reported_as_coupled(entry: Entry) -> None:
    cell = tanh_cell(0, batch=4)
    policy = FailurePolicy(diverged="ignore", not_converged="ignore", adjoint="ignore", coupled_samples="raise")
    with policy:
        gradients(entry.short, cell)


# --- modes of differentiation


@EVERY_ESTIMATOR
def test_functional_jacobian_gives_the_rows_of_bptt(entry: Entry) -> None:
    drive = torch.ones(4, dtype=torch.float64)

    def jacobian(estimator: GradientEstimator) -> Tensor:
        return torch.autograd.functional.jacobian(
            lambda w: estimator(lambda h: torch.tanh(h @ w + drive), torch.zeros_like(drive)).state,
            0.1 * torch.ones(4, 4, dtype=torch.float64),
        )

    with ignoring():
        assert relative_error([jacobian(entry.exact)], [jacobian(BPTT(EXACT))]) < 1e-9


@EVERY_ESTIMATOR
def test_create_graph_is_refused(entry: Entry) -> None:
    cell = tanh_cell(0)
    with ignoring():
        state = entry.short(cell.update, cell.start, batch_dims=1).state
        with pytest.raises(NotImplementedError, match="create_graph"):
            torch.autograd.grad(loss_of(state), cell.tensors[0], create_graph=True)


class OnceDifferentiableTanh(torch.autograd.Function):
    """tanh with forward mode, but without a second derivative."""

    @staticmethod
    def forward(ctx, inputs):
        outputs = torch.tanh(inputs)
        ctx.save_for_backward(outputs)
        ctx.save_for_forward(outputs)
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0] ** 2)

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * (1 - ctx.saved_tensors[0] ** 2)


class OnceDifferentiableOnly(OnceDifferentiableTanh):
    """tanh without a second derivative and without forward mode."""

    jvp = torch.autograd.Function.jvp


class BrokenSecondDerivative(torch.autograd.Function):
    """tanh with an error in its second derivative, as in a user's code."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs.tanh()

    @staticmethod
    def backward(ctx, gradient):
        return BrokenSlope.apply(ctx.saved_tensors[0], gradient)


class BrokenSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, gradient):
        return gradient * (1 - inputs.tanh() ** 2)

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("a mistake of the user")


NEEDS_JVP = [entry for entry in ESTIMATORS.values() if entry.kind in (CGRBP, AdaptiveNeumann)]
EVERY_ESTIMATOR_WITH_JVP = pytest.mark.parametrize("entry", NEEDS_JVP, ids=lambda entry: entry.kind.__name__)


@EVERY_ESTIMATOR
def test_operations_without_a_second_derivative_are_supported(entry: Entry) -> None:
    cell = tanh_cell(0)
    weight, drive = cell.tensors
    exact = dense(cell).gradients
    cell.update = lambda h: (
        0.5 * torch.tanh(h @ weight + drive) + 0.5 * OnceDifferentiableTanh.apply(h @ weight + drive)
    )
    with ignoring():
        assert relative_error(gradients(entry.exact, cell), exact) < 1e-9


@EVERY_ESTIMATOR_WITH_JVP
def test_operations_without_second_derivative_and_forward_mode_are_refused(entry: Entry) -> None:
    weight, drive = tanh_cell(0).tensors
    state = entry.short(lambda h: OnceDifferentiableOnly.apply(h @ weight + drive), torch.zeros_like(drive)).state
    with pytest.raises(UserError, match=r"neither twice nor in forward mode.*NeumannRBP"):
        state.sum().backward()


@EVERY_ESTIMATOR_WITH_JVP
def test_an_error_in_a_user_s_second_derivative_is_raised_as_it_is(entry: Entry) -> None:
    weight, drive = tanh_cell(0).tensors
    state = entry.short(lambda h: BrokenSecondDerivative.apply(h @ weight + drive), torch.zeros_like(drive)).state
    with pytest.raises(RuntimeError, match="a mistake of the user") as raised:
        state.sum().backward()
    assert not isinstance(raised.value, UserError)
    assert 'raise RuntimeError("a mistake of the user")' in "".join(traceback.format_exception(raised.value))


@EVERY_ESTIMATOR
def test_an_error_in_a_user_s_update_is_raised_as_it_is(entry: Entry) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        entry.short(lambda h: h / (1 // 0), torch.zeros(3))
    assert "1 // 0" in "".join(traceback.format_exception(raised.value))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@EVERY_IMPLICIT_ESTIMATOR
def test_reentrant_checkpoints_are_refused(entry: Entry) -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    for reentrant in (True, False):

        def update(h: Tensor, reentrant: bool = reentrant) -> Tensor:
            return torch.utils.checkpoint.checkpoint(lambda x: weight * x.tanh() + 1, h, use_reentrant=reentrant)

        with ignoring():
            state = entry.short(update, torch.zeros(3)).state
            if reentrant:
                with pytest.raises(UserError, match="use_reentrant=False"):
                    state.sum().backward()
            else:
                state.sum().backward()
                assert float(weight.grad) > 0


# --- precision


def float64_reference(dtype: torch.dtype) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    weight = 0.7 * weight / torch.linalg.matrix_norm(weight, 2)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    wide = weight.clone().requires_grad_()
    state = BPTT(Picard(2000, 1e-14))(lambda h: torch.tanh(h @ wide + inputs), torch.zeros(6, 5).double(), 1).state
    state.square().sum().backward()
    layer = nn.Linear(5, 5, bias=False)
    layer.weight.data = weight.T.float().clone()
    return layer, inputs, wide.grad, weight


@EVERY_ESTIMATOR
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_autocast_gives_accurate_gradients_without_warnings(entry: Entry, dtype: torch.dtype, tol: float) -> None:
    if entry.kind is AdaptiveNeumann and dtype is torch.bfloat16:
        pytest.skip("the rounding error of bfloat16 leaves no bound below 1")
    layer, inputs, exact, _ = float64_reference(dtype)
    estimator = copy.deepcopy(entry.short)
    estimator.solver = entry.solver(60, tol)
    if hasattr(estimator, "steps"):
        estimator = type(estimator)(steps=20, solver=estimator.solver)
    if (
        isinstance(estimator, Implicit)
        and type(estimator) is Implicit
        and isinstance(estimator.linear_solver, Richardson)
    ):
        estimator = Implicit(Richardson(20, 1e-2), estimator.solver)
    if isinstance(estimator, AdaptiveNeumann):
        estimator = AdaptiveNeumann(0.3, solver=estimator.solver)
    with torch.autocast("cpu", dtype):
        fixed_point = estimator(lambda h: torch.tanh(layer(h) + inputs.to(dtype)), torch.zeros(6, 5), batch_dims=1)
        loss = fixed_point.state.float().square().sum()
    loss.backward()  # warnings are errors
    error = float((layer.weight.grad.T - exact).norm() / exact.norm())
    assert error < 8 * torch.finfo(dtype).eps / 0.3
    if fixed_point.adjoint.error_estimate is not None:
        assert float(fixed_point.adjoint.error_estimate.max()) < 0.1


def test_forward_mode_uses_the_autocast_of_the_forward_pass() -> None:
    weight, drive = (tensor.detach().float().requires_grad_() for tensor in tanh_cell(0, norm=0.4).tensors)
    with ignoring():
        with torch.autocast("cpu", torch.bfloat16):
            state = CGRBP(20, tol=0, solver=Picard(30, 0))(
                lambda h: OnceDifferentiableTanh.apply(h @ weight) + drive.bfloat16(), torch.zeros(3, 4).bfloat16()
            ).state
        state.sum().backward()
    assert bool(weight.grad.isfinite().all())
    assert float(weight.grad.norm()) > 0


# --- memory


def saved_bytes(estimator: GradientEstimator) -> int:
    """Bytes of all tensors saved for backward, in the forward and the backward pass together."""
    cell = tanh_cell(0, batch=16, size=32)
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)  # keeps addresses from being reused
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with ignoring(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(estimator(cell.update, cell.start, batch_dims=1).state).backward()
    return sum(storages.values())


def with_solver(estimator: GradientEstimator, solver: FixedPointSolver) -> GradientEstimator:
    other = copy.deepcopy(estimator)
    other.solver = solver
    return other


@EVERY_IMPLICIT_ESTIMATOR
def test_memory_does_not_grow_with_the_steps(entry: Entry) -> None:
    if isinstance(entry.short, ExactAdjoint):
        entry = Entry(ExactAdjoint, entry.exact, ExactAdjoint(dense_size=32))
    short, long = (saved_bytes(with_solver(entry.short, entry.solver(steps, tol=0))) for steps in (10, 300))
    assert short == long


def test_memory_of_bptt_grows_linearly_with_the_steps() -> None:
    ten, twenty, forty = (saved_bytes(BPTT(Picard(steps, tol=0))) for steps in (10, 20, 40))
    assert forty - twenty == 2 * (twenty - ten) > 0


def test_memory_of_tbptt_grows_with_its_taped_steps_only() -> None:
    assert saved_bytes(TBPTT(5, Picard(10, tol=0))) == saved_bytes(TBPTT(5, Picard(500, tol=0)))
    five, ten, twenty = (saved_bytes(TBPTT(steps, Picard(100, tol=0))) for steps in (5, 10, 20))
    assert twenty - ten == 2 * (ten - five) > 0


@EVERY_ESTIMATOR
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("observed", [False, True])
def test_no_state_is_kept_alive_by_a_reference_cycle(entry: Entry, backward: bool, observed: bool) -> None:
    alive: list[weakref.ref[Tensor]] = []
    gc.disable()  # reference counting alone must free the states
    try:
        cell = tanh_cell(0)

        def update(state: Tensor) -> Tensor:
            state = cell.update(state)
            alive.append(weakref.ref(state))
            return state

        with ignoring():
            if observed:
                with observing(SolveObserver):
                    loss = loss_of(entry.short(update, cell.start, batch_dims=1).state)
            else:
                loss = loss_of(entry.short(update, cell.start, batch_dims=1).state)
            if backward:
                loss.backward()
        del loss
        assert alive
        assert [reference for reference in alive if reference() is not None] == []
    finally:
        gc.enable()


# --- compiled updates


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised by PyTorch
@pytest.mark.parametrize("name", ["BPTT", "CheckpointedBPTT", "TBPTT", "NeumannRBP", "CGRBP"])
def test_a_compiled_update_gets_the_dense_gradient(name: str) -> None:
    cell = tanh_cell(0)
    exact = dense(cell).gradients
    weight, drive = cell.tensors
    compiled = torch.compile(lambda h, weight, drive: torch.tanh(h @ weight + drive), backend="aot_eager")
    cell.update = lambda h: compiled(h, weight, drive)
    with ignoring():
        assert relative_error(gradients(ESTIMATORS[name].exact, cell), exact) < 1e-9


@pytest.mark.filterwarnings("ignore")  # the compiler's warnings would be errors
def test_a_compiled_update_can_be_used_by_several_estimators() -> None:
    """A backward pass without retain_graph must not free tensors that the compiled step shares."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    weights, inputs = [0.1 * torch.randn(16, 32), 0.1 * torch.randn(32, 16)], torch.randn(8, 16)
    weights = [weight.requires_grad_() for weight in weights]

    @torch.compile(backend="aot_eager")
    def update(h: Tensor) -> Tensor:
        return 0.5 * torch.tanh(nn.functional.gelu(h @ weights[0]) @ weights[1] + inputs)

    with ignoring():
        found = {}
        for estimator in (BPTT(), NeumannRBP(), TBPTT(), RBP(), BPTT(), NeumannRBP(40)):
            state = estimator(update, torch.zeros(8, 16), batch_dims=1).state
            found[as_call(estimator)] = torch.autograd.grad(state.square().mean(), weights)
    reference, *others = found.values()
    for other in others:
        assert relative_error(list(other), list(reference)) < 1e-3


# --- arguments


def test_estimators_share_default_arguments() -> None:
    """The command line keeps arguments of the same name if it replaces a config's estimator."""
    defaults: dict[str, set[Any]] = {}
    for kind in (BPTT, TBPTT, RBP, NeumannRBP, CGRBP):
        for name, parameter in inspect.signature(kind).parameters.items():
            defaults.setdefault(name, set()).add(parameter.default)
    assert {name: len(values) for name, values in defaults.items()} == dict.fromkeys(defaults, 1)


def test_describe_lists_every_argument() -> None:
    assert describe(TBPTT(7, Picard(30, 1e-3))) == {
        "class_path": "rbp_lightning.estimators.tbptt.TBPTT",
        "init_args": {
            "steps": 7,
            "solver": {
                "class_path": "rbp_lightning.solvers.picard.Picard",
                "init_args": {
                    "max_steps": 30,
                    "tol": 1e-3,
                    "check_every": 10,
                    "atol": None,
                    "per_leaf": True,
                    "graph_steps": 0,
                },
            },
        },
    }


@pytest.mark.parametrize(
    ("description", "what"),
    [
        ({"class_path": "os.system", "init_args": {"command": "true"}}, "is not a GradientEstimator"),
        ({"class_path": "rbp_lightning.solvers.picard.Picard"}, "is not a GradientEstimator"),
        ({"class_path": "rbp_lightning.estimators.tbptt.TBPTT", "init_args": {"stps": 3}}, "does not take"),
        ({}, "is not a description"),
    ],
)
def test_a_description_of_anything_else_is_refused(description: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        from_description(description, GradientEstimator)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NeumannRBP(steps=-1),
        lambda: NeumannRBP(steps=2.5),
        lambda: TBPTT(steps=0),
        lambda: TBPTT(steps=101),
        lambda: RBP(tol=-1.0),
        lambda: RBP(tol=float("nan")),
        lambda: RBP(start="zeros"),
        lambda: RBP(seed=-1),
        lambda: CGRBP(steps=0),
        lambda: CGRBP(check_every=0),
        lambda: AdaptiveNeumann(tol=0.0),
        lambda: AdaptiveNeumann(max_steps=0),
        lambda: AdaptiveNeumann(contraction_factor=1.0),
        lambda: AdaptiveNeumann(fallback="none"),
        lambda: ExactAdjoint(dense_size=-1),
        lambda: ExactAdjoint(max_products=0),
    ],
)
def test_arguments_are_checked_at_once(make: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match=r"\w+: \w+="):
        make()


# --- warnings


@pytest.mark.parametrize(
    "make",
    [
        lambda s: RBP(1, 0.0, solver=s),
        lambda s: CGRBP(1, 0.0, solver=s),
        lambda s: NeumannRBP(3, s),
        lambda s: TBPTT(3, s),
    ],
)
def test_a_large_truncation_error_is_reported(make: Callable[[Picard], GradientEstimator]) -> None:
    weight = (0.97 * torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]).requires_grad_()
    state = make(Picard(3000, 1e-5))(lambda h: h @ weight + 1, torch.zeros(8)).state
    with pytest.warns(ConvergenceWarning, match=r"truncation_tol=0\.1"):
        (state * torch.arange(8)).sum().backward()


@pytest.mark.parametrize(
    "make",
    [
        lambda s: RBP(20, 1e-6, solver=s),
        lambda s: CGRBP(2, 1e-6, solver=s),
        lambda s: AdaptiveNeumann(1e-6, 20, 0.98, solver=s),
    ],
)
def test_an_adjoint_that_does_not_converge_is_reported(make: Callable[[Picard], GradientEstimator]) -> None:
    weight = (0.97 * torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]).requires_grad_()
    fixed_point = make(Picard(3000, 1e-5))(lambda h: h @ weight + 1, torch.zeros(8))
    with pytest.warns(ConvergenceWarning, match="adjoint solve took"):
        (fixed_point.state * torch.arange(8)).sum().backward()
    assert not fixed_point.adjoint.converged


def test_a_fixed_number_of_steps_causes_no_warning() -> None:
    weight = torch.tensor(0.99, requires_grad=True)
    with FailurePolicy(truncation_tol=1.0):
        for estimator in (RBP(3, tol=0, solver=Picard(5, tol=0)), CGRBP(1, tol=0, solver=Picard(5, tol=0))):
            estimator(lambda h: weight * h + 1, torch.zeros(2)).state.sum().backward()


@pytest.mark.parametrize("seed", range(3))
def test_an_adjoint_at_the_tolerance_counts_as_converged(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(32, 32, generator=generator)
    weight = (0.9 * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
    drive = torch.randn(2000, 32, generator=generator)  # so many samples that some end just at the tolerance
    fixed_point = CGRBP(60, tol=1e-4, solver=Picard(300))(
        lambda h: torch.tanh(h @ weight + drive), torch.zeros(2000, 32), batch_dims=1
    )
    fixed_point.state.square().sum().backward()
    assert fixed_point.adjoint.steps < 60
    assert fixed_point.adjoint.converged


@pytest.mark.parametrize("tol", [1e-6, 1e-9])
def test_an_adjoint_that_stalls_at_rounding_is_not_a_failure(tol: float) -> None:
    """At spectral radius 0.99 float32 cannot reach the tolerance."""
    problem = named("linear 0.99")
    matrix = torch.stack([problem.update(row[None].expand(3, -1))[0] for row in torch.eye(6).double()])
    matrix = (matrix - problem.update(torch.zeros(3, 6).double())[0]).float().requires_grad_()
    for estimator in (RBP(5000, tol, solver=Picard(5000)), CGRBP(500, tol, solver=Picard(5000))):
        fixed_point = estimator(lambda h: h @ matrix + 1, torch.zeros(3, 6), batch_dims=1)
        fixed_point.state.square().sum().backward()  # warnings are errors
        assert fixed_point.adjoint.converged
        assert fixed_point.adjoint.steps < 5000


def test_warnings_point_to_the_line_of_the_solve() -> None:
    rate = torch.tensor(0.9, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match="increase max_steps or loosen tol") as forward:
        state = NeumannRBP(2, Picard(5, 1e-6))(lambda h: rate * h + 1, torch.zeros(2)).state
    with pytest.warns(ConvergenceWarning, match="truncated early") as backward:
        state.sum().backward()
    for warning in (*forward, *backward):
        assert warning.filename == __file__
        assert "NeumannRBP(2, Picard(5" in Path(__file__).read_text().splitlines()[warning.lineno - 1]
    assert Failure.NOT_CONVERGED.message in str(forward[0].message)
