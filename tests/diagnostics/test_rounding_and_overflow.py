"""Failures in low precision: overflowing norms and states, and adjoints rounded by autocast."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    CGRBP,
    RBP,
    AdaptiveNeumann,
    ExactAdjoint,
    Failure,
    FixedPoint,
    GradientEstimator,
    Picard,
    Status,
)
from tests.cells import Cell
from tests.diagnostics.outcomes import BATCH, EACH_ESTIMATOR, SIZE, estimators, outcome
from tests.training import convergence_warnings


@pytest.mark.parametrize("start", [1.0, 1.25, 1.5625, 1.9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@EACH_ESTIMATOR
def test_growth_until_norms_overflow_is_divergence(estimator: GradientEstimator, dtype: Any, start: float) -> None:
    # The squared norm overflows some steps before the state does.
    drive = torch.full((2,), start, dtype=dtype, requires_grad=True)
    cell = Cell(lambda h: 2 * h + drive, torch.zeros(2, dtype=dtype), [drive], 0)
    found: list[FixedPoint] = []
    warned = convergence_warnings(lambda: found.append(estimator(cell.update, cell.start)))
    assert found[0].status is Status.DIVERGED
    assert warned
    assert bool(found[0].state.isfinite().all())


@pytest.mark.parametrize("kind", [type(one) for one in estimators(Picard())])
def test_an_overflow_in_half_precision_is_reported(kind: type) -> None:
    rates = torch.tensor([[0.5], [3.0], [0.25]], dtype=torch.float16)
    drive = torch.ones(BATCH, SIZE, dtype=torch.float16, requires_grad=True)
    cell = Cell(lambda h: rates * h + drive, torch.zeros(BATCH, SIZE, dtype=torch.float16), [drive], 1)
    (estimator,) = [one for one in estimators(Picard(100, tol=1e-2)) if type(one) is kind]
    found = outcome(estimator, cell)
    assert found.fixed_point.samples(Status.DIVERGED).tolist() == [False, True, False]
    assert Failure.DIVERGED.message in found.warned[0]
    expected = torch.tensor([2.0, 0.0, 4 / 3])  # the best iterate of the second is its initial state
    # The tolerance of 1e-2, amplified by 1 / (1 - 0.5).
    torch.testing.assert_close(found.fixed_point.state[:, 0].float(), expected, rtol=2e-2, atol=0)
    slopes = torch.tensor([2.0, 1.0, 4 / 3])  # the second has the one-step gradient
    gradient = slopes[:, None] * torch.linspace(0.5, 2.0, SIZE)
    torch.testing.assert_close(found.gradients[0].float(), gradient, rtol=2e-2, atol=0)


@pytest.mark.parametrize("kind", [RBP, CGRBP, AdaptiveNeumann, ExactAdjoint])
def test_the_error_of_an_adjoint_under_autocast_is_rounding_or_reported(kind: type) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (0.8 * torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]).requires_grad_()
    drive = torch.randn(BATCH, 64, generator=generator)
    added = torch.zeros(BATCH, 64, requires_grad=True)
    states: list[Tensor] = []

    def run() -> None:
        update = lambda h: torch.tanh(h @ weight + drive).float() + added  # noqa: E731
        with torch.autocast("cpu", torch.bfloat16):
            states.append(kind(solver=Picard(100, tol=1e-2))(update, torch.zeros(BATCH, 64), 1).state)
        states[0].sum().backward()

    warned = convergence_warnings(run)
    slope = 1 - torch.tanh(states[0].detach() @ weight + drive) ** 2
    jacobian = (slope[:, :, None] * weight.T).detach()
    exact = torch.linalg.solve(torch.eye(64) - jacobian.mT, torch.ones(BATCH, 64, 1)).squeeze(-1)
    error = float((added.grad - exact).norm() / exact.norm())
    assert 1e-3 < error < 0.05  # for every estimator, since the products are rounded
    # No tolerance can be met: a missed error bound is reported, an adjoint stalled at rounding is not.
    assert bool(warned) == (kind is AdaptiveNeumann)
    assert warned or error < 2 * torch.finfo(torch.bfloat16).eps
