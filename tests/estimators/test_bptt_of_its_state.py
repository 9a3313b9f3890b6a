"""BPTT's gradient is the derivative of the state that it returns, also if the solve did not converge."""

import pytest
import torch

from rbp_lightning import BPTT, Picard, ignoring


@pytest.mark.parametrize("start_has_gradient", [False, True])
@pytest.mark.parametrize("solver", [Picard(4), Picard(4, tol=0), Picard(50, 1e-3), Picard(2, 1e-3, check_every=1)])
def test_the_gradient_is_that_of_the_returned_state(solver: Picard, start_has_gradient: bool) -> None:
    def state_of(weight: torch.Tensor) -> torch.Tensor:
        start = torch.zeros(2, dtype=torch.float64, requires_grad=start_has_gradient)
        with ignoring():
            return BPTT(solver)(lambda h: weight * h + 1, start).state.sum()

    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(state_of, weight)


@pytest.mark.parametrize("start_has_gradient", [False, True])
def test_a_solve_of_one_step_has_its_gradient(start_has_gradient: bool) -> None:
    weight = torch.full((2,), 3.0, requires_grad=True)
    start = torch.full((2,), 3.0, requires_grad=start_has_gradient)
    with ignoring():
        found = BPTT(Picard(check_every=1))(lambda h: 0 * h + weight, start)
        assert found.steps == 1
        found.state.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 1.0]
