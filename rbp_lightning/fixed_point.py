"""The result of a forward solve."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rbp_lightning.linear.base import LinearSolution
from rbp_lightning.pytree import State
from rbp_lightning.status import Status


class HoldsSolution(Protocol):
    """Where the backward pass stores its adjoint solution."""

    solution: LinearSolution | None


class Residual(NamedTuple):
    """The residual of one step.

    Attributes:
        step: The number of the step.
        relative: Relative residual ||F(h) - h|| / max(||F(h)||, atol / tol) per sample; with ``per_leaf`` the largest
            over the leaves.
        absolute: Absolute residual ||F(h) - h|| per sample.
    """

    step: int
    relative: Tensor
    absolute: Tensor


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """The result of a forward solve.

    Attributes:
        state: The iterate h whose residual is reported, with the structure of the initial state; differentiable if
            gradients were enabled. Samples that diverged or became non-finite are frozen at their best iterate. If
            ``tol`` is 0, it is F(h) of the last step instead.
        steps: Number of applications of the update, including repeated passes.
        absolute_residual: Absolute residual ||F(h) - h|| per sample (a scalar tensor for a state without a batch);
            with ``per_leaf``, that of the leaf with the largest relative residual.
        size: Norm ||F(h)|| of the state, or of that leaf, per sample.
        status: How the solve ended: the worst status of all samples.
        sample_status: How the solve ended for each sample: int64, the ``code`` of a ``Status``.
        history: The residuals of the steps at which they were computed; of all steps with ``history=True``.
        tol: The solver's tolerance.
        record: Where the backward pass stores how it solved the adjoint equation.
        states: The states after the steps listed in ``states_at``.
        penalty: The penalty of a ``FixedPointLayer`` that has one, in training mode.
        aux: The auxiliary output of an update with ``has_aux``, at the fixed point.

    Example:
        >>> fixed_point = NeumannRBP()(torch.cos, torch.zeros(()))
        >>> fixed_point.steps, fixed_point.converged, fixed_point.state.detach()
        (12, True, tensor(0.7391))
    """

    state: State
    steps: int
    absolute_residual: Tensor
    size: Tensor = field(repr=False)
    status: Status
    sample_status: Tensor
    history: Sequence[Residual] = field(repr=False)
    tol: float = field(repr=False)
    record: HoldsSolution | None = field(default=None, repr=False)
    states: Sequence[State] = field(default=(), repr=False)
    penalty: Tensor | None = field(default=None, repr=False)
    aux: Any = field(default=None, repr=False)

    @cached_property
    def residual(self) -> Tensor:
        """Relative residual ``absolute_residual / size`` per sample; infinite where ``size`` is 0 or infinite."""
        relative = self.absolute_residual / self.size
        return torch.where(self.absolute_residual == 0, 0.0, relative.masked_fill(self.size.isinf(), float("inf")))

    @property
    def converged(self) -> bool:
        """Whether every sample reached the tolerance, or stalled at the level of rounding."""
        return self.status in (Status.CONVERGED, Status.STALLED)

    @property
    def adjoint(self) -> LinearSolution | None:
        """How the last backward pass solved the adjoint equation, without the vector; ``None`` before the first."""
        return None if self.record is None else self.record.solution

    @property
    def sample_steps(self) -> Tensor:
        """The first checked step at which each sample was within the tolerance, int64; ``steps`` if it never was."""
        counts = torch.full_like(self.sample_status, self.steps)
        for step, residual, _ in reversed(self.history):
            counts = torch.where(residual <= self.tol, step, counts)
        return torch.where(self.samples(Status.DIVERGED, Status.NAN), self.steps, counts)

    def samples(self, *statuses: Status) -> Tensor:
        """Which samples ended with one of the given statuses: bool, of the shape of ``residual``.

        Args:
            statuses: The statuses.
        """
        codes = torch.tensor([status.code for status in statuses], device=self.sample_status.device)
        return (self.sample_status[..., None] == codes).any(-1)  # torch.isin does not support vmap
