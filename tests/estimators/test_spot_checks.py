"""Spot checks in some solves of each line: random updates and parameters that were replaced."""

import random
import threading

import numpy
import pytest
import torch

from rbp_lightning import (
    ConvergenceError,
    ConvergenceWarning,
    FailurePolicy,
    NeumannRBP,
    Picard,
    Status,
    ignoring,
)
from rbp_lightning.estimators import random_draws
from rbp_lightning.estimators.spot_checks import SpotChecks
from tests.cells import estimators

SOLVER = Picard(200, 1e-6)
EVERY_ESTIMATOR = pytest.mark.parametrize("estimator", estimators(SOLVER, 60), ids=lambda one: type(one).__name__)


@pytest.fixture(autouse=True)
def _fresh_spot_checks(monkeypatch) -> None:
    monkeypatch.setattr(random_draws, "_taped_checks", SpotChecks())
    monkeypatch.setattr(random_draws, "_untaped_checks", SpotChecks())


@pytest.mark.parametrize("taped", [True, False])
def test_the_same_dropout_mask_twice_is_not_convergence(taped: bool) -> None:
    estimator = NeumannRBP(5, Picard(30, 1e-4, check_every=1))
    for seed in range(40):  # two masks are the same with a probability of 0.2
        torch.manual_seed(seed)
        with torch.set_grad_enabled(taped), ignoring():
            found = estimator(lambda h: torch.nn.functional.dropout(0.3 * h + 1, 0.9), torch.zeros(8))
        assert found.status is Status.MAX_STEPS or found.steps <= 3
        assert not (found.converged and found.steps > 3)


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(()).item(), random.random, numpy.random.random], ids=["torch", "random", "numpy"]
)
def test_random_updates_are_detected_for_every_generator(draw) -> None:
    """Also if one branch is taken so often that the residual becomes small."""
    policy = FailurePolicy(not_converged="raise")
    with policy, pytest.raises(ConvergenceError, match="random"):
        NeumannRBP(solver=Picard(100, 0.2, check_every=1))(
            lambda h: 0.1 * h + (1 if draw() < 0.5 else 2), torch.zeros(4)
        )


@pytest.mark.parametrize("name", ["unused", "within the tolerance", "another thread"])
def test_irrelevant_random_draws_are_not_a_failure(name: str) -> None:
    def update(h: torch.Tensor) -> torch.Tensor:
        noise = random.random()
        return 0.5 * h + 1 + (1e-6 * noise if name == "within the tolerance" else 0.0)

    ended = threading.Event()

    def draws() -> None:
        while not ended.is_set():
            random.random()

    thread = threading.Thread(target=draws)
    if name == "another thread":
        thread.start()
    try:
        for _ in range(5):
            found = NeumannRBP(solver=Picard(100, 1e-4))(
                (lambda h: 0.5 * h + 1) if name == "another thread" else update, torch.zeros(4)
            )
            assert found.converged
    finally:
        ended.set()


def test_other_numpy_bit_generators_are_supported() -> None:
    before = numpy.random.get_bit_generator()
    numpy.random.set_bit_generator(numpy.random.PCG64(0))
    try:
        assert NeumannRBP()(torch.cos, torch.zeros(())).converged
    finally:
        numpy.random.set_bit_generator(before)


def test_an_update_that_seeds_its_draws_is_not_random() -> None:
    def update(h: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return 0.5 * h + torch.rand(4)

    assert NeumannRBP(solver=Picard(100, 1e-5))(update, torch.zeros(4)).converged


@EVERY_ESTIMATOR
def test_a_parameter_with_other_data_at_the_backward_pass_is_reported(estimator) -> None:
    weight = torch.full((4,), 0.5, requires_grad=True)
    found = estimator(lambda h: weight * h + 1, torch.zeros(4))
    weight.data = torch.full((4,), 0.1)
    with pytest.warns(ConvergenceWarning, match="other data"):
        found.state.sum().backward()


@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_data_that_was_replaced_several_times_is_reported(times: int) -> None:
    weight = torch.full((4,), 0.5, requires_grad=True)
    with FailurePolicy(adjoint="raise"):
        found = NeumannRBP()(lambda h: weight * h + 1, torch.zeros(4))
    for _ in range(times):
        weight.data = torch.full((4,), 0.1)
    with pytest.raises(ConvergenceError, match="other data"):
        found.state.sum().backward()


def test_sparse_parameters_are_not_checked() -> None:
    matrix = (0.3 * torch.eye(3)).to_sparse().requires_grad_()
    NeumannRBP()(lambda h: torch.sparse.mm(matrix, h) + 1, torch.zeros(3, 1)).state.sum().backward()
    assert matrix.grad is not None


@EVERY_ESTIMATOR
def test_a_parameter_reallocated_with_the_same_values_is_not_reported(estimator) -> None:
    weight = torch.full((4,), 0.5, requires_grad=True)
    found = estimator(lambda h: weight * h + 1, torch.zeros(4))
    size, values = weight.untyped_storage().nbytes(), weight.detach().clone()
    weight.untyped_storage().resize_(0)
    weight.untyped_storage().resize_(size)
    with torch.no_grad():
        weight.data.copy_(values)
    with FailurePolicy(adjoint="ignore", not_converged="raise"):
        found.state.sum().backward()
