"""Failing samples of a batch are frozen and leave the others alone."""

import pytest
import torch

from rbp_lightning import (
    BPTT,
    ConvergenceWarning,
    FailurePolicy,
    GradientEstimator,
    NeumannRBP,
    Picard,
    Status,
    ignoring,
)
from tests.cells import estimators

SOLVER = Picard(200, tol=1e-9)
EACH_ESTIMATOR = [pytest.param(estimator, id=type(estimator).__name__) for estimator in estimators(SOLVER, 60, 1e-9)]


def squaring_update(weight: torch.Tensor, drive: torch.Tensor):
    """An update that converges from 0 for small drives and overflows for large ones."""
    return lambda h: 0.3 * torch.square(h) @ weight + drive


@pytest.mark.parametrize("estimator", EACH_ESTIMATOR)
def test_an_overflowing_sample_does_not_change_the_gradients_of_others(estimator: GradientEstimator) -> None:
    def gradient(drive: torch.Tensor, keep: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        weight = torch.rand(4, 4, generator=generator, dtype=torch.float64).requires_grad_()
        with ignoring():
            result = estimator(squaring_update(weight, drive), torch.zeros_like(drive), batch_dims=1)
            result.state[keep].square().sum().backward()
        return weight.grad, result.state.detach()

    good = torch.tensor([[0.1] * 4, [0.2] * 4, [0.05] * 4], dtype=torch.float64)
    bad = torch.cat([good[:1], torch.full((1, 4), 3.0, dtype=torch.float64), good[1:]])
    alone, states = gradient(good, [0, 1, 2])
    among, all_states = gradient(bad, [0, 2, 3])
    torch.testing.assert_close(among, alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(all_states[[0, 2, 3]], states, rtol=1e-6, atol=0)
    with_bad, _ = gradient(bad, [0, 1, 2, 3])
    assert bool(with_bad.isfinite().all())


@pytest.mark.parametrize("estimator", EACH_ESTIMATOR)
def test_a_diverging_sample_is_frozen_at_its_best_iterate_with_the_one_step_gradient(
    estimator: GradientEstimator,
) -> None:
    rates = torch.tensor([[0.5], [1.2]], dtype=torch.float64)
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    drive = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    with FailurePolicy(adjoint="ignore"), pytest.warns(ConvergenceWarning, match="1 of 2 samples"):
        result = estimator(lambda h: rates * weight * h + drive, torch.zeros_like(drive), batch_dims=1)
    assert result.sample_status.tolist() == [Status.CONVERGED.code, Status.DIVERGED.code]
    good, best = result.state.detach().flatten().tolist()
    assert good == pytest.approx(2, rel=1e-8)
    # With growth by 1.2 the relative residual falls from 1 to 1/6, but the absolute one is smallest at the start.
    assert best == pytest.approx(0, abs=1e-9)
    step = 1 + 0.2 * best
    assert float(result.residual[1]) == pytest.approx(step / (best + step))
    assert float(result.absolute_residual[1]) == pytest.approx(step)
    result.state.sum().backward()
    torch.testing.assert_close(drive.grad, torch.tensor([[2.0], [1.0]], dtype=torch.float64), rtol=1e-5, atol=0)
    assert float(weight.grad) == pytest.approx(2 + 1.2 * best, rel=1e-5, abs=1e-8)


def test_tolerance_zero_freezes_only_samples_that_are_not_finite() -> None:
    rates = torch.tensor([[0.5], [1.2], [1e200]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="diverged"):
        result = NeumannRBP(solver=Picard(10, tol=0))(
            lambda h: rates * h + 1, torch.zeros(3, 1, dtype=torch.float64), batch_dims=1
        )
    grown = (1.2**10 - 1) / 0.2
    torch.testing.assert_close(result.state[:2, 0].detach(), torch.tensor([2 - 2.0**-9, grown], dtype=torch.float64))
    assert float(result.state[2].detach()) == 1.0


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_state_without_a_batch_dimension_is_frozen_too(batch_dims: int) -> None:
    """Not left at its last iterate, 2^20 - 1."""
    with pytest.warns(ConvergenceWarning, match="diverged"):
        result = NeumannRBP(solver=Picard(20))(lambda h: 2 * h + 1, torch.zeros((1,) * batch_dims), batch_dims)
    assert float(result.state.detach()) <= 2**9


@pytest.mark.parametrize("taped", [False, True])
def test_growth_towards_the_fixed_point_does_not_stop_a_longer_solve(taped: bool) -> None:
    """h <- h + 0.1 h (1 - h) grows from 0.001 to 1, and reaches only 0.1 in 50 steps."""
    for batch_dims in (0, 1):
        with torch.set_grad_enabled(taped), ignoring():
            start = torch.full((1, 1), 1e-3)
            early, late = (
                NeumannRBP(5, Picard(steps, 1e-6))(lambda h: h + 0.1 * h * (1 - h), start, batch_dims)
                for steps in (50, 400)
            )
        assert early.status in (Status.MAX_STEPS, Status.DIVERGED)
        assert float(late.state.detach()) == pytest.approx(1, abs=1e-4)
        assert late.converged


def test_a_sample_whose_first_step_is_nan_keeps_its_initial_state() -> None:
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    inputs = torch.tensor([[1.0], [float("nan")]], dtype=torch.float64)
    with ignoring():
        result = NeumannRBP()(lambda h: 0.5 * weight * h + inputs, torch.zeros(2, 1, dtype=torch.float64), 1)
        result.state[0].sum().backward()
    assert result.sample_status.tolist() == [Status.CONVERGED.code, Status.NAN.code]
    assert result.state[1].tolist() == [0.0]


def test_a_state_of_several_leaves_is_frozen_as_a_whole() -> None:
    rates = torch.tensor([[0.5, 0.5], [0.5, 3.0]])

    def update(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: rates[:, i : i + 1] * state[name] + 1 for i, name in enumerate(("a", "b"))}

    start = {"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)}
    with pytest.warns(ConvergenceWarning, match="1 of 2 samples"):
        result = BPTT(Picard(300, tol=1e-6))(update, start, batch_dims=1)
    torch.testing.assert_close(result.state["a"].detach(), torch.tensor([[2.0], [0.0]]))
    torch.testing.assert_close(result.state["b"].detach(), torch.tensor([[2.0], [0.0]]))
