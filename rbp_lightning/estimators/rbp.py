"""The original recurrent back-propagation."""

from typing import Literal

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.richardson import Richardson
from rbp_lightning.solvers import FixedPointSolver


class RBP(Implicit):
    """Recurrent back-propagation of Almeida (1987) and Pineda (1987): z <- J^T z + g until z stops changing.

    Algorithm 1 of the paper. The change of z is the residual of the adjoint equation (I - J^T) z = g.

    Args:
        steps: Most products with J^T, at least 1.
        tol: Norm of the change of z over the norm of g at which a sample's adjoint has converged; 0 runs exactly
            ``steps``.
        start: Where z starts: ``"uniform"`` draws from U[0, 1] as the paper does, in units of the root mean square
            of g so that scaling the loss scales the gradient and changes nothing else; ``"gradient"`` starts from g
            itself, which makes K steps the same as ``NeumannRBP(K)``. The adjoint of a warm start takes its place.
        seed: Seed of the draw. It is the same in every solve, and neither depends on other random numbers nor changes
            them.
        check_every: Steps between two convergence checks, as ``Picard``'s.
        solver: Forward solver that finds the fixed point; ``None`` is ``Auto()``.

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
