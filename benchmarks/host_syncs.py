"""How often a computation waits for the device."""

import warnings
from collections.abc import Sequence

import torch

from benchmarks.counts import CountOperators
from benchmarks.peers.cases import CaseName, make_case
from benchmarks.peers.networks import Case
from rbp_lightning import RBP, ConvergenceWarning, Picard

COLUMNS = [
    "RBP to 1e-06",
    "steps of the solve",
    "reads in the solve",
    "products of the adjoint",
    "reads in the adjoint",
    "reads per 10 steps and products",
]


class CountSyncs(CountOperators):
    """Counts reads of a tensor's value, each of which waits for the device."""

    def __init__(self) -> None:
        super().__init__(torch.ops.aten._local_scalar_dense.default)


def syncs_of_rbp(case: Case, max_steps: int = 1000, tol: float = 1e-6) -> tuple[int, int, int, int]:
    """Counts the reads in a solve to a tolerance, and in its adjoint by ``RBP`` to the same tolerance.

    Args:
        case: The network.
        max_steps: Step limit of both.
        tol: The tolerance.

    Returns:
        Steps and reads of the solve, then products and reads of the adjoint.
    """
    estimator = RBP(max_steps, tol, solver=Picard(max_steps, tol))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with CountSyncs() as forward:
            fixed_point = estimator(case.update(case.prepare(*case.parameters)), case.start, batch_dims=case.batch_dims)
        with CountSyncs() as backward:
            torch.autograd.grad(case.loss(fixed_point.state), case.parameters)
    assert fixed_point.adjoint is not None
    return fixed_point.steps, forward.count, fixed_point.adjoint.steps, backward.count


def reads(names: Sequence[CaseName], device: torch.device) -> list[dict[str, str]]:
    """Counts the reads in each case; returns a row for each, with the numbers of steps.

    Args:
        names: The cases.
        device: The device to run on.
    """
    rows = []
    for name in names:
        with device:
            case = make_case(name)
        steps, forward, adjoint_steps, backward = syncs_of_rbp(case)
        rate = 10 * (forward + backward) / (steps + adjoint_steps)
        values = [name, *map(str, (steps, forward, adjoint_steps, backward)), f"{rate:.2f}"]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows
