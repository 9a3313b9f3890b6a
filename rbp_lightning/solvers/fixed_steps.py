"""A forward solve of a number of steps that reads no values, so that it can be put into a graph."""

import torch

from rbp_lightning.pytree import State, Vector, flatten_state
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.convergence import ConvergenceTest
from rbp_lightning.state_function import StateFunction, Update, outside_autocast, precision


class FixedSteps:
    """The steps that ``Solve`` takes with a tolerance of 0, without its checks: no sample is frozen.

    It is what ``torch.compile``, ``torch.export`` and ``torch.jit.trace`` see of a solve.

    Args:
        update: The map F.
        initial_state: Where to start.
        batch_dims: The number of leading dimensions that index independent samples.
        solver: How the next iterate is made.
        max_steps: How often F is applied.

    Attributes:
        start: Leaves of the initial state.
        structure: Its structure.
        test: Has observed the first step and the last two, of a solver that probes all that are none.

    Raises:
        UserError: If the state or the update is not as described.

    Example:
        >>> solve = FixedSteps(torch.cos, torch.zeros(()), 0, Picard(tol=0), max_steps=60)
        >>> solve.iterate(60)
        [tensor(0.7391)]
    """

    def __init__(
        self, update: Update, initial_state: State, batch_dims: int, solver: FixedPointSolver, max_steps: int
    ) -> None:
        self.start, self.structure = flatten_state(initial_state, batch_dims)
        self.function = StateFunction(update, self.structure)
        self.batch_dims, self.solver, self.max_steps = batch_dims, solver, max_steps
        self.test = ConvergenceTest(0.0, 0.0, batch_dims, precision(self.start), solver.per_leaf)

    def iterate(self, count: int) -> Vector:
        """Runs the solver from the initial state.

        Args:
            count: How often F is applied.

        Returns:
            Leaves of the last F(h); those of the initial state for a count of 0.
        """
        vector: Vector = self.start
        found: Vector = vector
        memory = self.solver.init(vector, self.batch_dims)
        for step in range(1, count + 1):
            probe = self.solver.is_probe(memory)
            image = self._apply(vector, probe)
            if not probe:
                found = image
            if step < count:
                with outside_autocast(vector[0].device.type):
                    vector, memory = self.solver.step(vector, image, memory)
        return found

    def without_tape(self, steps_after: int) -> Vector:
        """Runs the solver, without a tape, up to the steps that the caller tapes.

        Args:
            steps_after: How many steps the caller takes.

        Returns:
            Detached leaves of where the tape is to begin.
        """
        with torch.no_grad():
            image = self.iterate(self.max_steps - steps_after)
        return [leaf.detach() for leaf in image]

    def last_steps(self, vector: Vector, count: int) -> Vector:
        """Applies F some more times.

        Args:
            vector: Leaves of h.
            count: How often.

        Returns:
            Leaves of the last F(h).
        """
        for _ in range(count):
            vector = self._apply(vector)
        return vector

    def _apply(self, vector: Vector, probe: bool = False) -> Vector:
        image = self.function(vector)
        wanted = self.solver.probes or self.function.calls in (1, self.max_steps - 1, self.max_steps)
        if wanted and not probe:
            self.test.observe(self.function.calls, *([leaf.detach() for leaf in one] for one in (vector, image)))
        return image
