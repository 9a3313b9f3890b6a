"""A forward solve with a fixed number of steps and no data-dependent control flow, for compiled graphs."""

import torch

from rbp_lightning.pytree import State, Vector, flatten_state
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.convergence import ConvergenceTest
from rbp_lightning.state_function import StateFunction, Update, outside_autocast, precision


class FixedSteps:
    """Takes the steps of ``Solve`` with a tolerance of 0, without its checks; no sample is frozen.

    ``torch.compile``, ``torch.export`` and ``torch.jit.trace`` trace this instead of ``Solve``.

    Args:
        update: The function F.
        initial_state: The initial state.
        batch_dims: The number of leading dimensions that index independent samples.
        solver: Computes the next iterate.
        max_steps: Number of applications of F.

    Attributes:
        start: Leaves of the initial state.
        structure: Structure of the initial state.
        test: The convergence test. It observes the first and the last two steps, or all iterates of a solver with
            probes.

    Raises:
        UserError: If the state or the update is invalid.

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

    def iterate(self, count: int, steps_after: int = 0) -> Vector:
        """Runs the solver from the initial state.

        Args:
            count: Number of applications of F.
            steps_after: Number of plain steps that the caller takes afterwards.

        Returns:
            Leaves of the last F(h), or, if the caller takes more steps, of the iterate at which they start, as for
            ``Solve``.
        """
        vector: Vector = self.start
        found = accepted = vector
        memory = self.solver.init(vector, self.batch_dims)
        for step in range(1, count + 1):
            probe = self.solver.is_probe(memory)
            image = self._apply(vector, probe)
            if not probe:
                found, accepted = image, vector
            if step < count or steps_after > 0:
                with outside_autocast(vector[0].device.type):
                    vector, memory = self.solver.step(vector, image, memory)
        if steps_after == 0:
            return found
        return accepted if self.solver.is_probe(memory) else vector

    def without_tape(self, steps_after: int) -> Vector:
        """Runs the solver without gradients, except for the last steps, which the caller takes.

        Args:
            steps_after: Number of steps that the caller takes.

        Returns:
            Detached leaves of the iterate at which these steps start.
        """
        with torch.no_grad():
            image = self.iterate(self.max_steps - steps_after, steps_after)
        return [leaf.detach() for leaf in image]

    def last_steps(self, vector: Vector, count: int) -> Vector:
        """Applies F a number of times.

        Args:
            vector: Leaves of h.
            count: Number of applications.

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
