"""What a solve returns."""

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
    """What the backward pass leaves its solution on."""

    solution: LinearSolution | None


class Residual(NamedTuple):
    """The residual of a step.

    Attributes:
        step: Its number.
        relative: Residual per sample, relative to the norm of F(h) or to ``atol / tol`` if that is more; the largest
            one of the leaves where each is judged by itself.
        absolute: ||F(h) - h|| per sample.
    """

    step: int
    relative: Tensor
    absolute: Tensor


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """Result of a forward solve.

    Attributes:
        state: The iterate whose residual is reported, of the structure of the initial state; differentiable when it was
            made with gradients enabled. Samples that diverged or ceased to be finite are at their best iterate. With a
            tolerance of 0 it is one step further, after the number of steps that was asked for.
        steps: How often the update was applied, all passes counted.
        absolute_residual: Norm of the change ||F(h) - h|| at that iterate, per sample (a scalar tensor where the state
            has no batch); of several leaves that are judged apart, that of the one with the largest residual.
        size: Norm ||F(h)|| of the state, or of that leaf, then, per sample.
        status: How the solve ended; of a batch, the worst sample's status.
        sample_status: How it ended per sample: int64, each the ``code`` of a ``Status``.
        history: The residuals, relative and absolute, of the steps at which they were observed; of all steps where
            ``history=True`` asked for them.
        tol: The solver's tolerance.
        record: Where the backward pass leaves how it solved the adjoint equation.
        states: The states after the steps that ``states_at`` named.
        penalty: That of a ``FixedPointLayer`` with one, in training mode.
        aux: What an update with ``has_aux`` returns beside the state, at the fixed point.

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
        """``absolute_residual`` relative to ``size``, per sample; infinite where the state is, or is 0 and moves."""
        relative = self.absolute_residual / self.size
        return torch.where(self.absolute_residual == 0, 0.0, relative.masked_fill(self.size.isinf(), float("inf")))

    @property
    def converged(self) -> bool:
        """Whether every sample reached the tolerance, or came as near to it as rounding allows."""
        return self.status in (Status.CONVERGED, Status.STALLED)

    @property
    def adjoint(self) -> LinearSolution | None:
        """How the adjoint equation was solved, without its vector, once a backward pass ran; ``None`` before."""
        return None if self.record is None else self.record.solution

    @property
    def sample_steps(self) -> Tensor:
        """Steps after which each sample was first seen within the tolerance, int64; ``steps`` where it never was."""
        counts = torch.full_like(self.sample_status, self.steps)
        for step, residual, _ in reversed(self.history):
            counts = torch.where(residual <= self.tol, step, counts)
        return torch.where(self.samples(Status.DIVERGED, Status.NAN), self.steps, counts)

    def samples(self, *statuses: Status) -> Tensor:
        """Which samples ended so, bool, of the shape of ``residual``.

        Args:
            statuses: Any of these.
        """
        codes = torch.tensor([status.code for status in statuses], device=self.sample_status.device)
        return (self.sample_status[..., None] == codes).any(-1)  # vmap has no isin
