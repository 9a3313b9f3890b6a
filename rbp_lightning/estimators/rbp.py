"""The original recurrent back-propagation."""

from typing import Any, Literal

import torch
from torch import Tensor

from rbp_lightning.errors import check_choice, check_count, check_number
from rbp_lightning.estimators.implicit import ImplicitEstimator
from rbp_lightning.linalg import Linearization
from rbp_lightning.looks import Looks
from rbp_lightning.pytree import Vector, approximate_norm, minus, norm, plus, scaled
from rbp_lightning.solvers import FixedPointSolver


class RBP(ImplicitEstimator):
    """Recurrent back-propagation of Almeida (1987) and Pineda (1987): z <- J^T z + g until z stops changing.

    Algorithm 1 of the paper. The change of z is the residual of the adjoint equation (I - J^T) z = g.

    Args:
        steps: Most products with J^T, at least 1.
        tol: Norm of the change of z over the norm of g at which a sample's adjoint has converged; 0 runs exactly
            ``steps``.
        start: Where z starts: ``"uniform"`` draws from U[0, 1] as the paper does, in units of the root mean square
            of g so that scaling the loss scales the gradient and changes nothing else; ``"gradient"`` starts from g
            itself, which makes K steps the same as ``NeumannRBP(K)``. The adjoint of a warm start takes its place.
        seed: Seed of the generator that ``"uniform"`` draws from. It is the estimator's own, so the draws neither
            depend on other random numbers nor change them, and its state is saved in checkpoints.
        check_every: Steps between two looks at the change, as ``Picard``'s.
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> RBP(steps=40)(lambda h: weight * h + 1, torch.zeros(())).state.backward()
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
        super().__init__(solver)
        self.steps = check_count(self, "steps", steps, 1)
        self.tol = check_number(self, "tol", tol, 0.0)
        self.start = check_choice(self, "start", start, ("uniform", "gradient"))
        self.seed = check_count(self, "seed", seed, 0)
        self.check_every = check_count(self, "check_every", check_every, 1)
        self._generator = torch.Generator().manual_seed(self.seed)

    def _first_iterate(self, gradient: Vector, batch_dims: int) -> Vector:
        if self.start == "gradient":
            return gradient
        size = norm(gradient, batch_dims)
        count = sum(leaf.shape[batch_dims:].numel() for leaf in gradient)
        root_mean_square = size / count**0.5
        return scaled(root_mean_square, [self._uniform(leaf) for leaf in gradient])

    def _uniform(self, like: Tensor) -> Tensor:
        # Drawn on the CPU, so that every device sees the same numbers.
        drawn = torch.rand(like.shape, dtype=like.dtype, generator=self._generator)
        # CUDA takes its copy before the call returns; others may read what has been freed (pytorch issue 189690).
        return drawn.to(like.device, non_blocking=like.is_cuda)

    def solve_adjoint(self, linearization: Linearization, gradient: Vector, start: Vector | None) -> Vector:
        """Iterates z <- J^T z + g."""
        batch_dims = linearization.batch_dims
        adjoint = self._first_iterate(gradient, batch_dims) if start is None else start
        looks = Looks(self.check_every, self.tol)
        for step in range(1, self.steps + 1):
            previous, adjoint = adjoint, plus(linearization.vjp(adjoint), gradient)
            due = self.tol > 0 and looks.due(step)
            if due or step == self.steps:
                residual = approximate_norm(minus(adjoint, previous), batch_dims)  # over that of g, which is 1
            finished = due and looks.finished(step, residual)
            if finished:
                break
        self.report_adjoint(step, residual, self.tol, settled=finished and looks.all_finite)
        return adjoint

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint: that of the generator of random starts."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the sequence of random starts where the checkpoint left it."""
        self._generator.set_state(state_dict["generator"])
