"""The interface of forward solvers."""

from abc import ABC, abstractmethod
from typing import Any

from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_count, check_instance, check_number
from rbp_lightning.pytree import Vector


class FixedPointSolver(ABC):
    """Finds h* = F(h*): says how the next iterate is made; ``Solve`` does the rest.

    A solver knows nothing of gradients, checks or failing samples. What it remembers from step to step is handed from
    one ``step`` to the next, so one solver serves any number of solves.

    Args:
        max_steps: Most applications of the update, at least 1. An estimator that tapes K steps takes them out of
            this number. Unless ``tol`` is 0, the last one measures the residual of the iterate that is returned.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs exactly ``max_steps``,
            unless no sample is finite any more.
        check_every: Steps between two convergence checks, each of which waits for the device. From 6 on, the first
            one comes after a third of them, and the others where the residual's decline predicts convergence, at most
            twice as many later.
        atol: Norm of the change ||F(h) - h|| at which a sample has converged whatever its own norm, for fixed points
            at zero; ``None`` is ``tol / 1000``. It is not used where ``tol`` is 0.
        per_leaf: Whether each leaf of a state that has several must converge relative to its own norm; ``false`` takes
            one norm over all of them, in which a large leaf hides a small one.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> class Halfway(FixedPointSolver):
        ...     "h <- (h + F(h)) / 2, which damps oscillations."
        ...     def step(self, vector, image, memory):
        ...         return [(h + f) / 2 for h, f in zip(vector, image)], memory
        >>> NeumannRBP(solver=Halfway(max_steps=60))(lambda h: 1 - h, torch.zeros(())).state.detach()
        tensor(0.5000)
    """

    differentiable = True
    """Whether the derivatives of its iterates tend to that of the fixed point as those of plain steps do."""

    probes = False
    """Whether some of what it applies F to are probes."""

    def __init__(
        self,
        max_steps: int = 100,
        tol: float = 1e-6,
        check_every: int = 10,
        atol: float | None = None,
        per_leaf: bool = True,
    ) -> None:
        self.max_steps = check_count(self, "max_steps", max_steps, 1)
        self.tol = check_number(self, "tol", tol, 0.0)
        self.check_every = check_count(self, "check_every", check_every, 1)
        self.atol = None if atol is None else check_number(self, "atol", atol, 0.0)
        self.per_leaf = check_instance(self, "per_leaf", per_leaf, bool, "true or false")

    def init(self, vector: Vector, batch_dims: int) -> Any:
        """What the solver remembers before its first step.

        Args:
            vector: Leaves of the initial state.
            batch_dims: The number of leading dimensions that index independent samples.
        """
        return None

    @abstractmethod
    def step(self, vector: Vector, image: Vector, memory: Any) -> tuple[Vector, Any]:
        """Makes the next iterate.

        Args:
            vector: Leaves of the iterate h.
            image: Leaves of F(h).
            memory: What the last step, or ``init``, returned.

        Returns:
            Leaves of the next iterate, and what to remember.
        """

    def is_probe(self, memory: Any) -> bool:
        """Whether F is applied next to a probe of the solver, which is no iterate and is not judged.

        Args:
            memory: What the last step, or ``init``, returned.
        """
        return False

    def after_check(self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: Any) -> Any:
        """Learns from a convergence check that did not end the solve, before the step that follows it.

        Args:
            step: Number of the step that was checked.
            schedule: Has the prediction of the steps left; its next check may be moved.
            vector: Leaves of the iterate h.
            image: Leaves of F(h).
            memory: What the last step, or ``init``, returned.

        Returns:
            What to remember.
        """
        return memory
