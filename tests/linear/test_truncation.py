"""The estimated truncation error of a series, against the true one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rbp_lightning import BPTT, TBPTT, ConvergenceWarning, FixedPoint, GradientEstimator, NeumannRBP, Picard, ignoring
from rbp_lightning.linear.truncation import truncation_error
from tests.zoo import solve_dense

SOLVER = Picard(3000, tol=1e-13)


def run(estimator: GradientEstimator, rates: Tensor, gradient: Tensor) -> tuple[float, float, FixedPoint]:
    """The true and the estimated relative error of the adjoint of h <- rates h + x, and the solve."""
    drive = torch.ones_like(rates, requires_grad=True)
    with ignoring():
        fixed_point = estimator(lambda h: rates * h + drive, torch.zeros_like(rates))
        (found,) = torch.autograd.grad(fixed_point.state, drive, gradient)
    exact = gradient / (1 - rates)
    return float((found - exact).norm() / exact.norm()), float(fixed_point.adjoint.error_estimate), fixed_point


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0.05, 0.99), size=st.integers(1, 5), steps=st.integers(1, 30))
@pytest.mark.parametrize("kind", [NeumannRBP, TBPTT])
def test_the_estimate_is_exact_for_one_mode(kind: type, rate: float, size: int, steps: int) -> None:
    rates = torch.full((size,), rate, dtype=torch.float64)
    error, estimate, _ = run(kind(steps + (kind is TBPTT), solver=SOLVER), rates, torch.ones(size, dtype=torch.float64))
    assert estimate == pytest.approx(error, rel=1e-4, abs=1e-9)


def assert_within_theory(kind: type, error: float, estimate: float) -> None:
    """Bounds of the estimate for positive rates of which one is at least twice the others.

    Let a and b be the norms of the fast and the slow part of the sum, and R that of the remainder, which is slow. The
    error is R / |(a, b + R)|. With the norm of the sum the estimate is R / (|(a, b)| + R), and the triangle inequality
    gives a ratio from 1 / sqrt(2) to 1. ``TBPTT`` takes the larger of b and |g| for the norm of the sum. As the fast
    modes add up to at most twice their part of g, it is too small by a factor of at most sqrt(1 + 2^2).
    """
    most = 1 if kind is NeumannRBP else 5**0.5
    rounded = 1.01  # the last terms have a fast part of 4e-4
    assert error / 2**0.5 / rounded <= estimate <= most * rounded * error


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), slow=st.floats(0.6, 0.995))
@pytest.mark.parametrize("kind", [NeumannRBP, TBPTT])
def test_the_estimate_is_within_a_factor_once_the_slow_modes_dominate(kind: type, seed: int, slow: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rates = 0.5 * slow * torch.rand(20, generator=generator, dtype=torch.float64)
    rates[3] = slow
    gradient = 0.1 + torch.rand(20, generator=generator, dtype=torch.float64)
    error, estimate, _ = run(kind(20, solver=SOLVER), rates, gradient)
    assert_within_theory(kind, error, estimate)


@pytest.mark.parametrize("kind", [NeumannRBP, TBPTT])
def test_a_large_error_is_estimated_even_if_the_last_term_is_small(kind: type) -> None:
    rates = torch.tensor([0.3, 0.99], dtype=torch.float64)
    gradient = torch.tensor([1.0, 0.05], dtype=torch.float64)
    estimator = kind(20, solver=SOLVER)
    error, estimate, fixed_point = run(estimator, rates, gradient)
    assert error > 0.5
    assert_within_theory(kind, error, estimate)
    assert float(fixed_point.adjoint.residual) < 0.1


def estimate_of(*sizes: float, total: float | None = None) -> float:
    """The estimate for a series whose terms are numbers."""
    terms = [[torch.tensor([size], dtype=torch.float64)] for size in sizes]
    whole = None if total is None else [torch.tensor([total], dtype=torch.float64)]
    _, estimate = truncation_error(terms[-3:], terms[0], len(terms) - 1, 0, 2.2e-16, whole)
    return float(estimate)


def test_estimates_of_growing_alternating_and_vanishing_terms() -> None:
    assert estimate_of(1, 1, 1, 1) == 1
    assert estimate_of(1, 1, 2, total=10) == 1
    assert 0.3 < estimate_of(1, 0.5, 0.5) <= estimate_of(1, 0.5, 0.5, total=2) == 1
    assert estimate_of(1, 1, 0) == 0
    assert estimate_of(1, 0, 0) == 0
    assert estimate_of(1) == 1  # one term says nothing about the others
    assert estimate_of(0) == 0
    assert math.isnan(estimate_of(1, 1, math.nan))
    # The sum is 1 / (1 + 0.8), of which the omitted terms are 0.8^11.
    terms = [(-0.8) ** k for k in range(11)]
    assert estimate_of(*terms, total=sum(terms)) == pytest.approx(0.8**11, rel=1e-9)


def test_terms_that_alternate_in_size_are_not_taken_for_growth() -> None:
    weight = torch.tensor([[0.0, 2.0], [0.1, 0.0]], dtype=torch.float64)  # eigenvalues 0.447 and -0.447
    drive = torch.ones(2, dtype=torch.float64, requires_grad=True)
    for steps in (20, 21):
        fixed_point = NeumannRBP(steps, solver=SOLVER)(
            lambda h: weight @ h + drive, torch.zeros(2, dtype=torch.float64)
        )
        (found,) = torch.autograd.grad(fixed_point.state.sum(), drive)
        exact = torch.linalg.inv(torch.eye(2, dtype=torch.float64) - weight.T).sum(1)
        error = float((found - exact).norm() / exact.norm())
        # Two steps multiply a term by 0.2, but one step by anything from 0.1 to 2.
        assert error / 10 < float(fixed_point.adjoint.error_estimate) < 10 * error


@pytest.mark.parametrize("kind", [NeumannRBP, TBPTT])
@pytest.mark.parametrize("size", [16, 64])
def test_the_estimate_is_right_for_many_modes_of_one_modulus(kind: type, size: int) -> None:
    torch.manual_seed(0)
    weight = 0.95 * torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
    added = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    estimator = kind(20 + (kind is TBPTT), solver=Picard(1000, 1e-9))
    fixed_point = estimator(lambda h: weight @ h + added + 1, torch.zeros(size, dtype=torch.float64))
    with pytest.warns(ConvergenceWarning, match="truncation_tol"):
        (found,) = torch.autograd.grad(fixed_point.state.sum(), added)
    exact = solve_dense(torch.eye(size, dtype=torch.float64) - weight.T, torch.ones(size, dtype=torch.float64))
    error = float((found - exact).norm() / exact.norm())
    assert float(fixed_point.adjoint.error_estimate) == pytest.approx(error, rel=1e-6)  # both are 0.95^21


@pytest.mark.parametrize("estimator", [NeumannRBP(80), TBPTT(90), NeumannRBP(20), TBPTT(20)])
@pytest.mark.parametrize("rate", [0.5, 0.01, 1e-4])
def test_the_estimate_is_small_once_terms_vanish_in_float32(estimator: GradientEstimator, rate: float) -> None:
    weight = torch.tensor(rate, requires_grad=True)
    fixed_point = estimator(lambda h: weight * h + 1, torch.zeros(()))
    fixed_point.state.backward()
    assert float(fixed_point.adjoint.error_estimate) <= 0.5**20 * 1.001  # more than 8 epsilon, which counts as rounding


def test_the_estimate_is_right_for_a_complex_pair() -> None:
    angle = torch.tensor(1.2, dtype=torch.float64)
    turn = 0.9 * torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    drive = torch.ones(2, dtype=torch.float64, requires_grad=True)
    fixed_point = NeumannRBP(30, solver=SOLVER)(lambda h: turn @ h + drive, torch.zeros(2, dtype=torch.float64))
    fixed_point.state.sum().backward()
    exact = torch.linalg.inv(torch.eye(2, dtype=torch.float64) - turn.T) @ torch.ones(2, dtype=torch.float64)
    error = float((drive.grad - exact).norm() / exact.norm())
    assert float(fixed_point.adjoint.error_estimate) == pytest.approx(error, rel=1e-6)  # both are 0.9^31


@pytest.mark.parametrize("near", [0.0, 1e-4])
def test_bptt_from_near_the_fixed_point_warns_of_truncation(near: float) -> None:
    weight = torch.tensor(0.99, dtype=torch.float64, requires_grad=True)
    start = torch.tensor(100.0 + near, dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="truncated early"):
        BPTT(Picard(1000, tol=1e-5))(lambda h: weight * h + 1, start).state.backward()
    assert float(weight.grad) < 5000  # the exact gradient is 10,000


def test_every_sample_has_its_own_estimate() -> None:
    rates = torch.tensor([[0.1], [0.9], [0.5]])
    drive = torch.ones(3, 1, requires_grad=True)
    for estimator in (NeumannRBP(9), TBPTT(10)):
        with ignoring():
            fixed_point = estimator(lambda h: rates * h + drive, torch.zeros(3, 1), batch_dims=1)
            fixed_point.state.sum().backward()
        torch.testing.assert_close(fixed_point.adjoint.error_estimate, rates.squeeze(1) ** 10, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("factor", [0.9, 0.97, 0.995])
def test_the_estimate_for_a_large_state_is_not_lost_to_rounding(factor: float) -> None:
    first = torch.full((1024, 1024), 1 / 1024).t()  # its norm is 1
    terms = [[first * factor**step] for step in (18, 19, 20)]
    total = [first * (1 - factor**21) / (1 - factor)]
    _, estimate = truncation_error(terms, [first], 20, 0, 1.2e-7, total)
    assert float(estimate) == pytest.approx(factor**21, rel=1e-3)
