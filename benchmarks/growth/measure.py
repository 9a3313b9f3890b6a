"""Time and peak memory of a solve and its gradient."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.peak_memory import peak_bytes
from benchmarks.peers.networks import Case
from rbp_lightning import FixedPoint, GradientEstimator

SECONDS = 0.02
"""Least time over which applications of F are timed."""


@dataclass(frozen=True)
class Cost:
    """One repeat of a measurement.

    Attributes:
        axis: What grows.
        value: Its value.
        pair: Name of the solver and the estimator.
        repeat: Index of the repeat.
        seconds: CPU seconds of a solve and its gradient.
        step_seconds: CPU seconds of an application of F without a tape, immediately before.
        bytes: Peak memory of the solve and its gradient.
        state_bytes: Bytes of a state.
        steps: Steps of the solve.
        products: Products with the transposed Jacobian.
        status: How the solve ended.
    """

    axis: str
    value: float
    pair: str
    repeat: int
    seconds: float
    step_seconds: float
    bytes: int
    state_bytes: int
    steps: int
    products: int
    status: str

    @property
    def applications(self) -> float:
        """The time, in applications of F."""
        return self.seconds / self.step_seconds

    @property
    def states(self) -> float:
        """The memory, in states."""
        return self.bytes / self.state_bytes


def solve(case: Case, estimator: GradientEstimator) -> FixedPoint:
    """Solves the case and computes its gradient."""
    found = estimator(case.update(case.prepare(*case.parameters)), case.start, batch_dims=case.batch_dims)
    torch.autograd.grad(case.loss(found.state), case.parameters)
    return found


def step_seconds(case: Case) -> float:
    """Seconds of an application of F without a tape."""
    with torch.no_grad():
        update, state = case.update(case.prepare(*case.parameters)), case.start
        begin, count = time.process_time(), 0
        while count < 3 or time.process_time() - begin < SECONDS:
            state, count = update(state), count + 1
        return (time.process_time() - begin) / count


def costs(
    axis: str, value: float, case: Case, pairs: Mapping[str, Callable[[], GradientEstimator]], repeats: int
) -> Iterator[Cost]:
    """Measures pairs on a case in turn, after an untimed solve for the memory.

    Args:
        axis: What grows.
        value: Its value here.
        case: The case.
        pairs: Functions that make the estimators, by name.
        repeats: Number of repeats.
    """
    state_bytes = case.start.numel() * case.start.element_size()
    estimators = {name: make() for name, make in pairs.items()}
    cpu = torch.device("cpu")
    peaks = {name: peak_bytes(partial(solve, case, estimator), cpu) for name, estimator in estimators.items()}
    for repeat in range(repeats):
        for name, estimator in estimators.items():
            step, begin = step_seconds(case), time.process_time()
            found = solve(case, estimator)
            seconds = time.process_time() - begin
            products = 0 if found.adjoint is None else found.adjoint.steps
            ended = found.status.value
            yield Cost(axis, value, name, repeat, seconds, step, peaks[name], state_bytes, found.steps, products, ended)
