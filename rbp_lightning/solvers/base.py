"""The interface of forward solvers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_count, check_instance, check_number
from rbp_lightning.pytree import Vector


class FixedPointSolver(ABC):
    """Finds h* = F(h*). A subclass only computes the next iterate; ``Solve`` does everything else.

    A solver does not deal with gradients, convergence checks or failing samples. It is stateless: its memory is passed
    from one ``step`` to the next, so one solver can be used for any number of solves.

    Args:
        max_steps: Maximum number of applications of the update, at least 1, including those that an estimator
            differentiates. Unless ``tol`` is 0, the last one only measures the residual of the result.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs ``max_steps`` steps,
            or until no sample is finite.
        check_every: Steps between two convergence checks, each of which synchronises with the device. If at least 6,
            the first check comes after a third of that, and later ones when the residual is predicted to converge, at
            most ``2 * check_every`` steps apart.
        atol: Absolute residual ||F(h) - h|| at which a sample has also converged, for fixed points at zero; ``None`` is
            ``tol / 1000``. Not used if ``tol`` is 0.
        per_leaf: Whether each leaf of the state must converge relative to its own norm; ``false`` uses one norm over
            all leaves, in which a large leaf can hide a small one.

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
    """Whether the derivatives of its iterates converge to that of the fixed point, as those of plain steps do."""

    probes = False
    """Whether it also applies F to probes, which are not iterates."""

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
        """The solver's memory before its first step.

        Args:
            vector: Leaves of the initial state.
            batch_dims: The number of leading dimensions that index independent samples.
        """
        return None

    @abstractmethod
    def step(self, vector: Vector, image: Vector, memory: Any) -> tuple[Vector, Any]:
        """Computes the next iterate.

        Args:
            vector: Leaves of the iterate h.
            image: Leaves of F(h).
            memory: The memory that ``init`` or the last step returned.

        Returns:
            Leaves of the next iterate, and the new memory.
        """

    def is_probe(self, memory: Any) -> bool:
        """Whether the next application of F is to a probe, for which no residual is computed.

        Args:
            memory: The memory that ``init`` or the last step returned.
        """
        return False

    def after_check(self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: Any) -> Any:
        """Called after a convergence check that did not end the solve, before the next step.

        Args:
            step: Number of the step that was checked.
            schedule: Predicts the remaining steps; ``schedule.next_check`` may be changed.
            vector: Leaves of the iterate h.
            image: Leaves of F(h).
            memory: The memory that ``init`` or the last step returned.

        Returns:
            The new memory.
        """
        return memory

    def propagated(self, vector: Vector, product: Callable[[Vector], Vector], memory: Any) -> Vector | None:
        """The next change F(h) - h of a linear F, if h is F of the last iterate; called before F is applied.

        It is then a product with the last change. A solver that combines changes should return it, and use it in the
        next ``step``: its rounding error is relative to the change, that of F(h) - h to h.

        Args:
            vector: Leaves of the iterate h.
            product: Computes F(v) - F(0).
            memory: The memory that ``init`` or the last step returned.

        Returns:
            Leaves of the change; ``None`` to compute it from F(h), such as where h is a combination of iterates.
        """
        return None
