"""Picard iteration."""

from torch.utils._pytree import tree_leaves

from rbp_lightning.errors import check_count
from rbp_lightning.fixed_point import ConvergenceTest
from rbp_lightning.looks import Looks
from rbp_lightning.pytree import State
from rbp_lightning.solvers.base import FixedPointSolver, Update


class Picard(FixedPointSolver):
    """Picard iteration h <- F(h), which is the network's own dynamics (paper, section 2).

    Args:
        max_steps: Most applications of the update, at least 1.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``max_steps``.
        check_every: Steps between two looks at the residual, each of which waits for the device. From 6 on, the first
            one comes after a third of them, and the others where the residual's decline promises convergence, at most
            twice as many later; an iteration whose residual falls faster than promised runs on till then.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> solver = Picard(max_steps=50, tol=1e-6)
        >>> test = ConvergenceTest(solver.tol, batch_dims=0)
        >>> state, steps = solver.iterate(torch.cos, torch.zeros(()), solver.max_steps, test)
        >>> state, steps, test.result(state, steps).status.value
        (tensor(0.7391), 38, 'converged')
    """

    def __init__(self, max_steps: int = 100, tol: float = 1e-6, check_every: int = 10) -> None:
        super().__init__(max_steps, tol)
        self.check_every = check_count(self, "check_every", check_every, 1)

    def iterate(self, update: Update, state: State, max_steps: int, test: ConvergenceTest) -> tuple[State, int]:
        """Applies the update until every sample has converged or ``max_steps`` are spent."""
        looks = Looks(self.check_every, self.tol)
        for step in range(1, max_steps + 1):
            previous, state = state, update(state)
            due = looks.due(step)
            if due or (step == max_steps and not test.followed):
                test.observe(tree_leaves(previous), tree_leaves(state))
            if due and looks.finished(step, test.residual):
                test.settled = looks.all_finite
                return state, step
        return state, max_steps
