"""Coupled samples are detected, separately for each line of code that solves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rbp_lightning import CGRBP, ConvergenceError, ExactAdjoint, FailurePolicy, GradientEstimator, Picard, ignoring
from tests.cells import relative_error

SOLVER = Picard(500, 1e-13)


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(4, 4, dtype=torch.float64, generator=generator)
    return weight.requires_grad_(), torch.randn(8, 4, dtype=torch.float64, generator=generator)


def gradient(estimator: GradientEstimator, update: Callable[[Tensor], Tensor], weight: Tensor, dims: int) -> Tensor:
    state = estimator(update, torch.zeros(8, 4, dtype=torch.float64), batch_dims=dims).state
    return torch.autograd.grad(state[0].square().sum(), weight)[0]


@pytest.mark.parametrize("kind", ["mean", "other view", "next sample"])
def test_coupled_samples_get_the_right_gradient_beside_uncoupled_updates(kind: str) -> None:
    weight, inputs = problem()
    couplings: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda h: torch.tanh(((h - h.mean(0)) * 0.9) @ weight + inputs),
        "other view": lambda h: torch.tanh(0.3 * h + h.roll(4, 0) @ weight + inputs),  # couples samples of equal parity
        "next sample": lambda h: torch.tanh(0.3 * h + h.roll(1, 0) @ weight + inputs),
    }

    def plain(h: Tensor) -> Tensor:
        return torch.tanh(h @ weight * 0.5 + inputs)

    exact = {update: gradient(ExactAdjoint(solver=SOLVER), update, weight, 0) for update in (couplings[kind], plain)}
    with ignoring():
        for _ in range(3):
            for update in (couplings[kind], plain):  # solved on the same line, like the layers of a network
                found = gradient(CGRBP(100, 1e-12, solver=SOLVER), update, weight, 1)
                assert relative_error([found], [exact[update]]) < 1e-9


def test_batches_of_one_sample_do_not_count_as_checked() -> None:
    weight, inputs = problem()

    def differentiate(samples: int) -> None:
        some, estimator = inputs[:samples], CGRBP(100, 1e-12, solver=SOLVER)
        state = estimator(lambda h: torch.tanh((h - h.mean(0)) @ weight + some), torch.zeros_like(some), 1).state
        torch.autograd.grad(state.sum(), weight)

    with FailurePolicy(coupled_samples="raise"):
        for _ in range(5):
            differentiate(1)
        with pytest.raises(ConvergenceError, match="act on each other"):
            differentiate(8)
