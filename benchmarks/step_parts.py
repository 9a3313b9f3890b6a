"""The parts of a training step, and their times."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.benchmark import timer

from benchmarks.peers.networks import Case
from rbp_lightning import GradientEstimator


@dataclass(frozen=True)
class Parts:
    """Seconds of the work that any implementation has to do.

    Attributes:
        prepare: Preparing what a step uses from the parameters, on the tape.
        step: One application of the update, without a tape.
        taped: One application on the tape.
        loss: The loss, and its gradient with respect to the fixed point.
        product: One product with the transposed Jacobian, through the taped step.
        sum: Adding the product to the sum.
        parameters: The product of the adjoint with the derivative of the taped step, and of what was prepared for it,
            with respect to the parameters.
    """

    prepare: float
    step: float
    taped: float
    loss: float
    product: float
    sum: float
    parameters: float

    @property
    def once(self) -> float:
        """The work done once, beyond T steps and K products; one of the T steps is the taped one."""
        return self.prepare + self.taped - self.step + self.loss + self.parameters

    def total(self, steps: int, products: int) -> float:
        """Seconds of a training step that does nothing else."""
        return steps * self.step + products * (self.product + self.sum) + self.once


def timed_parts(case: Case, steps: int, products: int, clock: Callable[[], float] = timer) -> Parts:
    """Runs a training step by hand, and times its parts.

    Args:
        case: The network.
        steps: T, at least 2.
        products: K, at least 1.
        clock: The clock; by default wall-clock time, which waits for the device.
    """
    laps = [clock()]
    prepared = case.prepare(*case.parameters)
    laps.append(clock())
    with torch.no_grad():
        state = case.start
        for _ in range(steps - 1):
            state = case.step(state, *prepared)
    laps.append(clock())
    state.requires_grad_()
    following = case.step(state, *prepared)
    laps.append(clock())
    found = following.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(case.loss(found), found)
    laps.append(clock())
    cotangent = gradient
    for _ in range(products):
        (cotangent,) = torch.autograd.grad(following, state, cotangent, retain_graph=True)
    laps.append(clock())
    total = gradient.clone()
    for _ in range(products):
        total += cotangent
    laps.append(clock())
    torch.autograd.grad(following, case.parameters, total)
    laps.append(clock())
    counts = (1, steps - 1, 1, 1, products, products, 1)
    return Parts(*((after - before) / count for before, after, count in zip(laps, laps[1:], counts, strict=False)))


def timed_whole(case: Case, estimator: GradientEstimator) -> float:
    """Seconds of a solve and its gradient with an estimator."""
    begin = timer()
    update = case.update(case.prepare(*case.parameters))
    state = estimator(update, case.start, batch_dims=case.batch_dims).state
    torch.autograd.grad(case.loss(state), case.parameters)
    return timer() - begin
