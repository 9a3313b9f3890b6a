"""Samples that fail within a batch."""

import pytest
import torch

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ConvergenceWarning,
    ExactAdjoint,
    FailurePolicy,
    GradientEstimator,
    NeumannRBP,
    Picard,
    Status,
    ignoring,
)

SOLVER = Picard(200, tol=1e-9)
ESTIMATORS = [
    BPTT(SOLVER),
    TBPTT(20, SOLVER),
    RBP(60, 1e-9, start="gradient", solver=SOLVER),
    NeumannRBP(20, SOLVER),
    CGRBP(20, solver=SOLVER),
    AdaptiveNeumann(1e-6, solver=SOLVER),
    ExactAdjoint(solver=SOLVER),
]
BY_NAME = [pytest.param(estimator, id=type(estimator).__name__) for estimator in ESTIMATORS]


def square(weight: torch.Tensor, drive: torch.Tensor):
    """Converges from 0 for small drives and overflows for large ones."""
    return lambda h: 0.3 * torch.square(h) @ weight + drive


@pytest.mark.parametrize("estimator", BY_NAME)
def test_an_overflow_leaves_the_others_gradients_alone(estimator: GradientEstimator) -> None:
    def gradient(drive: torch.Tensor, keep: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        weight = torch.rand(4, 4, generator=generator, dtype=torch.float64).requires_grad_()
        with ignoring():
            result = estimator(square(weight, drive), torch.zeros_like(drive), batch_dims=1)
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


@pytest.mark.parametrize("estimator", BY_NAME)
def test_a_sample_is_frozen_at_its_best_iterate_with_the_gradient_of_one_step(estimator: GradientEstimator) -> None:
    rates = torch.tensor([[0.5], [1.2]], dtype=torch.float64)
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    drive = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    with FailurePolicy(adjoint="ignore"), pytest.warns(ConvergenceWarning, match="1 of 2 samples"):
        result = estimator(lambda h: rates * weight * h + drive, torch.zeros_like(drive), batch_dims=1)
    assert result.sample_status.tolist() == [Status.CONVERGED.code, Status.DIVERGED.code]
    good, best = result.state.detach().flatten().tolist()
    assert good == pytest.approx(2, rel=1e-8)
    # The relative residual of what grows by a fifth falls from 1 to a sixth, but its change is the least at the start.
    assert best == pytest.approx(0, abs=1e-9)
    step = 1 + 0.2 * best
    assert float(result.residual[1]) == pytest.approx(step / (best + step))
    assert float(result.absolute_residual[1]) == pytest.approx(step)
    result.state.sum().backward()
    torch.testing.assert_close(drive.grad, torch.tensor([[2.0], [1.0]], dtype=torch.float64), rtol=1e-5, atol=0)
    assert float(weight.grad) == pytest.approx(2 + 1.2 * best, rel=1e-5, abs=1e-8)


def test_without_a_tolerance_only_what_is_not_finite_is_frozen() -> None:
    rates = torch.tensor([[0.5], [1.2], [1e200]], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="diverged"):
        result = NeumannRBP(solver=Picard(10, tol=0))(
            lambda h: rates * h + 1, torch.zeros(3, 1, dtype=torch.float64), batch_dims=1
        )
    grown = (1.2**10 - 1) / 0.2
    torch.testing.assert_close(result.state[:2, 0].detach(), torch.tensor([2 - 2.0**-9, grown], dtype=torch.float64))
    assert float(result.state[2].detach()) == 1.0


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_state_without_a_batch_is_frozen_alike(batch_dims: int) -> None:
    """Once it was left at 2^20 - 1."""
    with pytest.warns(ConvergenceWarning, match="diverged"):
        result = NeumannRBP(solver=Picard(20))(lambda h: 2 * h + 1, torch.zeros((1,) * batch_dims), batch_dims)
    assert float(result.state.detach()) <= 2**9


@pytest.mark.parametrize("taped", [False, True])
def test_a_sample_that_still_grows_towards_its_fixed_point_is_not_lost(taped: bool) -> None:
    """h <- h + 0.1 h (1 - h) grows from 0.001 to 1, and is at 0.1 after 50 steps."""
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


def test_the_gradient_of_a_frozen_sample_is_finite_unless_its_step_is_not() -> None:
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    inputs = torch.tensor([[1.0], [float("nan")]], dtype=torch.float64)
    with ignoring():
        result = NeumannRBP()(lambda h: 0.5 * weight * h + inputs, torch.zeros(2, 1, dtype=torch.float64), 1)
        result.state[0].sum().backward()
    assert result.sample_status.tolist() == [Status.CONVERGED.code, Status.NAN.code]
    assert bool(result.state.isfinite().all())  # the start, which is finite


def test_a_state_of_several_leaves_is_frozen_as_a_whole() -> None:
    rates = torch.tensor([[0.5, 0.5], [0.5, 3.0]])

    def update(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: rates[:, i : i + 1] * state[name] + 1 for i, name in enumerate(("a", "b"))}

    start = {"a": torch.zeros(2, 1), "b": torch.zeros(2, 1)}
    with pytest.warns(ConvergenceWarning, match="1 of 2 samples"):
        result = BPTT(Picard(300, tol=1e-6))(update, start, batch_dims=1)
    torch.testing.assert_close(result.state["a"].detach(), torch.tensor([[2.0], [0.0]]))
    torch.testing.assert_close(result.state["b"].detach(), torch.tensor([[2.0], [0.0]]))
