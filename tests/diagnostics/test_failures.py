"""What goes wrong is told, and what is not told is right: every estimator on updates that are good, bad and worse."""

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
from tests.diagnostics.outcomes import BATCH, EACH, SIZE, estimators, exact, linear_cell, outcome, turn
from tests.training import convergence_warnings


@pytest.mark.parametrize("radius", [0.5, 0.9, 0.99])
@EACH
def test_what_is_not_told_is_right(estimator: GradientEstimator, radius: float) -> None:
    found = outcome(estimator, linear_cell(radius))
    assert found.fixed_point.status is Status.CONVERGED
    error = relative_error(found.gradients, exact(linear_cell(radius)))
    # What a truncated series leaves out is estimated, from a mixture of complex pairs here, and 0.1 is tolerated.
    allowed = 0.15 if isinstance(estimator, TBPTT | NeumannRBP) else 2e-3
    assert found.told or error <= allowed
    assert len(found.told) <= 1
    # Where a solver's steps suffice there is nothing to tell, and where they do not there is.
    if radius == 0.5 or isinstance(estimator, BPTT | CGRBP | ExactAdjoint):
        assert not found.told
        assert error < 2e-3
    elif isinstance(estimator, RBP) or (radius == 0.99 and isinstance(estimator, TBPTT | NeumannRBP)):
        assert found.told
        assert error > 1e-3


@pytest.mark.parametrize("radius", [1.0, 1.1])
@EACH
def test_no_contraction_is_told(estimator: GradientEstimator, radius: float) -> None:
    found = outcome(estimator, linear_cell(radius))
    assert not found.fixed_point.converged
    assert Failure.NOT_CONVERGED.message in found.told[0] or Failure.DIVERGED.message in found.told[0]
    assert bool(found.fixed_point.state.isfinite().all())
    assert all(bool(gradient.isfinite().all()) for gradient in found.gradients)


def wild(scale: float) -> Cell:
    """A tanh network; with a scale of 2 it turns for ever, with one of 30 it is chaotic."""
    generator = torch.Generator().manual_seed(1)
    weight = turn(2.0) if scale == 2 else scale * torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    weight = weight.requires_grad_()
    drive = (0.01 * torch.ones(BATCH, SIZE, dtype=torch.float64)).requires_grad_()
    start = torch.full((BATCH, SIZE), 0.3, dtype=torch.float64)
    return Cell(lambda h: torch.tanh(h @ weight + drive), start, [weight, drive], 1)


@pytest.mark.parametrize("scale", [2.0, 30.0], ids=["limit cycle", "chaos"])
@EACH
def test_what_never_settles_is_told(estimator: GradientEstimator, scale: float) -> None:
    found = outcome(estimator, wild(scale))
    assert not found.fixed_point.converged
    assert found.told
    # TBPTT and BPTT through what never settles are as large as its exponents make them, and finite.
    assert all(bool(gradient.isfinite().all()) for gradient in found.gradients)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
@EACH
def test_a_bad_input_is_told_and_stays_where_it_is(estimator: GradientEstimator, bad: float) -> None:
    cell, good = linear_cell(0.5), linear_cell(0.5)
    with torch.no_grad():
        cell.tensors[1][1, 2] = bad
    found, alone = outcome(estimator, cell), outcome(estimator, good)
    assert found.fixed_point.samples(Status.DIVERGED, Status.NAN).tolist() == [False, True, False]
    assert found.fixed_point.status is Status.NAN  # its first step is not finite
    assert "1 of 3 samples" in found.told[0]
    assert bool(found.fixed_point.state.isfinite().all())
    others = [0, 2]
    torch.testing.assert_close(found.fixed_point.state[others], alone.fixed_point.state[others])
    # A tolerance bounds them, and not how near they are to each other.
    tolerance = 1e-3 if isinstance(estimator, RBP | AdaptiveNeumann | CGRBP) else 1e-9
    torch.testing.assert_close(found.gradients[1][others], alone.gradients[1][others], rtol=tolerance, atol=0)


@pytest.mark.parametrize("norm", [0.5, 3.0])
@EACH
def test_an_update_with_kinks(estimator: GradientEstimator, norm: float) -> None:
    def make() -> Cell:
        weight = turn(norm).requires_grad_()
        drive = torch.linspace(-1, 1, BATCH * SIZE, dtype=torch.float64).reshape(BATCH, SIZE).requires_grad_()
        start = torch.zeros(BATCH, SIZE, dtype=torch.float64)
        return Cell(lambda h: torch.relu(h @ weight + drive), start, [weight, drive], 1)

    found = outcome(estimator, make())
    if norm < 1:
        assert not found.told
        assert relative_error(found.gradients, exact(make())) < 2e-3
    else:
        assert found.told
        assert not found.fixed_point.converged


@EACH
def test_a_random_update_is_recognised(estimator: GradientEstimator) -> None:
    cell = linear_cell(0.5)
    inner = cell.update
    cell.update = lambda h: torch.nn.functional.dropout(inner(h), 0.5)
    torch.manual_seed(0)
    assert Failure.RANDOM.message in outcome(estimator, cell).told[0]


@pytest.mark.parametrize("kind", [type(one) for one in estimators(Picard())])
def test_looking_for_random_numbers_draws_none(kind: type) -> None:
    def run(solver: Picard, update: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        (estimator,) = [one for one in estimators(solver) if type(one) is kind]
        torch.manual_seed(0)
        found: list[Tensor] = []
        convergence_warnings(lambda: found.append(estimator(update, torch.zeros(SIZE)).state.detach()))
        return found[0], torch.rand(3)

    # The first is told of, the second asks for a number of steps.
    asked, following = run(Picard(200, tol=1e-7), lambda h: 0.5 * h + torch.rand(SIZE))
    _, same = run(Picard(200, tol=0), lambda h: 0.5 * h + torch.rand(SIZE))
    one_before, _ = run(Picard(199, tol=0), lambda h: 0.5 * h + torch.rand(SIZE))
    assert torch.equal(asked, one_before)  # whose residual the last step has measured
    assert torch.equal(following, same)
