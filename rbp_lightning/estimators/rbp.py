"""Recurrent back-propagation in its original form."""

from typing import Literal

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.richardson import Richardson
from rbp_lightning.solvers import FixedPointSolver


class RBP(Implicit):
    """Recurrent back-propagation of Almeida (1987) and Pineda (1987): z <- J^T z + g until z stops changing.

    Algorithm 1 of the paper. The change of z is the residual of the adjoint equation (I - J^T) z = g.

    Args:
        steps: Maximum number of products with J^T, at least 1.
        tol: Relative adjoint residual at which a sample has converged; 0 runs exactly ``steps`` steps.
        start: The initial z: ``"uniform"`` draws from U[0, 1] as in the paper, times the root mean square of g, so that
            the gradient scales with the loss; ``"gradient"`` is g, which makes K steps equal to ``NeumannRBP(K)``. A
            warm start uses the last adjoint instead.
        seed: Seed of ``"uniform"``, which draws the same numbers in every solve and does not affect other generators.
        check_every: Steps between two convergence checks.
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> RBP(steps=40, tol=1e-6)(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.0000)
    """

    def __init__(
        self,
        steps: int = 20,
        tol: float = 1e-4,
        start: Literal["uniform", "gradient"] = "uniform",
        seed: int = 0,
        check_every: int = 10,
        solver: FixedPointSolver | None = None,
    ) -> None:
        super().__init__(Richardson(steps, tol, start, seed, check_every), solver)
        self.steps, self.tol, self.start, self.seed, self.check_every = steps, tol, start, seed, check_every
