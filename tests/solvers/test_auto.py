"""When ``Auto`` switches from Picard iteration to extrapolation."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rbp_lightning import Auto, FixedPointAdjoint, JacobianOperator, NeumannRBP, Picard, ignoring
from tests.zoo import CONTRACTIONS, Problem, draw, named, rotation, symmetric


class DeviceReads(TorchDispatchMode):
    """Counts the values that are read from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(named or {}))


def solve(solver, problem: Problem):
    with torch.no_grad(), ignoring():
        return NeumannRBP(0, solver)(problem.update, problem.start, batch_dims=1)


@pytest.mark.parametrize("problem", CONTRACTIONS, ids=lambda problem: problem.name)
def test_takes_no_more_steps_than_picard_and_half_of_them_if_it_is_slow(problem: Problem) -> None:
    found, plain = (solve(kind(5000, 1e-8), problem) for kind in (Auto, Picard))
    assert found.steps <= plain.steps + 4  # a rejected extrapolation, and other steps with checks
    assert found.steps <= plain.steps / 2 or plain.steps < 100


def test_an_easy_problem_is_solved_by_picard_steps() -> None:
    problem = named("tanh 0.3")
    found, plain = (solve(kind(100, 1e-6), problem) for kind in (Auto, Picard))
    assert found.steps == plain.steps
    assert torch.equal(found.state, plain.state)


def test_tolerance_zero_takes_picard_steps_only() -> None:
    problem = named("linear 0.99")
    assert torch.equal(solve(Auto(60, 0), problem).state, solve(Picard(60, 0), problem).state)


def test_one_slow_mode_is_extrapolated_even_if_few_steps_remain() -> None:
    slow = torch.tensor([[0.7, 0.1, 0.1]]).double()
    problem = Problem("one mode", lambda h: slow * h + 1, torch.zeros(1, 3).double())
    assert solve(Auto(100, 1e-6), problem).steps < solve(Picard(100, 1e-6), problem).steps / 2


def test_the_scale_of_the_state_does_not_matter() -> None:
    """In float32 a product of four changes of 1e-12 is 0."""
    matrix, inputs = rotation(0.65).float(), draw(1, 6, seed=0).float()
    found = [
        solve(Auto(100, 1e-6, atol=0.0), Problem("", lambda h, scale=scale: h @ matrix + scale * inputs, 0 * inputs))
        for scale in (1.0, 2.0**-40)
    ]
    assert found[0].steps == found[1].steps
    assert torch.equal(found[0].state, 2.0**40 * found[1].state)


def test_growth_away_from_an_unstable_fixed_point_is_followed() -> None:
    problem = named("bistable")
    torch.testing.assert_close(solve(Auto(100, 1e-8), problem).state, problem.fixed_point)


@pytest.mark.parametrize(("diagonal", "above", "size"), [(0.5, 0.7, 24), (0.5, 1.0, 12), (0.5, 1.5, 12), (0, 1.5, 24)])
def test_transient_growth_is_soon_left_to_picard_steps(diagonal: float, above: float, size: int) -> None:
    """A chain of units has a highly non-normal Jacobian, for which extrapolation alone diverges in float32."""
    matrix = torch.diag(torch.full((size,), diagonal)) + torch.diag(torch.full((size - 1,), above), 1)
    problem = Problem("chain", lambda h: h @ matrix + 1, torch.zeros(1, size))
    found, plain = (solve(kind(200, 1e-6), problem) for kind in (Auto, Picard))
    assert found.converged
    assert found.steps <= 1.5 * plain.steps  # up to 1.48, depending on rounding
    operator = JacobianOperator.at(problem.update, problem.start, 1)
    adjoint = FixedPointAdjoint(Auto(200, 1e-4)).solve(operator, [torch.ones(1, size)])
    assert adjoint.converged


def test_cycles_begin_again_where_plain_steps_do_less_than_predicted() -> None:
    """At a radius of 0.999 fast modes die first: the rest declines ten times as slowly as the first steps predict."""
    values = torch.linspace(-0.999, 0.999, 50, dtype=torch.float64)
    basis = torch.linalg.qr(draw(50, 50, seed=0))[0]
    matrix, inputs = basis * values @ basis.T, 0.002 * draw(1, 20, 50, seed=2)
    problem = Problem("slow", lambda h: torch.tanh(h @ matrix + inputs), torch.zeros(1, 20, 50).double())
    found, plain = (solve(kind(5000, 1e-5), problem) for kind in (Auto, Picard))
    assert found.converged
    assert found.steps <= plain.steps / 6


@pytest.mark.parametrize("radius", [0.3, 0.9, 0.99])
def test_reads_few_more_values_from_the_device_than_picard(radius: float) -> None:
    """Two more values per check before extrapolation begins, and a check of each extrapolation that may be the last."""
    matrix, inputs = symmetric(radius, 40), draw(8, 40, seed=0)
    problem = Problem("", lambda h: torch.tanh(h @ matrix + 0.1 * inputs), torch.zeros(8, 40).double())
    solve(Auto(5000, 1e-6), problem)  # the first solves of a line run additional spot checks
    reads = {}
    for solver in (Auto(5000, 1e-6), Picard(5000, 1e-6)):
        for _ in range(6):
            with DeviceReads() as counter:
                solve(solver, problem)
        reads[type(solver)] = counter.count
    assert reads[Auto] <= reads[Picard] + 4
