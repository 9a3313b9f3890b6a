"""What a training step consists of, and how long that takes."""

import time
from dataclasses import dataclass

import torch

from benchmarks.devices import synchronize
from benchmarks.peers.cases import Case
from rbp_lightning import GradientEstimator


@dataclass(frozen=True)
class Parts:
    """Seconds of what any implementation must do.

    Attributes:
        prepare: What a step uses is made from the parameters, on the tape.
        step: One application of the update, without a tape.
        taped: One application on the tape.
        loss: The loss, and its gradient with respect to the fixed point.
        product: One product with the transposed Jacobian, through the taped step.
        sum: Adding it up.
        parameters: The product of the adjoint with the taped step's derivative by the parameters, through what was
            prepared.
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
        """What comes once, beyond T steps and K products; one of the T steps is the taped one."""
        return self.prepare + self.taped - self.step + self.loss + self.parameters

    def total(self, steps: int, products: int) -> float:
        """Seconds of a training step that does nothing else."""
        return steps * self.step + products * (self.product + self.sum) + self.once


def timed_parts(case: Case, steps: int, products: int) -> Parts:
    """Does a training step by hand, and times its parts.

    Args:
        case: The network.
        steps: T, at least 2.
        products: K, at least 1.
    """
    laps: list[float] = []

    def lap() -> None:
        synchronize(case.start.device)
        laps.append(time.perf_counter())

    lap()
    prepared = case.prepare(*case.parameters)
    lap()
    with torch.no_grad():
        state = case.start
        for _ in range(steps - 1):
            state = case.step(state, *prepared)
    lap()
    state.requires_grad_()
    following = case.step(state, *prepared)
    lap()
    found = following.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(case.loss(found), found)
    lap()
    cotangent = gradient
    for _ in range(products):
        (cotangent,) = torch.autograd.grad(following, state, cotangent, retain_graph=True)
    lap()
    total = gradient.clone()
    for _ in range(products):
        total += cotangent
    lap()
    torch.autograd.grad(following, case.parameters, total)
    lap()
    counts = (1, steps - 1, 1, 1, products, products, 1)
    return Parts(*((after - before) / count for before, after, count in zip(laps, laps[1:], counts, strict=False)))


def timed_whole(case: Case, estimator: GradientEstimator) -> float:
    """Seconds of a solve and its gradient by an estimator."""
    synchronize(case.start.device)
    begin = time.perf_counter()
    update = case.update(case.prepare(*case.parameters))
    state = estimator(update, case.start, batch_dims=case.batch_dims).state
    torch.autograd.grad(case.loss(state), case.parameters)
    synchronize(case.start.device)
    return time.perf_counter() - begin
