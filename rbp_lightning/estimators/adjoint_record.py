"""What the backward pass of one solve needs and leaves behind."""

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
"""Finds the parameters whose gradient a solve makes; ``None`` stands for all."""


class AdjointRecord:
    """Belongs to one solve: who observes it, who decides about its failures, and how its adjoint was solved.

    Args:
        name: The estimator's name, for messages.
        context: Who decides about failures, and where the solve was called.
        observers: Observe the adjoint.
        warm_start: Holds the adjoint of the last solve; ``None`` where there is none.

    Attributes:
        solution: How the adjoint was solved last, without its vector; ``None`` before a backward pass.
        bounded: Which samples a bound on the error holds for, bool; ``None`` for all. The adjoint of a sample that is
            frozen is not that of F.
    """

    def __init__(
        self, name: str, context: SolveContext, observers: Sequence[SolveObserver], warm_start: WarmStart | None
    ) -> None:
        self.name, self.context, self.observers, self.warm_start = name, context, observers, warm_start
        self.solution: LinearSolution | None = None
        self.bounded: Tensor | None = None

    def keep(self, solution: LinearSolution, measured: Callable[[], Tensor] | None, parameters: FindParameters) -> None:
        """Keeps a solution, notifies the observers and has the policy act where it is not good enough.

        Args:
            solution: The solution.
            measured: Measures its residual for the observers; ``None`` where the solution's own is all there is.
            parameters: Finds the parameters whose gradient it makes.

        Raises:
            ConvergenceError: If that is the policy.
        """
        bound = solution.error_bound
        if bound is not None and self.bounded is not None:
            bound = torch.where(self.bounded, bound, float("nan"))
        self.solution = solution = replace(solution, vector=(), error_bound=bound)
        with in_context(self.context):
            if self.observers:
                seen = solution if measured is None else replace(solution, residual=measured())
                for observer in self.observers:
                    observer.on_adjoint(seen)
            self._judge(solution, parameters)

    def _judge(self, solution: LinearSolution, parameters: FindParameters) -> None:
        tolerated = 1.0 if solution.intended else self.context.handler.truncation_tol
        # A policy of 1 tolerates everything; what is left out may be more than g itself.
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
            f"({'tol' if solution.tol else 'truncation_tol'}={limit:g}), so the gradient is wrong by more than "
            "asked for",
            parameters(),
        )


def parameters_of(taped: Vector) -> list[Tensor]:
    """The leaves of the graph behind some tensors: what a backward pass through them gives a gradient to.

    Args:
        taped: The tensors.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> parameters_of([(2 * weight).sin()])[0] is weight
        True
    """
    own = [tensor for tensor in taped if tensor.requires_grad and tensor.grad_fn is None]
    return own + [node.variable for node in graph_nodes(taped) if hasattr(node, "variable")]
