"""How often a computation waits for the device."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peers.cases import CaseName, make_case
from benchmarks.peers.networks import Case
from benchmarks.report import markdown
from rbp_lightning import RBP, ConvergenceWarning, Picard


class CountSyncs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts reads of a tensor's value, each of which waits for the device.

    Attributes:
        count: The number so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operator, and counts it if it is such a read."""
        self.count += func == torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def syncs_of_rbp(case: Case, max_steps: int = 1000, tol: float = 1e-6) -> tuple[int, int, int, int]:
    """Counts the reads of a solve to a tolerance, and those of its gradient by ``RBP`` to the same tolerance.

    Args:
        case: The network.
        max_steps: Most steps of either.
        tol: The tolerance.

    Returns:
        Steps and reads of the solve, and then of the gradient.
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


def table(names: Sequence[CaseName], device: torch.device) -> str:
    """Lays the reads of some cases out as Markdown, with the steps that they are for.

    Args:
        names: The cases.
        device: Where.
    """
    rows = []
    for name in names:
        with device:
            case = make_case(name)
        steps, reads, adjoint_steps, adjoint_reads = syncs_of_rbp(case)
        rate = 10 * (reads + adjoint_reads) / (steps + adjoint_steps)
        rows.append([name, steps, reads, adjoint_steps, adjoint_reads, f"{rate:.2f}"])
    columns = ["RBP to 1e-06", "steps of the solve", "reads", "steps of the gradient", "reads", "reads each 10 steps"]
    return markdown(columns, rows)
