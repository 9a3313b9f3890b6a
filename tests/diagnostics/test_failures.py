"""Every estimator warns of failures, and gives right gradients if it does not warn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ExactAdjoint,
    Failure,
    GradientEstimator,
    NeumannRBP,
    Picard,
    Status,
)
from tests.cells import Cell, relative_error
from tests.diagnostics.outcomes import BATCH, EACH_ESTIMATOR, SIZE, estimators, exact, linear_cell, outcome, rotation
from tests.training import convergence_warnings


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99])
@EACH_ESTIMATOR
def test_gradients_without_a_warning_are_right(estimator: GradientEstimator, radius: float) -> None:
    found = outcome(estimator, linear_cell(radius))
    assert found.fixed_point.status is Status.CONVERGED
    error = relative_error(found.gradients, exact(linear_cell(radius)))
    # A truncation error of 0.1 is tolerated, and its estimate is inexact for a mixture of complex pairs.
    allowed = 0.15 if isinstance(estimator, TBPTT | NeumannRBP) else 2e-3
    assert found.warned or error <= allowed
    assert len(found.warned) <= 1
    # There is a warning exactly if the steps do not suffice.
    if radius == 0.5 or isinstance(estimator, BPTT | CGRBP | ExactAdjoint):
        assert not found.warned
        assert error < 2e-3
    elif isinstance(estimator, RBP) or (radius == 0.99 and isinstance(estimator, TBPTT | NeumannRBP)):
        assert found.warned
        assert error > 1e-3


@pytest.mark.parametrize("radius", [1.0, 1.1])
@EACH_ESTIMATOR
def test_maps_that_do_not_contract_cause_a_warning(estimator: GradientEstimator, radius: float) -> None:
    found = outcome(estimator, linear_cell(radius))
    assert not found.fixed_point.converged
    assert Failure.NOT_CONVERGED.message in found.warned[0] or Failure.DIVERGED.message in found.warned[0]
    assert bool(found.fixed_point.state.isfinite().all())
    assert all(bool(gradient.isfinite().all()) for gradient in found.gradients)


def non_convergent_cell(scale: float) -> Cell:
    """A tanh network with a limit cycle for scale 2, and chaos for scale 30."""
    generator = torch.Generator().manual_seed(1)
    weight = rotation(2.0) if scale == 2 else scale * torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    weight = weight.requires_grad_()
    drive = (0.01 * torch.ones(BATCH, SIZE, dtype=torch.float64)).requires_grad_()
    start = torch.full((BATCH, SIZE), 0.3, dtype=torch.float64)
    return Cell(lambda h: torch.tanh(h @ weight + drive), start, [weight, drive], 1)


@pytest.mark.parametrize("scale", [2.0, 30.0], ids=["limit cycle", "chaos"])
@EACH_ESTIMATOR
def test_cycles_and_chaos_cause_a_warning(estimator: GradientEstimator, scale: float) -> None:
    found = outcome(estimator, non_convergent_cell(scale))
    assert not found.fixed_point.converged
    assert found.warned
    # Gradients of TBPTT and BPTT may be very large here, but are finite.
    assert all(bool(gradient.isfinite().all()) for gradient in found.gradients)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
@EACH_ESTIMATOR
def test_a_nonfinite_input_is_reported_and_stays_in_its_sample(estimator: GradientEstimator, bad: float) -> None:
    cell, good = linear_cell(0.5), linear_cell(0.5)
    with torch.no_grad():
        cell.tensors[1][1, 2] = bad
    found, alone = outcome(estimator, cell), outcome(estimator, good)
    assert found.fixed_point.samples(Status.DIVERGED, Status.NAN).tolist() == [False, True, False]
    assert found.fixed_point.status is Status.NAN  # since the first step is not finite
    assert "1 of 3 samples" in found.warned[0]
    assert bool(found.fixed_point.state.isfinite().all())
    others = [0, 2]
    torch.testing.assert_close(found.fixed_point.state[others], alone.fixed_point.state[others])
    # Both are within the tolerance of the exact gradient, so they may differ by as much.
    tolerance = 1e-3 if isinstance(estimator, RBP | AdaptiveNeumann | CGRBP) else 1e-9
    torch.testing.assert_close(found.gradients[1][others], alone.gradients[1][others], rtol=tolerance, atol=0)


@pytest.mark.parametrize("norm", [0.5, 3.0])
@EACH_ESTIMATOR
def test_a_piecewise_linear_update_is_right_or_causes_a_warning(estimator: GradientEstimator, norm: float) -> None:
    def make() -> Cell:
        weight = rotation(norm).requires_grad_()
        drive = torch.linspace(-1, 1, BATCH * SIZE, dtype=torch.float64).reshape(BATCH, SIZE).requires_grad_()
        start = torch.zeros(BATCH, SIZE, dtype=torch.float64)
        return Cell(lambda h: torch.relu(h @ weight + drive), start, [weight, drive], 1)

    found = outcome(estimator, make())
    if norm < 1:
        assert not found.warned
        assert relative_error(found.gradients, exact(make())) < 2e-3
    else:
        assert found.warned
        assert not found.fixed_point.converged


@EACH_ESTIMATOR
def test_a_random_update_is_reported_as_random(estimator: GradientEstimator) -> None:
    cell = linear_cell(0.5)
    inner = cell.update
    cell.update = lambda h: torch.nn.functional.dropout(inner(h), 0.5)
    torch.manual_seed(0)
    assert Failure.RANDOM.message in outcome(estimator, cell).warned[0]


@pytest.mark.parametrize("kind", [type(one) for one in estimators(Picard())])
def test_the_check_for_random_updates_does_not_change_the_rng_state(kind: type) -> None:
    def run(solver: Picard, update: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        (estimator,) = [one for one in estimators(solver) if type(one) is kind]
        torch.manual_seed(0)
        found: list[Tensor] = []
        convergence_warnings(lambda: found.append(estimator(update, torch.zeros(SIZE)).state.detach()))
        return found[0], torch.rand(3)

    # The first solve checks for randomness, the second has a fixed number of steps.
    checked, following = run(Picard(200, tol=1e-7), lambda h: 0.5 * h + torch.rand(SIZE))
    _, same = run(Picard(200, tol=0), lambda h: 0.5 * h + torch.rand(SIZE))
    one_before, _ = run(Picard(199, tol=0), lambda h: 0.5 * h + torch.rand(SIZE))
    assert torch.equal(checked, one_before)  # the last step only measured the residual
    assert torch.equal(following, same)
