"""Whether a solve that believes to have converged has."""

import torch
from torch import Tensor

from rbp_lightning.agreement import largest


class Verification:
    """Compares true residuals with the tolerance, where a solver's own no longer fall: rounding sets the two apart.

    Args:
        tol: The tolerance.

    Attributes:
        converged: Whether every sample was within the tolerance at the last call, in all processes that share it.
    """

    def __init__(self, tol: float) -> None:
        self._tol = tol
        self._before: Tensor | None = None
        self.converged = False

    def goes_on(self, residual: Tensor) -> bool:
        """Whether going on from the true residual promises something: it is above the tolerance, and has halved.

        Where processes share the solve, it is whether it does in any of them.

        Args:
            residual: The true relative residual of each sample.
        """
        above = residual > self._tol
        improves = above if self._before is None else above & (residual <= 0.5 * self._before)
        self._before = residual
        # One transfer for both.
        improvable, failed = largest(torch.stack([improves.any(), ~(residual <= self._tol).all()]).float()).tolist()
        self.converged = not failed
        return bool(improvable)
