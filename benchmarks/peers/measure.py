"""How exact a method is, and how long it takes."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.peers.methods import MAX_STEPS, Method
from benchmarks.peers.networks import Case
from benchmarks.timing import interleaved
from rbp_lightning import ExactAdjoint, JacobianOperator, Picard, spectral_radius

STEP = 10**0.25
TOLERANCES = [0.1 / STEP**count for count in range(28)]
"""What is tried, the loosest first, down to what float32 allows; then the last step is halved five times."""


@dataclass(frozen=True)
class Calibrated:
    """A method at the loosest tolerance at which it is as exact as asked for.

    Attributes:
        name: Its name.
        method: The method.
        tol: The tolerance.
        error: Relative error of the gradient there.
    """

    name: str
    method: Method
    tol: float
    error: float


def gradient(case: Case, state: Tensor) -> Tensor:
    """The gradient of the case's loss with respect to all parameters, as one vector."""
    return torch.cat([leaf.flatten() for leaf in torch.autograd.grad(case.loss(state), case.parameters)])


def radius_of(case: Case) -> float:
    """Spectral radius of dF/dh at the state after 3,000 steps."""
    with torch.no_grad():
        update = case.update(case.prepare(*case.parameters))
        state = case.start
        for _ in range(3000):
            state = update(state)
    return float(spectral_radius(JacobianOperator.at(update, state, case.batch_dims)).value.max())


def exact_gradient(case: Case) -> Tensor:
    """The gradient to compare with.

    Args:
        case: The case in float64.
    """
    estimator = ExactAdjoint(dense_size=512, solver=Picard(MAX_STEPS, 1e-13))
    update = case.update(case.prepare(*case.parameters))
    return gradient(case, estimator(update, case.start, batch_dims=case.batch_dims).state)


def calibrate(case: Case, exact: Tensor, name: str, method: Method, radius: float, target: float) -> Calibrated | str:
    """Finds the loosest tolerance at which a method is as exact as asked for.

    Args:
        case: The case.
        exact: Its exact gradient.
        name: The method's name.
        method: The method.
        radius: Spectral radius of the case.
        target: Relative error of the gradient.

    Returns:
        The calibrated method, or why there is none.
    """

    def error_at(tol: float) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = gradient(case, method(case, tol, radius))
        return float((found.double() - exact).norm() / exact.norm())

    error = float("nan")
    for tol in TOLERANCES:
        try:
            error = error_at(tol)
        except Exception as reason:  # a peer's own, whatever it is
            return f"fails: {type(reason).__name__}: {str(reason).splitlines()[0][:80]}"
        if error <= target:
            break
    else:
        return f"error {error:.0e} at best"
    loose = tol * STEP
    for _ in range(5):
        between = (tol * loose) ** 0.5
        try:
            found = error_at(between)
        except Exception:  # as above; the tighter tolerance is known to do
            break
        if found <= target:
            tol, error = between, found
        else:
            loose = between
    return Calibrated(name, method, tol, error)


def seconds(case: Case, methods: Sequence[Calibrated], radius: float, repeats: int) -> dict[str, list[float]]:
    """Times methods in turn, each a solve and its gradient.

    Args:
        case: The case.
        methods: The methods.
        radius: Spectral radius of the case.
        repeats: How often.
    """

    def run(one: Calibrated) -> None:
        gradient(case, one.method(case, one.tol, radius))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return interleaved({one.name: partial(run, one) for one in methods}, repeats)
