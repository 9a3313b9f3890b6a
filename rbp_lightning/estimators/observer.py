"""Looking on at the solves of an estimator."""

from torch import Tensor

from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.pytree import State, Vector
from rbp_lightning.solvers import Update


class SolveObserver:
    """Is told of a solve with gradients enabled.

    An estimator's ``observers`` are functions without arguments, or classes, that make one for each solve.

    Example:
        >>> class Gradients(SolveObserver):
        ...     def on_gradient(self, gradient):
        ...         print(gradient)
        >>> estimator, weight = NeumannRBP(), torch.tensor(0.5, requires_grad=True)
        >>> estimator.observers.append(Gradients)
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

    def on_adjoint(self, residual: Tensor, products: int) -> None:
        """In the backward pass, after the adjoint was solved.

        Args:
            residual: ||g - (I - J^T) z|| / ||g|| for each sample, measured; of ``TBPTT`` and ``BPTT``, the last term's
                share.
            products: How many products with J^T and J were taken, taped steps not among them.
        """
