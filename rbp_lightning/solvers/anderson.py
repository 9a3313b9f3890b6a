"""Anderson acceleration."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.linalg import vecdot

from rbp_lightning.errors import check_count, check_number
from rbp_lightning.pytree import Vector, ravel, unravel
from rbp_lightning.solvers.affine_weights import REGULARIZATION, affine_weights
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.history import History
from rbp_lightning.state_function import precision

GROWTH = 2.0
"""Factor by which an accelerated step may increase a sample's residual before its window is cleared."""


@dataclass(slots=True)
class Window:
    """The most recent iterates.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        size: Maximum number of iterates.
        epsilon: Relative precision of the update.
        images: The vectors that are combined, h + damping (F(h) - h).
        changes: The residual vectors F(h) - h.
        gram: Inner products of the changes, ``[*batch, window, window]``, with an infinite diagonal element for an
            excluded one.
        empty_gram: ``gram`` if all changes are excluded, ``[window, window]``.
        plain: Whether the last step was a plain one, bool per sample.
        last: The newest of ``images`` and of ``changes``; ``None`` before the first step.
        count: Number of steps taken.
    """

    batch_dims: int
    size: int
    epsilon: float
    images: History = field(init=False)
    changes: History = field(init=False)
    gram: Tensor = field(init=False)
    empty_gram: Tensor = field(init=False)
    plain: Tensor = field(init=False)
    last: tuple[Tensor, Tensor] | None = None
    count: int = 0

    def begin(self, like: Tensor) -> None:
        """Allocates the window.

        Args:
            like: A vector of the shape and dtype of the iterates.
        """
        self.images, self.changes = History(like, self.size), History(like, self.size)
        self.gram = like.new_zeros(*like.shape[:-1], self.size, self.size)
        self.empty_gram = torch.diag(like.new_full((self.size,), float("inf")))
        self.plain = torch.ones_like(like[..., 0], dtype=torch.bool)

    def restart(self, square: Tensor, not_finite: Tensor) -> None:
        """Clears the window of the samples whose last step has failed.

        Args:
            square: Squared norm of the newest change, per sample.
            not_finite: Where it is not finite.
        """
        last = (self.count - 1) % self.size
        self.plain = (~self.plain & (square > GROWTH**2 * self.gram[..., last, last])) | not_finite
        self.gram = torch.where(self.plain[..., None, None], self.empty_gram, self.gram)

    def add(self, following: Tensor, change: Tensor) -> int:
        """Replaces the oldest iterate; returns its index.

        Args:
            following: The vector that is combined.
            change: F(h) - h.
        """
        slot = self.count % self.size
        self.images.put(slot, following)
        self.changes.put(slot, change)
        row = (self.changes.first(self.size) @ change[..., None]).squeeze(-1)
        square = row[..., slot]
        row = torch.where(self.gram.diagonal(dim1=-2, dim2=-1).isinf(), 0.0, row)
        self.gram[..., slot, :] = row
        self.gram[..., :, slot] = row
        self.gram[..., slot, slot] = square
        self.count += 1
        return slot


class Anderson(FixedPointSolver):
    """Anderson acceleration (type II): the affine combination of recent iterates with the smallest residual.

    With the changes u_j = F(h_j) - h_j in a window, the next iterate is the sum of c_j (h_j + damping u_j), where the
    weights c_j of sum 1 minimise ||sum of c_j u_j|| (Walker and Ni, Anderson Acceleration for Fixed-Point Iterations,
    SIAM J. Numer. Anal. 49, 2011, algorithm AA). The first step is a plain one. If a later step more than doubles a
    sample's residual, or makes it non-finite, the sample's window is cleared and restarts with a plain step. Each step
    adds one row to the Gram matrix, and reads the window twice.

    It cannot be unrolled by ``BPTT``; combine it with an implicit estimator.

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
        window: Number of iterates that are combined, 2 to 50.
        damping: Fraction of the change F(h) - h that is taken, in (0, 1]; 1 combines the F(h_j).
        regularization: What is added to the diagonal of the Gram matrix, relative to it, at least 0; ``None`` is 10
            times the machine epsilon.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> slow = lambda h: torch.tensor([0.99, -0.9]) * h + torch.tensor([1.0, 2.0])
        >>> [NeumannRBP(0, solver(2000))(slow, torch.zeros(2)).steps for solver in (Picard, Anderson)]
        [919, 24]
    """

    differentiable = False

    def __init__(
        self,
        max_steps: int = 100,
        tol: float = 1e-6,
        check_every: int = 10,
        atol: float | None = None,
        per_leaf: bool = True,
        window: int = 5,
        damping: float = 1.0,
        regularization: float | None = None,
    ) -> None:
        super().__init__(max_steps, tol, check_every, atol, per_leaf)
        self.window = check_count(self, "window", window, 2, 50)
        self.damping = check_number(self, "damping", damping, 0.0, 1.0, low_allowed=False)
        if regularization is not None:
            check_number(self, "regularization", regularization, 0.0)
        self.regularization = regularization

    def init(self, vector: Vector, batch_dims: int) -> Window:
        """An empty window."""
        return Window(batch_dims, self.window, precision(vector))

    def step(self, vector: Vector, image: Vector, memory: Window) -> tuple[Vector, Window]:
        """Adds an iterate to the window, and combines the window."""
        following = ravel(image, memory.batch_dims)
        before = ravel(vector, memory.batch_dims).to(following.dtype)
        change = following - before
        if self.damping < 1:
            following = before + self.damping * change
        square = vecdot(change, change)
        if memory.last is None:
            memory.begin(following)
        else:
            not_finite = ~square.isfinite()
            following, change = (
                torch.where(not_finite[..., None], *pair) for pair in zip(memory.last, (following, change), strict=True)
            )
            memory.restart(square, not_finite)
        memory.last = following, change
        slot = memory.add(following, change)
        filled = min(memory.count, self.window)
        regularization = self.regularization
        if regularization is None:
            regularization = REGULARIZATION * max(memory.epsilon, precision(image))
        weights = affine_weights(memory.gram[..., :filled, :filled], slot, regularization)
        return unravel((weights[..., None, :] @ memory.images.first(filled)).squeeze(-2), image), memory
