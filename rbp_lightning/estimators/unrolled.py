"""Steps on a tape within the transforms of torch.func, or to any order."""

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
    """Has steps taken on the tape, once a solve has told from where and how many.

    Args:
        solve: The solve, which has ended.
        record: Knows who observes it.
        request: What is asked for.
        start: Leaves that the steps begin at, a constant; ``None`` for the initial state, with its own derivative.
        steps: How many.
        values: Leaves of the fixed point, whose derivatives are those of the last step.
        solver: Makes the steps.
        ends_with_image: Whether the last one is F(h) itself, and not the solver's next iterate.
    """
    batch_dims = solve.batch_dims - len(request.vmap_levels)
    if record.observers:  # who may want products with the Jacobian of the last step
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
