"""Implicit differentiation with any linear solver."""

from functools import partial

import torch
from torch import Tensor

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.adjoint_record import AdjointRecord, parameters_of
from rbp_lightning.estimators.attach_adjoint import attach_adjoint
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.chord_steps import Inverse, chord_steps
from rbp_lightning.estimators.coupled_samples import samples_are_coupled
from rbp_lightning.estimators.derivative_request import Attach, DerivativeRequest
from rbp_lightning.estimators.traced_adjoint import traced_adjoint
from rbp_lightning.linear.base import LinearSolver
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector, denormalize, normalize
from rbp_lightning.reporting import in_context
from rbp_lightning.solvers import FixedPointAdjoint, FixedPointSolver, Solve
from rbp_lightning.solvers.fixed_steps import FixedSteps
from rbp_lightning.state_function import outside_autocast


class Implicit(GradientEstimator):
    """Implicit differentiation: replaces the gradient g at the fixed point by z = (I - J^T)^-1 g or an approximation.

    The fixed point is found without recording a graph. Only one more step is recorded, which all products with the
    Jacobian use, so memory does not depend on the number of steps (paper, section 3). Activation checkpointing saves
    little more, and evaluates the update once for each product.

    Args:
        linear_solver: Solves (I - J^T) z = g: a linear solver such as ``GMRES()``, or a forward solver such as
            ``Anderson()``, since z = J^T z + g is a fixed point too; ``None`` is ``Auto(tol=1e-4)``.
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Raises:
        UserError: If an argument is not a solver.

    Example:
        >>> from rbp_lightning.linear import Richardson
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> Implicit(Richardson(steps=40, tol=1e-6))(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.0000)
    """

    def __init__(
        self,
        linear_solver: LinearSolver | FixedPointSolver | None = None,
        solver: FixedPointSolver | None = None,
    ) -> None:
        super().__init__(solver)
        if linear_solver is None or isinstance(linear_solver, FixedPointSolver):
            linear_solver = FixedPointAdjoint(linear_solver)
        if not isinstance(linear_solver, LinearSolver):
            raise UserError(
                f"{type(self).__name__}: linear_solver={linear_solver!r} is not a solver: pass one of "
                "rbp_lightning.linear, such as GMRES(), or a forward solver."
            )
        self.linear_solver = linear_solver

    def differentiate(self, solve: Solve, record: AdjointRecord) -> Vector:
        """Runs the solver without gradients, records one more step, and replaces the gradient by the adjoint."""
        linear_solver = self.linear_solver_for(solve)
        taped, image = self._linearised(solve)

        def adjoint(gradient: Vector) -> Vector:
            return _solve_in_context(linear_solver, taped.fresh(), gradient, record, image)

        return attach_adjoint(adjoint, image, solve.values(image))

    def differentiate_to_order(self, solve: Solve, record: AdjointRecord, request: DerivativeRequest) -> Attach:
        """Runs the solver without gradients, and then takes chord steps from the fixed point."""
        linear_solver = self.linear_solver_for(solve)
        taped, image = self._linearised(solve)
        transposed = taped.transposed()
        inverse = Inverse(
            apply=lambda vector: _solve_in_context(linear_solver, transposed.fresh(), vector, record, image),
            apply_transposed=lambda vector: _solve_in_context(linear_solver, taped.fresh(), vector, record, image),
            vmap_levels=request.vmap_levels,
        )
        state = solve.values(image)
        return lambda function, _: chord_steps(function, request.lift(state), inverse, request.order)

    def differentiate_traced(self, solve: FixedSteps) -> Vector | None:
        """Does the same for a linear solver with a fixed number of steps."""
        return traced_adjoint(self.linear_solver, solve)

    def linear_solver_for(self, solve: Solve) -> LinearSolver:
        """The linear solver of one solve; a subclass may share information from the forward solve with it.

        Args:
            solve: The solve, before it begins.
        """
        return self.linear_solver

    def _linearised(self, solve: Solve) -> tuple[JacobianOperator, Vector]:
        """The Jacobian at the fixed point, and F there with its graph."""
        start = solve.without_tape(steps_after=1)
        for leaf in start:
            leaf.requires_grad_()
        solve.freezing_failures(partial(solve.last_steps, start, 1))
        vector, image = solve.last_taped
        function, frozen = solve.function, solve.frozen
        # Forward mode evaluates the update again, with frozen samples at their best iterates.
        evaluated = function if frozen.mask is None else lambda leaves: frozen.apply(function, leaves)[1]
        return JacobianOperator(evaluated, vector, image, solve.batch_dims, self.solver.per_leaf), image


def _solve_in_context(
    linear_solver: LinearSolver, operator: JacobianOperator, gradient: Vector, record: AdjointRecord, image: Vector
) -> Vector:
    with in_context(record.context):
        return _solve(linear_solver, operator, gradient, record, image)


def _solve(
    linear_solver: LinearSolver, operator: JacobianOperator, gradient: Vector, record: AdjointRecord, image: Vector
) -> Vector:
    def parameters() -> list[Tensor]:
        return parameters_of(image)

    if operator.batch_dims and samples_are_coupled(operator, record.name, record.context.place, parameters):
        operator = operator.as_one_sample()
    # Scaling keeps norms and half-precision products in range. One factor for all samples, because they may act on each
    # other.
    scaled, size = normalize(gradient, always=operator.epsilon > torch.finfo(torch.float32).eps)
    warm_start = None if operator.is_transposed else record.warm_start  # it holds adjoints of J^T only
    start = None if warm_start is None else warm_start.adjoint_like(scaled)
    with outside_autocast(gradient[0].device.type):  # a backward pass may run under autocast
        solution = linear_solver.solve(operator, scaled, start)
    vector = solution.vector

    def measure_residual() -> Tensor:
        return operator.adjoint_residual(scaled, vector)

    record.store(solution, measure_residual, parameters)
    if warm_start is not None:
        warm_start.keep_adjoint(solution, scaled)
    return vector if size is None else denormalize(vector, size, gradient)
