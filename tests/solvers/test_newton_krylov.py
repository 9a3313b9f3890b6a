"""The Newton-Krylov method, against Newton's method with dense Jacobians."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import (
    BPTT,
    TBPTT,
    Anderson,
    Auto,
    Broyden,
    Damped,
    FixedPointSolver,
    Implicit,
    NeumannRBP,
    NewtonKrylov,
    Status,
    UserError,
    ignoring,
)
from rbp_lightning.linear import Direct
from tests.solvers.iterates import iterates
from tests.zoo import draw, newton, symmetric


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.floats(0.5, 1.5))
def test_a_full_krylov_space_gives_newton_s_step(seed: int, radius: float) -> None:
    matrix, inputs = symmetric(radius, 5, seed), draw(2, 5, seed=seed)

    def update(h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(h @ matrix) + inputs

    start = inputs + 0.1
    found = iterates(NewtonKrylov(krylov=5), update, start, 6)[-1]
    expected = newton(update, start, steps=1)
    assert float((found - expected).norm()) < 1e-5 * (1 + float((expected - start).norm()))


def test_an_overshooting_step_is_halved() -> None:
    """Newton's method for arctan(h) = 0 diverges from h = 5 without damping."""
    with torch.no_grad():
        found = NeumannRBP(0, NewtonKrylov(200, 1e-9, krylov=1))(lambda h: h - torch.atan(h), torch.tensor([[5.0]]), 1)
    assert found.status is Status.CONVERGED
    assert abs(float(found.state)) < 1e-6


@pytest.mark.parametrize("tol", [0.0, 1e-6])
@pytest.mark.parametrize("check_every", [1, 1000])
def test_a_perturbed_iterate_of_a_product_is_never_returned(tol: float, check_every: int) -> None:
    """With 10 products per Newton step, F is applied to an iterate in steps 1, 12, 23, ..."""
    matrix, inputs = symmetric(0.9, 16).float(), draw(4, 16, seed=0).float()
    found = []
    for max_steps in (12, 17, 22, 23):
        with torch.no_grad(), ignoring():
            solver = NewtonKrylov(max_steps, tol, check_every)
            update = lambda h: torch.tanh(h @ matrix) + inputs  # noqa: E731
            found.append(NeumannRBP(0, solver)(update, torch.zeros(4, 16), batch_dims=1))
    assert all(torch.equal(one.state, found[0].state) for one in found[:3])
    assert all(torch.equal(one.residual, found[0].residual) for one in found[:3])
    assert not torch.equal(found[3].state, found[0].state)
    assert [one.steps for one in found] == [12, 17, 22, 23]


def test_a_budget_below_a_whole_newton_step_is_used() -> None:
    with torch.no_grad():
        found = NeumannRBP(0, NewtonKrylov(7, 1e-3, krylov=10))(lambda h: 0.9 * h + 1, torch.zeros(2, 1), batch_dims=1)
    assert found.converged


def test_gradients_are_exact_for_an_expanding_map() -> None:
    weight = torch.tensor(-2.3, dtype=torch.float64, requires_grad=True)
    estimator = Implicit(Direct(), NewtonKrylov(100, 1e-12, krylov=2))
    estimator(lambda h: weight * h + 1, torch.zeros(2, dtype=torch.float64)).state.sum().backward()
    assert float(weight.grad) == pytest.approx(2 / 3.3**2, rel=1e-9)


@pytest.mark.parametrize(
    "solver", [NewtonKrylov(), Anderson(), Auto(), Damped(Broyden())], ids=lambda one: type(one).__name__
)
def test_accelerated_solvers_are_refused_by_bptt(solver: FixedPointSolver) -> None:
    with pytest.raises(UserError, match=f"solver={type(solver).__name__} cannot be unrolled"):
        BPTT(solver)


def test_tbptt_tapes_picard_steps_after_a_newton_krylov_solve() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    TBPTT(30, NewtonKrylov(60))(lambda h: weight * h + 1, torch.zeros(2)).state.sum().backward()
    assert float(weight.grad) == pytest.approx(8, rel=1e-4)
