"""What the estimators that solve an adjoint equation share."""

from abc import abstractmethod
from dataclasses import replace

import torch
from torch.utils._pytree import tree_leaves, tree_map

from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.replace_gradient import replace_gradient
from rbp_lightning.fixed_point import ConvergenceTest
from rbp_lightning.linalg import Linearization
from rbp_lightning.pytree import State, Vector, divisor, in_dtypes_of, scaled, widened
from rbp_lightning.solvers import Update
from rbp_lightning.warm_start import WarmStart


class ImplicitEstimator(GradientEstimator):
    """Replaces the gradient g at the fixed point by z = (I - J^T)^-1 g, or by an approximation of it.

    The fixed point is found without a tape; only one more step is taped, and all Jacobian products go through it. The
    memory is that of one step, however many were taken (paper, section 3): activation checkpointing saves nothing more,
    and evaluates the update once for each product.

    Args:
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Example:
        >>> class DampedNeumann(ImplicitEstimator):
        ...     "Keeps one correction of the Neumann series, at half its weight."
        ...     def solve_adjoint(self, linearization, gradient, start):
        ...         return [g + 0.5 * v for g, v in zip(gradient, linearization.vjp(gradient))]
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> DampedNeumann()(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # 2.5 of the true 4
        tensor(2.5000)
    """

    @abstractmethod
    def solve_adjoint(self, linearization: Linearization, gradient: Vector, start: Vector | None) -> Vector:
        """Solves (I - J^T) z = g.

        Args:
            linearization: Products with J and J^T at the fixed point.
            gradient: Leaves of g, in float32 or wider, scaled to norm 1, to some 2e-4, in every sample that has a
                gradient.
            start: Leaves of the adjoint of the last solve, or ``None`` where there is none; an iteration can start
                from it.

        Returns:
            Leaves of z. An implementation that knows its residual hands it to ``report_adjoint``; for others it is
            measured, by one more product.
        """

    def solve_with_gradient(
        self, update: Update, state: State, test: ConvergenceTest, warm_start: WarmStart | None
    ) -> tuple[State, int]:
        """Runs the solver without a tape, tapes one more step and replaces the gradient behind it."""
        observers = self._observers_of_solve  # the update may contain solves of its own
        state, steps = self.iterate_untaped(update, state, 1, test)
        state = tree_map(lambda leaf: leaf.detach().requires_grad_(), state)
        following = self.taped_step(update, state, test)
        linearization = Linearization(update, state, tree_leaves(following), test.batch_dims)

        def adjoint(gradient: Vector) -> Vector:
            size = divisor(gradient, test.batch_dims)
            wide = scaled(1 / size, widened(gradient))
            self.adjoint = None
            solution = self.solve_adjoint(linearization, wide, warm_start.adjoint_like(wide) if warm_start else None)
            products = linearization.products
            if observers or self.adjoint is None:  # somebody wants to know, or nobody has looked
                residual = linearization.adjoint_residual(wide, solution)
                for observer in observers:
                    observer.on_adjoint(residual, products)
                if self.adjoint is None:
                    self.report_adjoint(products, residual)
            report = self.adjoint
            if report is not None and report.error_bound is not None:
                # The z* of a sample whose forward solve failed is that of another map.
                bound = torch.where(test.failed(), float("nan"), report.error_bound)
                self.adjoint = replace(report, error_bound=bound)
            if warm_start:
                warm_start.keep_adjoint(solution)
            return in_dtypes_of(gradient, scaled(size, solution))

        return replace_gradient(adjoint, following), steps + 1
