"""Looking on at the solves of an estimator."""

from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linalg import Linearization
from rbp_lightning.pytree import State, Vector
from rbp_lightning.solvers import Update


class SolveObserver:
    """Is told of each solve with gradients enabled by the estimator that has it among its ``observers``.

    Example:
        >>> class Gradients(SolveObserver):
        ...     def on_gradient(self, gradient):
        ...         print(gradient)
        >>> estimator, weight = NeumannRBP(), torch.tensor(0.5, requires_grad=True)
        >>> estimator.observers.append(Gradients())
        >>> estimator(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        (tensor(1.),)
    """

    def on_solve_start(self, update: Update) -> Update:
        """Before the solve.

        Args:
            update: The map F.

        Returns:
            The map to solve for in its place: the same one, maybe watched.
        """
        return update

    def on_solve_end(self, update: Update, initial_state: State, batch_dims: int, fixed_point: FixedPoint) -> None:
        """After the solve.

        Args:
            update: The map F.
            initial_state: Where the solve started.
            batch_dims: The number of leading dimensions that index independent samples.
            fixed_point: The result.
        """

    def on_gradient(self, gradient: Vector) -> None:
        """In the backward pass, when the gradient arrives at the fixed point.

        Args:
            gradient: Leaves of g.
        """

    def on_adjoint(self, linearization: Linearization, gradient: Vector, adjoint: Vector) -> None:
        """In the backward pass of an implicit estimator, after the adjoint was solved.

        Args:
            linearization: Products with J and J^T at the fixed point.
            gradient: Leaves of g, in float32 or wider, scaled to norm 1 in every sample that has a gradient.
            adjoint: Leaves of z for that g.
        """
