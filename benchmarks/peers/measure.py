"""Accuracy and time of a method."""

import functools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.benchmark import timer

from benchmarks.peers.methods import MAX_STEPS, Method
from benchmarks.peers.networks import Case
from benchmarks.timing import interleaved
from rbp_lightning import ExactAdjoint, JacobianOperator, Picard, spectral_radius

STEP = 10**0.25
TOLERANCES = [0.1 / STEP**count for count in range(28)]
"""The tolerances to try, loosest first, down to the limit of float32; then the last interval is halved five times."""

PLATEAU = 12
"""The search ends after this many tighter tolerances, a factor of 1000, without a smaller error."""


@dataclass(frozen=True)
class Setting:
    """The loosest tolerance at which a method reaches an error.

    Attributes:
        tol: The tolerance.
        error: Relative error of the gradient there.
    """

    tol: float
    error: float


@dataclass(frozen=True)
class Calibrated(Setting):
    """A method with its setting.

    Attributes:
        name: Its name.
        method: The method.
    """

    name: str
    method: Method


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
    """The exact gradient.

    Args:
        case: The case in float64.
    """
    estimator = ExactAdjoint(dense_size=512, solver=Picard(MAX_STEPS, 1e-13))
    update = case.update(case.prepare(*case.parameters))
    return gradient(case, estimator(update, case.start, batch_dims=case.batch_dims).state)


def loosest(error_at: Callable[[float], float], target: float) -> Setting | str:
    """Finds the loosest tolerance at which a method reaches an error.

    Args:
        error_at: Maps a tolerance to the relative error of the method's gradient.
        target: The error to reach.

    Returns:
        The setting, or why there is none.
    """
    least, since = float("inf"), 0
    for tol in TOLERANCES:
        try:
            error = error_at(tol)
        except Exception as reason:  # packages raise exceptions of their own
            return f"fails: {type(reason).__name__}: {(str(reason).splitlines() or [''])[0][:80]}"
        if error <= target:
            break
        since = 0 if error < 0.99 * least else since + 1
        least = min(least, error)
        if since == PLATEAU:
            break
    if not error <= target:
        return f"error {least:.0e} at best"
    loose = tol * STEP
    for _ in range(5):
        between = (tol * loose) ** 0.5
        try:
            found = error_at(between)
        except Exception:  # as above; the tighter tolerance is known to work
            break
        if found <= target:
            tol, error = between, found
        else:
            loose = between
    return Setting(tol, error)


def calibrate(
    case: Case, exact: Tensor, name: str, method: Method, radius: float, targets: Sequence[float]
) -> list[Calibrated | str]:
    """Finds the loosest tolerances at which a method reaches several errors.

    Args:
        case: The case.
        exact: Its exact gradient.
        name: The method's name.
        method: The method.
        radius: Spectral radius of the case.
        targets: Relative errors of the gradient.

    Returns:
        For each error the calibrated method, or why there is none.
    """

    @functools.cache
    def error_at(tol: float) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = gradient(case, method(case, tol, radius))
        return float((found.double() - exact).norm() / exact.norm())

    outcomes = [loosest(error_at, target) for target in targets]
    return [one if isinstance(one, str) else Calibrated(one.tol, one.error, name, method) for one in outcomes]


def seconds(case: Case, methods: Sequence[Calibrated], radius: float, repeats: int) -> dict[str, list[float]]:
    """Times methods in turn, each for a solve and its gradient. On a CPU these are CPU times.

    Args:
        case: The case.
        methods: The methods.
        radius: Spectral radius of the case.
        repeats: Number of repeats.
    """

    def run(one: Calibrated) -> None:
        gradient(case, one.method(case, one.tol, radius))

    clock = time.process_time if case.start.device.type == "cpu" else timer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return interleaved({one.name: functools.partial(run, one) for one in methods}, repeats, clock)
