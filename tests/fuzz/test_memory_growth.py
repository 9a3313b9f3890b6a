"""Solves do not leak memory."""

import gc
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ConvergenceError,
    ExactAdjoint,
    FailurePolicy,
    Implicit,
    NeumannRBP,
    Picard,
    SolveObserver,
    WarmStart,
    ignoring,
    observing,
)
from rbp_lightning.linear import Richardson

SOLVER = Picard(20, 1e-3)

ESTIMATORS = [BPTT(SOLVER), TBPTT(3, SOLVER), RBP(5, 0.1, solver=SOLVER), NeumannRBP(3, SOLVER)]
ESTIMATORS += [CGRBP(3, 0.1, solver=SOLVER), AdaptiveNeumann(0.2, solver=SOLVER), ExactAdjoint(solver=SOLVER)]
ESTIMATORS += [Implicit(Richardson(5, 0.1), SOLVER)]

WARM_START = WarmStart()
WEIGHT = torch.tensor(0.3, requires_grad=True)


class OddError(Exception):
    """An error raised by user code."""


def usual(number: int) -> None:
    state = ESTIMATORS[number % len(ESTIMATORS)](lambda h: torch.tanh(WEIGHT * h + 1), torch.zeros(2, 2), 1).state
    state.sum().backward()


def warm(number: int) -> None:
    estimator = ESTIMATORS[number % len(ESTIMATORS)]
    estimator(lambda h: WEIGHT * h + 1, torch.zeros(2, 2), 1, WARM_START).state.sum().backward()


def without_backward(number: int) -> None:
    ESTIMATORS[number % len(ESTIMATORS)](lambda h: WEIGHT * h + 1, torch.zeros(2, 2))


def diverging(number: int) -> None:
    with FailurePolicy(diverged="ignore", adjoint="ignore"):
        ESTIMATORS[number % len(ESTIMATORS)](lambda h: 3 * h + WEIGHT, torch.ones(2, 2), 1).state.sum().backward()


def raising(number: int) -> None:
    with FailurePolicy(diverged="raise"), pytest.raises(ConvergenceError):
        ESTIMATORS[number % len(ESTIMATORS)](lambda h: 3 * h + WEIGHT, torch.ones(2, 2))


def failing_update(number: int) -> None:
    calls = iter(range(4))

    def update(h: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise OddError
        return WEIGHT * h + 1

    with pytest.raises(OddError):
        ESTIMATORS[number % len(ESTIMATORS)](update, torch.zeros(2, 2) + 1e6)


def failing_backward(number: int) -> None:
    def fail(gradient: Tensor) -> None:
        raise OddError

    drive = (2 * WEIGHT).expand(2, 2)
    drive.register_hook(fail)
    state = ESTIMATORS[number % len(ESTIMATORS)](lambda h: 0.3 * h + drive, torch.zeros(2, 2)).state
    with pytest.raises(OddError):
        state.sum().backward()


def observed(number: int) -> None:
    with observing(SolveObserver):
        usual(number)


def nested(number: int) -> None:
    inner = ESTIMATORS[number % len(ESTIMATORS)]
    NeumannRBP(1, SOLVER)(
        lambda h: 0.3 * inner(lambda k: 0.1 * k + WEIGHT * h, torch.zeros(2)).state + 1, torch.zeros(2)
    ).state.sum().backward()


KINDS: list[Callable[[int], None]] = [
    usual, usual, usual, warm, warm, without_backward, diverging, raising, failing_update, failing_backward, observed,
    usual, warm, usual, warm, usual, nested,
]  # fmt: skip


def run(count: int) -> None:
    with ignoring():
        for number in range(count):
            KINDS[number % len(KINDS)](number // len(KINDS))
    WEIGHT.grad = None
    gc.collect()


def alive() -> Counter[str]:
    """The number of tensors and of objects of the library's classes, by class."""
    kinds = (type(one) for one in gc.get_objects())
    return Counter(
        kind.__qualname__
        for kind in kinds
        if str(kind.__module__).startswith("rbp_lightning") or issubclass(kind, Tensor)
    )


def test_solves_do_not_leak_memory(cases: Any, figures: Any) -> None:
    solves = cases(700, 20_000)
    run(cases(300, 2000))  # every kind with every estimator, to fill caches
    objects, blocks, resident = alive(), sys.getallocatedblocks(), resident_bytes()
    run(solves)
    blocks, resident = sys.getallocatedblocks() - blocks, resident_bytes() - resident
    figures.update({"solves": solves, "blocks of Python's more": blocks, "bytes more": resident})
    assert alive() - objects == Counter()
    assert blocks < solves
    if solves >= 20_000:  # in a short run, memory of other tests dominates
        assert resident < 2**20


def resident_bytes() -> int:
    """Resident memory of this process; 0 if the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0
