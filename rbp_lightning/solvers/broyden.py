"""Broyden's method."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from rbp_lightning.errors import check_count
from rbp_lightning.pytree import Vector, divide, ravel, unravel
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.history import History

GROWTH = 2.0
"""Factor by which a quasi-Newton step may increase a sample's residual before the sample restarts."""


@dataclass(slots=True)
class InverseJacobian:
    """The approximate inverse B of the Jacobian of F(h) - h, -I + the sum of u_i v_i^T, and the last step.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        max_count: Maximum number of u_i.
        left: The u_i.
        right: The v_i.
        plain: Whether the last step was a plain one, ``[*batch, 1]``.
        begun: Whether ``left`` and ``right`` are allocated.
        count: Current number of u_i.
        last: h and F(h) - h of the last step, ``[*batch, n]``; ``None`` before the first one.
    """

    batch_dims: int
    max_count: int
    left: History = field(init=False)
    right: History = field(init=False)
    plain: Tensor = field(init=False)
    begun: bool = False
    count: int = 0
    last: tuple[Tensor, Tensor] | None = None

    def begin(self, like: Tensor) -> None:
        """Allocates memory.

        Args:
            like: A vector of the shape and dtype of h.
        """
        self.left, self.right = History(like, self.max_count), History(like, self.max_count)
        self.plain = torch.ones_like(like[..., :1], dtype=torch.bool)
        self.begun = True

    def transposed(self, room: int) -> "InverseJacobian":
        """B^T, as the initial approximation of another solve.

        Args:
            room: Number of u_i that can be added, limited to ``max_count``.
        """
        other = InverseJacobian(self.batch_dims, self.count + min(room, self.max_count))
        if self.count:
            left, right = self.left.first(self.count), self.right.first(self.count)
            other.begin(left[..., 0, :])
            other.left.first(self.count).copy_(right)
            other.right.first(self.count).copy_(left)
            other.count = self.count
        return other

    def times(self, vector: Tensor) -> Tensor:
        """B v."""
        return _combined(self.right.first(self.count), self.left.first(self.count), vector) - vector

    def transposed_times(self, vector: Tensor) -> Tensor:
        """B^T v."""
        return _combined(self.left.first(self.count), self.right.first(self.count), vector) - vector

    def correct(self, before: Tensor, change: Tensor, not_finite: Tensor) -> None:
        """Updates B so that B y = s for the last step, unless the step has failed.

        Args:
            before: h.
            change: F(h) - h.
            not_finite: Where the last step gave a non-finite F(h), and ``before`` and ``change`` are those of the step
                before, ``[*batch, 1]``.
        """
        assert self.last is not None  # there was a step
        if self.count == self.max_count:
            self.count = 0
        difference, change_difference = before - self.last[0], change - self.last[1]
        size, size_before = (vector_norm(one, dim=-1, keepdim=True) for one in (change, self.last[1]))
        failed = (~self.plain & (size > GROWTH * size_before)) | not_finite
        right = self.transposed_times(difference)
        pivot = vecdot(right, change_difference)[..., None]
        left = divide(difference - self.times(change_difference), pivot)
        # A correction that is only rounding error would spoil B.
        rounding = torch.finfo(pivot.dtype).eps * vector_norm(right, dim=-1, keepdim=True) ** 2
        unsafe = failed | ~(pivot.abs() > rounding)
        self.plain = failed
        self.left.first(self.count).masked_fill_(failed[..., None], 0.0)
        self.left.put(self.count, left.masked_fill(unsafe, 0.0))
        self.right.put(self.count, right.masked_fill(unsafe, 0.0))
        self.count += 1


def _combined(weighing: Tensor, summed: Tensor, vector: Tensor) -> Tensor:
    """The sum of the vectors in ``summed``, weighted by the inner products of ``vector`` with those in ``weighing``."""
    weights = weighing @ vector[..., None]
    return (weights.mT @ summed).squeeze(-2)


class Broyden(FixedPointSolver):
    """Limited-memory Broyden's good method: a quasi-Newton method that learns the inverse Jacobian from its steps.

    The first step is a plain one. Each later step corrects the approximate inverse B of the Jacobian of F(h) - h by
    B <- B + (s - B y) s^T B / (s^T B y), with the change s of h and y of F(h) - h (Nocedal and Wright, Numerical
    Optimization, 2006, section 11.1), and takes h <- h - B (F(h) - h). If a step more than doubles a sample's residual,
    or makes it non-finite, the sample restarts with a plain step. When the memory is full, B is reset to -I.

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
        memory: Maximum number of corrections of B, 1 to 100; twice as many states are stored.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> fixed_point = NeumannRBP(0, Broyden(30))(lambda h: 1 - 2.3 * h, torch.zeros(2))
        >>> fixed_point.status.value, fixed_point.state.detach()
        ('converged', tensor([0.3030, 0.3030]))
    """

    differentiable = False

    def __init__(
        self,
        max_steps: int = 100,
        tol: float = 1e-6,
        check_every: int = 10,
        atol: float | None = None,
        per_leaf: bool = True,
        memory: int = 20,
    ) -> None:
        super().__init__(max_steps, tol, check_every, atol, per_leaf)
        self.memory = check_count(self, "memory", memory, 1, 100)

    def init(self, vector: Vector, batch_dims: int) -> InverseJacobian:
        """Starts from B = -I."""
        return InverseJacobian(batch_dims, self.memory)

    def step(self, vector: Vector, image: Vector, memory: InverseJacobian) -> tuple[Vector, InverseJacobian]:
        """Corrects B and takes the quasi-Newton step."""
        following = ravel(image, memory.batch_dims)
        before = ravel(vector, memory.batch_dims).to(following.dtype)
        change = following - before
        if not memory.begun:
            memory.begin(following)
        if memory.last is not None:
            not_finite = ~vecdot(change, change).isfinite()[..., None]
            pairs = zip(memory.last, (before, change), strict=True)
            before, change = (torch.where(not_finite, *pair) for pair in pairs)
            memory.correct(before, change, not_finite)
        memory.last = before, change
        return unravel(before - memory.times(change), image), memory
