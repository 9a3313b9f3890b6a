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
"""Time that the applications of F are timed for, at least."""


@dataclass(frozen=True)
class Cost:
    """One repeat of a measurement.

    Attributes:
        axis: What grows.
        value: How large it is.
        pair: Name of the solver and the estimator.
        repeat: Which repeat.
        seconds: Seconds of the processor, which other programs have no share in, for a solve and its gradient.
        step_seconds: Those of an application of F without a tape, right before.
        bytes: Peak of the memory that the solve and its gradient took.
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
        """Applications of F that would take as long."""
        return self.seconds / self.step_seconds

    @property
    def states(self) -> float:
        """States that would take as much memory."""
        return self.bytes / self.state_bytes


def solve(case: Case, estimator: GradientEstimator) -> FixedPoint:
    """Solves the case and takes its gradient."""
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
    """Measures pairs on a case in turn, after a solve that is not timed but measured for its memory.

    Args:
        axis: What grows.
        value: How large it is here.
        case: The case.
        pairs: Makes the estimators.
        repeats: How often each is timed.
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
