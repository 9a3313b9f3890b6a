"""AdaptiveNeumann's error bounds hold, and it reports samples without one."""

import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rbp_lightning import (
    AdaptiveNeumann,
    ConvergenceError,
    ConvergenceWarning,
    ExactAdjoint,
    Failure,
    FailurePolicy,
    LinearSolution,
    Picard,
    ignoring,
)
from tests.cells import Cell, dense, loss_of, tanh_cell

EXACT = Picard(max_steps=5000, tol=1e-15)


def adjoint_errors(estimator: AdaptiveNeumann, cell: Cell) -> tuple[torch.Tensor, LinearSolution]:
    """The true relative error of each sample's adjoint z, which is the gradient of an input added to the state."""
    added = torch.zeros_like(cell.start, requires_grad=True)
    fixed_point = estimator(lambda h: cell.update(h) + added, cell.start, batch_dims=cell.batch_dims)
    found = torch.autograd.grad(loss_of(fixed_point.state), added)[0]
    exact = dense(cell).adjoint.reshape(found.shape)
    dims = tuple(range(cell.batch_dims, found.dim()))
    return (found - exact).norm(dim=dims) / exact.norm(dim=dims), fixed_point.adjoint


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    norm=st.floats(0.05, 1.5),
    tol=st.floats(1e-9, 0.5),
    batch=st.integers(1, 3),
    size=st.integers(1, 12),
    batched=st.booleans(),
)
def test_the_error_is_within_its_bound(
    seed: int, norm: float, tol: float, batch: int, size: int, batched: bool
) -> None:
    # J is smaller than the weights because of the slope of tanh, so weights with norms above 1 are tried as well.
    cell = tanh_cell(seed, norm, batch, size)
    cell.batch_dims = int(batched)
    estimator = AdaptiveNeumann(tol, check_every=1, solver=EXACT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with torch.no_grad(), ignoring():  # limit cycles have no adjoint
            assume(float(estimator(cell.update, cell.start, batch_dims=cell.batch_dims).residual.max()) < 1e-12)
        errors, adjoint = adjoint_errors(estimator, cell)
    bound = adjoint.error_bound
    bounded = bound <= tol
    assert bool((errors[bounded] <= tol + 1e-12).all())
    assert bool((errors <= bound + 1e-12)[~bound.isnan()].all())
    messages = [str(warning.message) for warning in caught if "forward solve" not in str(warning.message)]
    assert bool(bounded.all()) == (not messages)
    if norm < 0.8:
        assert bool(bounded.all())


@pytest.mark.parametrize("loss", [torch.sum, torch.Tensor.prod])
def test_a_sample_whose_forward_solve_failed_has_no_bound(loss) -> None:
    rates = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    drive = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    estimator = AdaptiveNeumann(1e-3, solver=Picard())
    with pytest.warns(ConvergenceWarning, match="1 of 2 samples"):
        fixed_point = estimator(lambda h: rates * h + drive, torch.zeros_like(drive), batch_dims=1)
    loss(fixed_point.state).backward()
    assert fixed_point.adjoint.error_bound.isnan().tolist() == [False, True]
    assert float(fixed_point.adjoint.error_bound[0]) <= 1e-3


def hidden_mode(slow: float) -> Cell:
    """A slow mode with a small gradient, which dominates the adjoint although early terms of the series are small."""
    rates = torch.tensor([0.3, slow], dtype=torch.float64, requires_grad=True)
    drive = torch.tensor([[1.0, 1e-4]], dtype=torch.float64)
    return Cell(lambda h: rates * h + drive, torch.zeros(1, 2, dtype=torch.float64), [rates], 1)


@pytest.mark.parametrize("slow", [0.9, 0.95])
def test_a_slow_mode_with_a_small_gradient_is_not_overlooked(slow: float) -> None:
    cell = hidden_mode(slow)
    estimator = AdaptiveNeumann(1e-5, solver=Picard(5000, tol=1e-14))
    added = torch.zeros_like(cell.start, requires_grad=True)
    fixed_point = estimator(lambda h: cell.update(h) + added, cell.start, batch_dims=1)
    gradient = torch.tensor([[1.0, 1e-4]], dtype=torch.float64)
    found = torch.autograd.grad(fixed_point.state, added, gradient)[0]
    exact = gradient / (1 - torch.tensor([0.3, slow], dtype=torch.float64))
    assert float((found - exact).norm() / exact.norm()) <= 1e-5
    assert bool(fixed_point.adjoint.error_bound <= 1e-5)
    assert fixed_point.adjoint.steps >= 40  # 10 would be enough for the other mode


def test_without_a_contraction_factor_gmres_solves_with_a_warning() -> None:
    generator = torch.Generator().manual_seed(0)
    # Nilpotent: the series ends although the norm is 2.
    weight = (2.0 * torch.diag(torch.ones(3, dtype=torch.float64), 1)).requires_grad_()
    drive = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    cell = Cell(lambda h: h @ weight + drive, torch.zeros(2, 4, dtype=torch.float64), [weight], 1)
    estimator = AdaptiveNeumann(1e-10, solver=EXACT)
    with pytest.warns(ConvergenceWarning, match="GMRES is used instead") as told:
        errors, adjoint = adjoint_errors(estimator, cell)
    assert len(told) == 1
    assert Failure.NO_CONTRACTION.message in str(told[0].message)
    assert bool(adjoint.error_bound.isnan().all())
    assert adjoint.converged
    assert float(errors.max()) < 1e-8


def test_only_samples_without_a_contraction_factor_use_the_fallback() -> None:
    weights = torch.stack([0.5 * torch.eye(2), torch.tensor([[0.0, 3.0], [0.0, 0.0]])]).double().requires_grad_()
    drive = torch.ones(2, 2, dtype=torch.float64)
    cell = Cell(
        lambda h: (h[:, None] @ weights).squeeze(1) + drive, torch.zeros(2, 2, dtype=torch.float64), [weights], 1
    )
    estimator = AdaptiveNeumann(1e-6, solver=EXACT)
    with pytest.warns(ConvergenceWarning, match="1 of 2 samples"):
        errors, adjoint = adjoint_errors(estimator, cell)
    assert float(errors.max()) < 1e-6
    assert adjoint.error_bound.isnan().tolist() == [False, True]

    without_krylov = AdaptiveNeumann(1e-6, fallback="policy", solver=EXACT)
    with pytest.warns(ConvergenceWarning) as told:
        errors, adjoint = adjoint_errors(without_krylov, cell)
    assert any("1 of 2 samples" in str(one.message) for one in told)
    assert float(errors[0]) < 1e-6 < float(errors[1])
    assert adjoint.error_bound[1] == float("inf")
    assert not adjoint.converged
    with FailurePolicy(adjoint="raise"), pytest.raises(ConvergenceError, match="contraction"):
        adjoint_errors(without_krylov, cell)


def test_a_known_contraction_factor_costs_no_products() -> None:
    known, found = (
        adjoint_errors(AdaptiveNeumann(1e-6, contraction_factor=factor, solver=EXACT), tanh_cell(0, norm=0.5))
        for factor in (0.5, None)
    )
    for errors, _ in (known, found):
        assert float(errors.max()) <= 1e-6
    assert known[1].products == known[1].steps <= 23  # 0.5^20 is the first below 1e-6
    assert found[1].products > found[1].steps


def test_a_wrong_contraction_factor_is_disproved_by_the_terms() -> None:
    estimator = AdaptiveNeumann(1e-3, contraction_factor=0.5, solver=EXACT)
    weight = torch.tensor(0.99, dtype=torch.float64, requires_grad=True)
    fixed_point = estimator(lambda h: weight * h + 1, torch.zeros((), dtype=torch.float64))
    with pytest.warns(ConvergenceWarning, match="bound on its relative error of inf"):
        fixed_point.state.backward()
    assert fixed_point.adjoint.products <= 10  # it stops once the factor is disproved


def test_the_bound_holds_for_a_large_state_in_float32() -> None:
    weight = torch.tensor(0.8, requires_grad=True)
    estimator = AdaptiveNeumann(1e-4, solver=Picard(200, 1e-6))
    added = torch.zeros(100_000, requires_grad=True)
    fixed_point = estimator(lambda h: weight * h + added, torch.ones(100_000))
    fixed_point.state.sum().backward()
    assert bool(fixed_point.adjoint.error_bound <= 1e-4)
    assert fixed_point.adjoint.products < 120
    assert float((added.grad / 5 - 1).abs().max()) < 1e-4


def test_a_tolerance_below_rounding_is_reported() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    estimator = AdaptiveNeumann(1e-9, max_steps=100, solver=Picard(200, 1e-6))
    fixed_point = estimator(lambda h: weight * h + 1, torch.zeros(8))  # float32
    with pytest.warns(ConvergenceWarning, match="bound on its relative error"):
        fixed_point.state.sum().backward()
    assert not fixed_point.adjoint.converged
    assert fixed_point.adjoint.steps < 50  # more terms would not reduce the bound


def test_nan_in_the_gradient_stays_in_its_sample() -> None:
    drive = torch.zeros(2, 2, requires_grad=True)
    state = AdaptiveNeumann()(lambda h: 0.5 * h + drive, torch.zeros(2, 2), batch_dims=1).state
    with pytest.warns(ConvergenceWarning, match="nan"):
        state.backward(torch.tensor([[float("nan"), 1.0], [1.0, 1.0]]))
    torch.testing.assert_close(drive.grad[1], torch.tensor([2.0, 2.0]), rtol=1e-4, atol=0)


def test_exact_adjoint_reports_a_singular_equation() -> None:
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    estimator = ExactAdjoint(dense_size=0, max_products=10, solver=Picard(10, tol=0))
    state = estimator(lambda h: weight * h + 1, torch.zeros(3, dtype=torch.float64)).state
    with pytest.warns(ConvergenceWarning, match="adjoint solve"):
        state.sum().backward()
