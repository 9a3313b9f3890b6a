"""The adjoint by a fixed number of products, within ``torch.compile``."""

import torch
from torch import Tensor

from rbp_lightning.estimators.attach_adjoint import attach_adjoint
from rbp_lightning.linear.base import LinearSolver
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.neumann_series import NeumannSeries
from rbp_lightning.linear.richardson import Richardson
from rbp_lightning.pytree import Vector, denormalize, normalize
from rbp_lightning.solvers.fixed_steps import FixedSteps


def traced_adjoint(linear_solver: LinearSolver, solve: FixedSteps) -> Vector | None:
    """Runs a solve, differentiates its last step, and replaces the gradient by the adjoint.

    ``NeumannSeries(K)`` is computed as ``Richardson(K)`` from g.

    Args:
        linear_solver: Solves the adjoint equation.
        solve: The solve.

    Returns:
        The differentiable leaves of the fixed point; ``None`` for other linear solvers, and those with a tolerance.

    Example:
        >>> from rbp_lightning.linear import NeumannSeries
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> solve = FixedSteps(lambda h: weight * h + 1, torch.zeros(()), 0, Picard(tol=0), max_steps=30)
        >>> traced_adjoint(NeumannSeries(1), solve)[0].backward()
        >>> weight.grad  # 2 + 1 of the true 4
        tensor(3.)
    """
    if type(linear_solver) is NeumannSeries:
        steps, uniform, seed = linear_solver.steps, False, 0
    elif type(linear_solver) is Richardson and linear_solver.tol == 0:
        steps, uniform, seed = linear_solver.steps, linear_solver.start == "uniform", linear_solver.seed
    else:
        return None
    vector: list[Tensor] = _begin_tape(list(solve.without_tape(steps_after=1)))
    image = list(solve.last_steps(vector, 1))
    adjoint: list[Tensor] = _replace_gradient(vector, image, solve.batch_dims, steps, uniform, seed)
    return adjoint


# Dynamo does not support torch.autograd.grad in a custom backward, so it puts these two functions into the graph
# without tracing into them; AOTAutograd traces them.


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _begin_tape(vector: list[Tensor]) -> list[Tensor]:
    return [leaf.detach().requires_grad_() for leaf in vector]


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _replace_gradient(
    vector: list[Tensor], image: list[Tensor], batch_dims: int, steps: int, uniform: bool, seed: int
) -> list[Tensor]:
    operator = JacobianOperator(lambda leaves: leaves, vector, image, batch_dims)

    def adjoint(gradient: Vector) -> Vector:
        if steps == 0:
            return gradient
        scaled, size = normalize(gradient, always=True)
        assert size is not None  # it was divided
        linear_solver = Richardson(steps, 0.0, "uniform" if uniform else "gradient", seed)
        solution = linear_solver.solve(operator, scaled)
        return denormalize(solution.vector, size, gradient)

    return attach_adjoint(adjoint, image)
