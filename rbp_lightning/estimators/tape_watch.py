"""Estimates the truncation error of an unrolled solve in its backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor

from rbp_lightning.estimators.adjoint_record import AdjointRecord, parameters_of
from rbp_lightning.estimators.attach_adjoint import watch_gradient
from rbp_lightning.failures import Failure
from rbp_lightning.linear.base import LinearSolution
from rbp_lightning.linear.truncation import truncation_error
from rbp_lightning.pytree import Vector, to_float32
from rbp_lightning.state_function import precision

FOLLOWED = 3
"""Number of recorded steps, from the first, after which the gradient is observed."""


class TapeWatch:
    """Observes the gradient at the first and last recorded steps, to estimate the truncation error.

    The gradients at the recorded steps are the terms of a Neumann series, which is truncated at the first step.

    Args:
        record: Where the estimated error is stored.
        batch_dims: The number of leading dimensions that index independent samples.

    Example:
        >>> from rbp_lightning.reporting import current_context
        >>> record, weight = AdjointRecord("", current_context(), [], None), torch.tensor(0.5, requires_grad=True)
        >>> watch, state = TapeWatch(record, batch_dims=0), [torch.zeros(())]
        >>> for step in range(1, 6):
        ...     state = watch.after_step(step, [weight * state[0] + 1])
        >>> watch.after_tape(5, state)[0].backward()
        >>> record.solution.error_estimate
        tensor(0.0312)
    """

    def __init__(self, record: AdjointRecord, batch_dims: int) -> None:
        self._record, self._batch_dims = record, batch_dims
        self._terms: dict[int, Vector] = {}

    def after_step(self, step: int, vector: Vector) -> Vector:
        """Observes the gradient after one of the first steps.

        Args:
            step: Number of the recorded step, from 1.
            vector: Leaves of the state after the step.
        """
        return vector if step > FOLLOWED else watch_gradient(self._watch(step, vector), vector)

    def after_tape(self, steps: int, vector: Vector, values: Vector | None = None) -> list[Tensor]:
        """Observes the gradient after the last step.

        Args:
            steps: Number of recorded steps.
            vector: Leaves of the state after the last step.
            values: Values of the returned leaves; ``None`` for those of the state.
        """

        def keep(gradient: Vector) -> None:
            self._terms = {steps + 1: gradient}

        return watch_gradient(keep, vector, values)

    def _watch(self, step: int, vector: Vector) -> Callable[[Vector], None]:
        epsilon = precision(vector)
        # The graph references this hook, which must not reference the graph; but it may reference the parameters, which
        # are only needed to skip training steps.
        skips = step == 1 and self._record.context.handler.action(Failure.TRUNCATED) == "skip"
        parameters = parameters_of(vector) if skips else None

        def keep(gradient: Vector) -> None:
            self._terms[step] = gradient
            if step == 1:
                self._finish(epsilon, parameters)

        return keep

    @torch.no_grad()
    def _finish(self, epsilon: float, parameters: list[Tensor] | None) -> None:
        terms = {step: to_float32(term) for step, term in self._terms.items()}
        self._terms = {}
        arrived = max(terms)
        first, steps = terms.pop(arrived), arrived - 1
        ending = [terms[step] for step in sorted(terms, reverse=True)] or [first]
        residual, estimate = truncation_error(ending, first, steps - 1, self._batch_dims, epsilon)
        solution = LinearSolution((), steps, steps - 1, residual, error_estimate=estimate)
        self._record.store(solution, None, lambda: parameters)
