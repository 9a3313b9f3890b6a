"""Damping of the update for any solver."""

from typing import Any

from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_instance, check_number
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.picard import Picard


class Damped(FixedPointSolver):
    """Applies another solver to h + damping (F(h) - h), which has the same fixed points as F.

    Damping makes an update that overshoots a contraction: it moves eigenvalues of J below -1 into the unit circle
    (Varga, Matrix Iterative Analysis, section 3.1). The residual is that of F itself.

    Args:
        solver: The solver to damp, with its tolerances; ``None`` is ``Picard()``.
        damping: Fraction of the change F(h) - h that is taken, in (0, 1].

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> fixed_point = NeumannRBP(0, Damped(Picard(60), damping=0.3))(lambda h: 1 - 2.3 * h, torch.zeros(()))
        >>> fixed_point.status.value, fixed_point.state.detach()
        ('converged', tensor(0.3030))
    """

    def __init__(self, solver: FixedPointSolver | None = None, damping: float = 0.5) -> None:
        if solver is not None:
            check_instance(self, "solver", solver, FixedPointSolver, "one, such as Picard()")
        self.solver = Picard() if solver is None else solver
        super().__init__(
            self.solver.max_steps, self.solver.tol, self.solver.check_every, self.solver.atol, self.solver.per_leaf
        )
        self.differentiable, self.probes = self.solver.differentiable, self.solver.probes
        self.damping = check_number(self, "damping", damping, 0.0, 1.0, low_allowed=False)

    def init(self, vector: Vector, batch_dims: int) -> Any:
        """The inner solver's memory."""
        return self.solver.init(vector, batch_dims)

    def step(self, vector: Vector, image: Vector, memory: Any) -> tuple[Vector, Any]:
        """Takes the inner solver's step with the damped update."""
        return self.solver.step(vector, self._damped(vector, image), memory)

    def after_check(self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: Any) -> Any:
        """Calls the inner solver's hook."""
        if type(self.solver).after_check is FixedPointSolver.after_check:
            return memory
        return self.solver.after_check(step, schedule, vector, self._damped(vector, image), memory)

    def is_probe(self, memory: Any) -> bool:
        """Whether the inner solver's next application of F is to a probe."""
        return self.solver.is_probe(memory)

    def _damped(self, vector: Vector, image: Vector) -> Vector:
        return [leaf + self.damping * (other - leaf) for leaf, other in zip(vector, image, strict=True)]
