"""Warm starts give the same results in fewer steps, and are dropped when they do not fit."""

from typing import Any

import pytest
import torch

from rbp_lightning import BPTT, CGRBP, RBP, FixedPoint, LinearSolution, NeumannRBP, Picard, Status, WarmStart, ignoring
from tests.cells import dense, loss_of, relative_error, tanh_cell

TIGHT = Picard(max_steps=500, tol=1e-12, check_every=1)


def fixed_point(state: Any, status: Status = Status.CONVERGED) -> FixedPoint:
    nothing = torch.zeros(())
    return FixedPoint(state, 1, nothing, nothing, status, torch.tensor(status.code), history=(), tol=1e-6)


def solution(adjoint: torch.Tensor, residual: float = 0.0) -> LinearSolution:
    return LinearSolution([adjoint], 1, 1, torch.tensor(residual))


class CountingUpdate:
    """An update that counts its calls."""

    def __init__(self, update) -> None:
        self.update = update
        self.calls = 0

    def __call__(self, state):
        self.calls += 1
        return self.update(state)


def test_a_solve_starts_from_the_last_fixed_point() -> None:
    cell = tanh_cell(0)
    warm_start, update = WarmStart(), CountingUpdate(cell.update)
    cold = NeumannRBP(solver=TIGHT)(update, cell.start, batch_dims=1, warm_start=warm_start)
    assert update.calls > 20
    update.calls = 0
    warm = NeumannRBP(solver=TIGHT)(update, cell.start, batch_dims=1, warm_start=warm_start)
    assert update.calls == warm.steps <= 2
    torch.testing.assert_close(warm.state.detach(), cold.state.detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", [RBP, CGRBP], ids=lambda kind: kind.__name__)
def test_the_adjoint_solve_starts_from_the_last_adjoint(kind) -> None:
    cell = tanh_cell(1)
    exact = dense(cell).gradients
    errors = []
    # Three steps are not enough for one solve, but for 40 solves that continue each other.
    estimator, warm_start = kind(steps=3, tol=0.0, solver=TIGHT), WarmStart()
    with ignoring():
        for _ in range(40):
            state = estimator(cell.update, cell.start, batch_dims=1, warm_start=warm_start).state
            errors.append(relative_error(list(torch.autograd.grad(loss_of(state), cell.tensors)), exact))
    assert errors[0] > 1e-3
    assert errors[-1] < 1e-9


def test_the_initial_adjoint_is_rescaled_with_the_loss() -> None:
    cell = tanh_cell(2)
    estimator, warm_start = CGRBP(steps=1, tol=0.0, solver=TIGHT), WarmStart()
    with ignoring():
        for scale in (1.0,) * 60 + (0.9, 1e-6):
            state = estimator(cell.update, cell.start, batch_dims=1, warm_start=warm_start).state
            found = torch.autograd.grad(scale * loss_of(state), cell.tensors)
    assert relative_error(list(found), [scale * gradient for gradient in dense(cell).gradients]) < 1e-6


def test_a_solve_that_starts_converged_keeps_the_exact_gradient() -> None:
    cell = tanh_cell(3)
    estimator, warm_start = CGRBP(steps=50, tol=1e-12, solver=TIGHT), WarmStart()
    for _ in range(2):
        state = estimator(cell.update, cell.start, batch_dims=1, warm_start=warm_start).state
        found = list(torch.autograd.grad(loss_of(state), cell.tensors))
        assert relative_error(found, dense(cell).gradients) < 1e-9


@pytest.mark.parametrize("status", [Status.NAN, Status.DIVERGED])
def test_a_failed_solve_clears_the_warm_start(status) -> None:
    warm_start, initial = WarmStart(), torch.zeros(3)
    warm_start.keep_state(fixed_point(torch.ones(3)))
    warm_start.keep_adjoint(solution(torch.ones(3)), [torch.ones(3)])
    warm_start.keep_state(fixed_point(torch.full((3,), torch.nan), status))
    assert warm_start.state_like(initial) is initial
    assert warm_start.adjoint_like([initial]) is None


@pytest.mark.parametrize("residual", [torch.nan, torch.inf, 1e3])
def test_an_adjoint_with_a_residual_above_one_is_not_kept(residual: float) -> None:
    warm_start = WarmStart()
    warm_start.keep_adjoint(solution(torch.ones(2), residual), [torch.ones(2)])
    assert warm_start.adjoint_like([torch.zeros(2)]) is None


def test_an_adjoint_that_diverged_does_not_start_the_next_solve() -> None:
    estimator, warm_start = RBP(steps=40, tol=1e-6, start="gradient", solver=Picard(200)), WarmStart()
    added = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    with ignoring():
        for weight in (3.0, 0.5):  # the fixed point 0 of 3 sin h is unstable
            state = estimator(
                lambda h, w=weight: w * torch.sin(h) + added, torch.zeros_like(added), 0, warm_start
            ).state
            (found,) = torch.autograd.grad(state, added)
    assert float(found) == pytest.approx(2, rel=1e-4)


def test_warm_starts_work_under_autocast() -> None:
    layer, warm_start = torch.nn.Linear(4, 4), WarmStart()
    estimator = NeumannRBP(solver=Picard(tol=3e-2, check_every=1))
    with torch.autocast("cpu", torch.bfloat16), ignoring():
        steps = [
            estimator(lambda h: torch.tanh(0.3 * layer(h) + 1), torch.zeros(3, 4), 1, warm_start).steps
            for _ in range(2)
        ]
    assert steps[1] == 2 < steps[0]


@pytest.mark.parametrize("initial", [torch.zeros(4), [torch.zeros(3)]])
def test_a_state_of_another_shape_or_structure_is_not_used(initial) -> None:
    warm_start = WarmStart()
    warm_start.keep_state(fixed_point(torch.ones(3)))
    assert warm_start.state_like(initial) is initial
    assert torch.equal(warm_start.state_like(torch.zeros(3)), torch.ones(3))
    assert warm_start.state_like(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64


def test_inplace_changes_of_a_result_do_not_reach_the_warm_start() -> None:
    warm_start = WarmStart()
    result = BPTT()(torch.cos, torch.zeros(3), warm_start=warm_start)
    result.state.detach().fill_(7.0)
    assert warm_start.state_like(torch.zeros(3)).max() < 1


def test_the_state_survives_a_checkpoint(tmp_path) -> None:
    warm_start, other = WarmStart(), WarmStart()
    warm_start.keep_state(fixed_point(torch.ones(3)))
    warm_start.keep_adjoint(solution(torch.full((3,), 2.0)), [torch.ones(3)])
    torch.save(warm_start.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(other.state_like(torch.zeros(3)), torch.ones(3))
    torch.testing.assert_close(other.adjoint_like([torch.full((3,), 5.0)])[0], torch.full((3,), 10.0))


@pytest.mark.parametrize("swapped", [False, True])
def test_leaves_are_paired_by_name(swapped: bool) -> None:
    def update(s: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        following = {"a": 0.9 * s["a"] + 1, "b": 0.9 * s["b"] + 2}
        return {"b": following["b"], "a": following["a"]} if swapped else following

    estimator, warm_start = NeumannRBP(solver=Picard(500)), WarmStart()
    start = {"a": torch.zeros(1), "b": torch.zeros(1)}
    cold, warm = (estimator(update, start, warm_start=warm_start) for _ in range(2))
    assert cold.steps > 50 > 12 >= warm.steps
    assert float(warm.state["a"].detach()) == pytest.approx(10, rel=1e-4)
    assert float(warm.state["b"].detach()) == pytest.approx(20, rel=1e-4)
    other = estimator(update, {"b": torch.zeros(1), "a": torch.zeros(1)}, warm_start=warm_start)
    assert other.steps <= 12
    assert float(other.state["b"].detach()) == pytest.approx(20, rel=1e-4)
    renamed = {"a": torch.zeros(1), "c": torch.zeros(1)}
    assert warm_start.state_like(renamed) is renamed


def test_inplace_changes_of_taped_states_do_not_reach_the_warm_start() -> None:
    warm_start, cell = WarmStart(), tanh_cell(0)
    for _ in range(2):
        state = NeumannRBP(solver=TIGHT)(cell.update, cell.start, batch_dims=1, warm_start=warm_start).state
        state.add_(1)
        state.sum().backward()
    kept = warm_start.state_like(cell.start)
    torch.testing.assert_close(cell.update(kept).detach(), kept, rtol=0, atol=1e-9)
