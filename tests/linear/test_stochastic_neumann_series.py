"""The Neumann series with a new minibatch per term, against the series of the mean update."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from rbp_lightning import Implicit, JacobianOperator, NeumannSeries, Picard, StochasticNeumannSeries
from tests.recorded_failures import recorded_failures
from tests.zoo import draw, symmetric

SIZE, STEPS = 4, 3


def minibatches() -> list[Tensor]:
    """Asymmetric Jacobians whose mean has a norm below 1."""
    return [symmetric(0.7, SIZE) + 0.2 * draw(SIZE, SIZE, seed=seed) for seed in range(3)]


def series(sequence: Iterator[Tensor], gradient: Tensor, steps: int = STEPS) -> Tensor:
    """The solution z for an update that uses the next matrix each time it is applied."""
    operator = JacobianOperator.at(lambda h: h @ next(sequence).T, torch.zeros(2, SIZE, dtype=torch.float64), 1)
    return StochasticNeumannSeries(steps).solve(operator, [gradient]).vector[0]


def test_each_term_takes_the_next_jacobian() -> None:
    first, second, third = minibatches()
    gradient = draw(2, SIZE, seed=5)
    found = series(iter([first, first, second, third]), gradient)  # the operator itself uses one
    terms = [gradient, gradient @ first, gradient @ first @ second, gradient @ first @ second @ third]
    torch.testing.assert_close(found, sum(terms))


def test_the_mean_over_all_sequences_equals_the_series_of_the_mean() -> None:
    matrices, gradient = minibatches(), draw(2, SIZE, seed=5)
    mean = torch.stack(matrices).mean(dim=0)
    operator = JacobianOperator.at(lambda h: h @ mean.T, torch.zeros(2, SIZE, dtype=torch.float64), 1)
    exact = NeumannSeries(STEPS).solve(operator, [gradient]).vector[0]
    found = [series(iter([mean, *sequence]), gradient) for sequence in itertools.product(matrices, repeat=STEPS)]
    torch.testing.assert_close(torch.stack(found).mean(dim=0), exact, rtol=1e-12, atol=1e-12)
    assert float((found[0] - exact).norm() / exact.norm()) > 0.1


def test_the_mean_gradient_equals_that_of_the_mean_update() -> None:
    """Over 300 draws, within 4.5 standard errors in each entry."""
    matrices, drive = torch.stack(minibatches()), draw(3, SIZE, seed=7)
    weight = torch.ones(SIZE, dtype=torch.float64, requires_grad=True)
    start, slope = draw(SIZE, seed=8), draw(SIZE, seed=9)

    def gradient(linear_solver: NeumannSeries, average: bool) -> Tensor:
        def update(state: Tensor) -> Tensor:
            batch = slice(None) if average else torch.randint(3, (1,))
            return (state * weight) @ matrices[batch].mean(dim=0).T + (drive * weight).sin()[batch].mean(dim=0)

        state = Implicit(linear_solver, Picard(1, tol=0))(update, start).state
        return torch.autograd.grad(slope @ state, weight)[0]

    torch.manual_seed(0)
    with recorded_failures() as reported:
        exact = gradient(NeumannSeries(8), average=True)
        found = torch.stack([gradient(StochasticNeumannSeries(8), average=False) for _ in range(300)])
        biased = torch.stack([gradient(NeumannSeries(8), average=False) for _ in range(300)])
    assert {failure.policy for failure in reported} <= {"adjoint"}  # a random update is not reported here
    error = found.std(dim=0) / len(found) ** 0.5
    assert bool(((found.mean(dim=0) - exact).abs() < 4.5 * error).all())
    assert bool((error < 0.07 * exact.norm()).all())
    # Using one minibatch for all terms is biased.
    spread = biased.std(dim=0) / len(biased) ** 0.5
    assert bool(((biased.mean(dim=0) - exact).abs() > 4.5 * spread).any())
