"""How estimators report their forward solves."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ConvergenceWarning,
    ExactAdjoint,
    Failure,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    Picard,
    Status,
    ignoring,
)
from rbp_lightning.linear import Direct
from tests.cells import tanh_cell

ESTIMATORS = {
    "BPTT": BPTT,
    "TBPTT": TBPTT,
    "RBP": RBP,
    "NeumannRBP": NeumannRBP,
    "CGRBP": CGRBP,
    "AdaptiveNeumann": AdaptiveNeumann,
    "ExactAdjoint": ExactAdjoint,
    "Implicit": lambda solver: Implicit(Direct(), solver),
}
EVERY_ESTIMATOR = pytest.mark.parametrize("make", ESTIMATORS.values(), ids=list(ESTIMATORS))


@EVERY_ESTIMATOR
@settings(max_examples=6, deadline=None)
@given(max_steps=st.integers(20, 45))
def test_the_update_is_applied_max_steps_times(make, max_steps: int) -> None:
    cell, calls = tanh_cell(0), []

    def update(state: Tensor) -> Tensor:
        calls.append(1)
        return cell.update(state)

    with ignoring():
        result = make(solver=Picard(max_steps, tol=0))(update, cell.start, batch_dims=1)
        result.state.sum().backward()
    assert len(calls) == result.steps == max_steps


@EVERY_ESTIMATOR
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_each_failure_is_reported_once_with_its_remedy(make, batch_dims: int) -> None:
    weight = torch.eye(3)
    cases = {
        Status.CONVERGED: lambda h: 0.5 * h @ weight + 1,
        Status.MAX_STEPS: lambda h: 0.99 * h @ weight + 1,
        Status.DIVERGED: lambda h: 1.1 * h @ weight + 1,
        Status.NAN: lambda h: h @ weight * float("nan"),
    }
    for status, update in cases.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = make(solver=Picard(100, tol=1e-5))(update, torch.zeros(2, 3), batch_dims=batch_dims)
        assert result.status is status
        assert result.converged == (status is Status.CONVERGED)
        messages = [str(warning.message) for warning in caught if warning.category is ConvergenceWarning]
        if status is Status.CONVERGED:
            assert messages == []
        else:
            assert [status.value in message and status.failure.message in message for message in messages] == [True]
            assert ("2 of 2 samples" in messages[0]) == (batch_dims == 1)


def test_a_random_update_is_reported_as_random() -> None:
    torch.manual_seed(0)
    with pytest.warns(ConvergenceWarning, match="the update is random") as caught:
        result = NeumannRBP()(lambda h: 0.5 * torch.nn.functional.dropout(h) + 1, torch.zeros(100))
    assert len(caught) == 1
    assert Failure.RANDOM.message in str(caught[0].message)
    assert not result.converged


def test_the_check_for_random_updates_does_not_change_the_rng_state() -> None:
    def draws(checked: bool) -> Tensor:
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with ignoring(*([Failure.GRADIENT] if checked else [])):
                result = NeumannRBP(0, Picard(10))(lambda h: 0.5 * torch.nn.functional.dropout(h) + 1, torch.zeros(100))
        assert bool(caught) == checked
        assert result.steps == 10 + checked or result.status is Status.DIVERGED
        return torch.rand(3)

    assert torch.equal(draws(False), draws(True))


def test_an_overflow_is_divergence_and_stops_the_solve() -> None:
    with pytest.warns(ConvergenceWarning, match="diverged"):
        result = BPTT(Picard(1000, tol=1e-5))(lambda h: h.tanh() + 10 * h - h.square(), torch.ones(4))
    assert result.status is Status.DIVERGED
    assert result.steps < 100


def test_failing_samples_are_reported_and_leave_the_others_alone() -> None:
    rates = torch.tensor([[0.5], [1.2], [0.9]])
    with pytest.warns(ConvergenceWarning, match="diverged.*2 of 3 samples"):
        result = NeumannRBP(solver=Picard(50, tol=1e-4))(lambda h: rates * h + 1, torch.zeros(3, 1), batch_dims=1)
    assert result.status is Status.DIVERGED
    assert [Status.of_code(code) for code in result.sample_status.tolist()] == [
        Status.CONVERGED,
        Status.DIVERGED,
        Status.MAX_STEPS,
    ]
    assert float(result.residual[0]) < 1e-4
    torch.testing.assert_close(result.state[0].detach(), torch.tensor([2.0]), rtol=1e-4, atol=0)


@EVERY_ESTIMATOR
@pytest.mark.parametrize("tol", [0.0, 1e-6])
def test_buffers_count_each_application_of_the_update(make, tol: float) -> None:
    """Including additional applications of a failing solve, which ``steps`` counts."""
    norm = torch.nn.BatchNorm1d(1)
    weight = torch.ones((), requires_grad=True)
    with ignoring():
        result = make(solver=Picard(20, tol))(
            lambda h: 0 * norm(h) + 1.2 * weight * h + 1, torch.ones(4, 1), batch_dims=1
        )
    assert int(norm.num_batches_tracked) == result.steps


def test_divergence_within_the_taped_steps_is_reported() -> None:
    weight = torch.tensor(1.05, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match="diverged"):
        assert TBPTT(100, Picard(100, 1e-6))(lambda h: weight * h + 1, torch.zeros(2)).status is Status.DIVERGED


@pytest.mark.parametrize("estimator", [NeumannRBP(5), TBPTT(5), BPTT()], ids=lambda one: type(one).__name__)
def test_relative_and_absolute_residuals_match_the_closed_form(estimator: GradientEstimator) -> None:
    start = torch.tensor([[0.0], [0.0]], dtype=torch.float64)
    inputs = torch.tensor([[1.0], [1e6]], dtype=torch.float64)
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    estimator = (
        type(estimator)(solver=Picard(12, 0)) if isinstance(estimator, BPTT) else type(estimator)(5, Picard(12, 0))
    )
    with ignoring():
        result = estimator(lambda h: weight * h + inputs, start, batch_dims=1)
    # h_12 - h_11 = x / 2^11.
    torch.testing.assert_close(result.absolute_residual, inputs[:, 0] / 2**11)
    torch.testing.assert_close(result.residual, result.absolute_residual / result.state.detach()[:, 0])
