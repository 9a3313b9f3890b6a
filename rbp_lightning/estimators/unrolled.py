"""Unrolled steps within the transforms of torch.func, or for derivatives of any order."""

from collections.abc import Callable

import torch

from rbp_lightning.estimators.adjoint_record import AdjointRecord
from rbp_lightning.estimators.derivative_request import Attach, DerivativeRequest
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver, Solve
from rbp_lightning.state_function import outside_autocast


def unrolled(
    solve: Solve,
    record: AdjointRecord,
    request: DerivativeRequest,
    start: Vector | None,
    steps: int,
    values: Vector,
    solver: FixedPointSolver,
    ends_with_image: bool,
) -> Attach:
    """Returns a function that repeats the steps of a finished solve with gradients.

    Args:
        solve: The finished solve.
        record: Has the observers of the solve.
        request: The requested derivatives.
        start: Leaves at which the steps start, a constant; ``None`` for the initial state, with its derivative.
        steps: Number of steps.
        values: Leaves of the fixed point, which get the derivatives of the last step.
        solver: The solver that takes the steps.
        ends_with_image: Whether the last step returns F(h), and not the solver's next iterate.
    """
    batch_dims = solve.batch_dims - len(request.vmap_levels)
    if record.observers:  # they may take products with the Jacobian of the last step
        with torch.enable_grad():
            vector = [leaf.detach().requires_grad_() for leaf in solve.measured]
            solve.last_taped = vector, solve.frozen.apply(solve.function, vector)[1]

    def attach(function: Callable[[Vector], Vector], initial: Vector) -> Vector:
        vector = initial if start is None else request.lift(start)
        memory = solver.init(vector, batch_dims)
        for left in reversed(range(steps)):
            image = function(vector)
            if left == 0 and ends_with_image:
                vector = image
            else:
                with outside_autocast(image[0].device.type):
                    vector, memory = solver.step(vector, image, memory)
        pairs = zip(request.lift(values), vector, strict=True)
        return [leaf + (value - leaf).detach() for value, leaf in pairs]

    return attach
