"""Verifies the convergence of a linear solve with its true residual."""

import torch
from torch import Tensor

from rbp_lightning.agreement import largest


class Verification:
    """Compares true residuals, which differ from those of a recurrence by rounding, with the tolerance.

    Args:
        tol: The tolerance.

    Attributes:
        converged: Whether, at the last call, every sample of all processes that share the solve was within the
            tolerance.
    """

    def __init__(self, tol: float) -> None:
        self._tol = tol
        self._before: Tensor | None = None
        self.converged = False

    def should_continue(self, residual: Tensor) -> bool:
        """Whether to restart from the true residual: in some sample it is above the tolerance, and has halved.

        The samples are those of all processes that share the solve.

        Args:
            residual: The true relative residual of each sample.
        """
        above = residual > self._tol
        improves = above if self._before is None else above & (residual <= 0.5 * self._before)
        self._before = residual
        # One transfer from the device for both.
        improvable, failed = largest(torch.stack([improves.any(), ~(residual <= self._tol).all()]).float()).tolist()
        self.converged = not failed
        return bool(improvable)
