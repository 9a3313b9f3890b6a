"""Samples that fail within a batch, and updates that are random."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from rbp_lightning.fixed_point import ConvergenceTest
from rbp_lightning.pytree import State, Vector, minus, norm, where
from rbp_lightning.solvers import Update


class BestIterates(ConvergenceTest):
    """Keeps what led to each sample's smallest change, from where a sample that fails can be taken up.

    Args:
        tol: Largest relative residual of a converged sample.
        batch_dims: The number of leading dimensions that index independent samples.

    Attributes:
        previous: Leaves of the iterates before those changes.
        residuals: Relative residuals of those changes, one value for each sample.

    Example:
        >>> best = BestIterates(tol=0.1, batch_dims=1)
        >>> _ = Picard(max_steps=3, tol=0).iterate(lambda h: 2 * h, torch.ones(1, 1), 3, best)
        >>> best.previous
        [tensor([[1.]])]
    """

    def __init__(self, tol: float, batch_dims: int) -> None:
        super().__init__(tol, batch_dims)
        self._smallest: Tensor | None = None

    def observe(self, previous: Vector, current: Vector) -> None:
        """Records the change, and keeps the iterate where it is the smallest so far."""
        super().observe(previous, current)
        if self._smallest is None:
            self._smallest, self.previous = torch.full_like(self.change, float("inf")), list(previous)
            self.residuals = self.residual
        better = self.change < self._smallest  # never where it is NaN
        self._smallest = torch.where(better, self.change, self._smallest)
        self.residuals = torch.where(better, self.residual, self.residuals)
        self.previous = where(better, previous, self.previous)


def holding(update: Update, failed: Tensor, best: Vector) -> Update:
    """Takes samples that fail out of an iteration, so that they spoil nothing.

    At every step the update is applied to what led to their best iterate, so they stay there, and their gradient is
    that of this one step. Where even that is not finite, as with NaN in a sample's input, they stay at what led to it,
    without a gradient; but what all samples share, such as a weight, is handed 0 times NaN by such a sample and has no
    finite gradient either. That is for the policy to skip.

    Args:
        update: The map F.
        failed: Which samples, bool, of the shape of the batch dimensions.
        best: Leaves of what led to their best iterates.

    Returns:
        A map that is F for the other samples.

    Example:
        >>> double = holding(lambda h: 2 * h, torch.tensor([False, True]), [torch.tensor([[1.0], [1.0]])])
        >>> double(torch.tensor([[4.0], [4.0]]))
        tensor([[8.],
                [2.]])
    """

    def held(state: State) -> State:
        leaves, structure = tree_flatten(state)
        following = tree_leaves(update(tree_unflatten(where(failed, best, leaves), structure)))
        spoilt = failed & ~norm([leaf.detach() for leaf in following], failed.dim()).isfinite()
        return tree_unflatten(where(spoilt, best, following), structure)

    return held


def draws_anew(update: Update, state: State) -> bool:
    """Whether an update differs from call to call, as one does that draws dropout's mask at every step.

    The global random numbers go on as if it had not been asked.

    Args:
        update: The map F.
        state: Where to apply it twice.

    Example:
        >>> draws_anew(torch.cos, torch.ones(3)), draws_anew(lambda h: h + torch.rand(3), torch.ones(3))
        (False, True)
    """
    state = tree_map(lambda leaf: leaf.detach(), state)
    devices = sorted({leaf.device.index for leaf in tree_leaves(state) if leaf.is_cuda})
    with torch.no_grad(), torch.random.fork_rng(devices):
        one, other = (tree_leaves(update(state)) for _ in range(2))
    # Kernels that sum in any order differ by rounding.
    rounding = 100 * max(torch.finfo(leaf.dtype).eps for leaf in one)
    return bool(norm(minus(one, other), 0) > rounding * norm(one, 0))  # never where there is NaN
