"""Records how the backward pass of a solve solved the adjoint equation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from rbp_lightning.agreement import anywhere, largest_of
from rbp_lightning.estimators.observer import SolveObserver
from rbp_lightning.estimators.warm_start import WarmStart
from rbp_lightning.failures import Failure
from rbp_lightning.linear.base import LinearSolution
from rbp_lightning.linear.graph import graph_nodes
from rbp_lightning.pytree import Vector
from rbp_lightning.reporting import SolveContext, in_context, report

FindParameters: TypeAlias = Callable[[], Iterable[Tensor] | None]
"""Finds the parameters whose gradient a solve computes; ``None`` stands for all."""


class AdjointRecord:
    """The adjoint solution of one solve, with the observers and failure handler of the solve.

    Args:
        name: The estimator's name, for messages.
        context: The failure handler, and the line that called the solve.
        observers: Observers of the solve.
        warm_start: Holds the adjoint of the last solve; ``None`` without a warm start.

    Attributes:
        solution: The last adjoint solution, without its vector; ``None`` before a backward pass.
        bounded: The samples for which an error bound holds, bool; ``None`` for all. It does not for frozen samples.
    """

    def __init__(
        self, name: str, context: SolveContext, observers: Sequence[SolveObserver], warm_start: WarmStart | None
    ) -> None:
        self.name, self.context, self.observers, self.warm_start = name, context, observers, warm_start
        self.solution: LinearSolution | None = None
        self.bounded: Tensor | None = None

    def store(
        self, solution: LinearSolution, measure_residual: Callable[[], Tensor] | None, parameters: FindParameters
    ) -> None:
        """Stores a solution, notifies the observers, and reports a solution that is not accurate enough.

        Args:
            solution: The solution.
            measure_residual: Computes the true residual for the observers; ``None`` uses that of the solution.
            parameters: Finds the parameters whose gradient it computes.

        Raises:
            ConvergenceError: If the solution is not accurate enough and the policy is to raise.
        """
        bound = solution.error_bound
        if bound is not None and self.bounded is not None:
            bound = torch.where(self.bounded, bound, float("nan"))
        self.solution = solution = replace(solution, vector=(), error_bound=bound)
        with in_context(self.context):
            if self.observers:
                shown = solution if measure_residual is None else replace(solution, residual=measure_residual())
                for observer in self.observers:
                    observer.on_adjoint(shown)
            self._judge(solution, parameters)

    def _judge(self, solution: LinearSolution, parameters: FindParameters) -> None:
        tolerated = 1.0 if solution.intended else self.context.handler.truncation_tol
        # A policy of 1 tolerates any truncation error, which can be larger than 1.
        limit = solution.tol or (tolerated if tolerated < 1 else torch.finfo(solution.residual.dtype).max)
        good_enough = (solution.tol and solution.converged) or solution.worst <= limit
        if not anywhere(not good_enough):
            return
        worst = largest_of(solution.worst)
        if solution.error_estimate is not None:
            figure = "an estimated relative error"
        else:
            figure = "a relative residual" if solution.error_bound is None else "a bound on its relative error"
        report(
            Failure.ADJOINT if solution.error_estimate is None else Failure.TRUNCATED,
            f"{self.name}: The adjoint solve took {solution.steps} steps to {figure} of {worst:.2e} "
            f"({'tol' if solution.tol else 'truncation_tol'}={limit:g}), so the gradient is less accurate than "
            "requested",
            parameters(),
        )


def parameters_of(taped: Vector) -> list[Tensor]:
    """The leaves of the autograd graph of some tensors, which receive a gradient in the backward pass.

    Args:
        taped: The tensors.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> parameters_of([(2 * weight).sin()])[0] is weight
        True
    """
    own = [tensor for tensor in taped if tensor.requires_grad and tensor.grad_fn is None]
    return own + [node.variable for node in graph_nodes(taped) if hasattr(node, "variable")]
