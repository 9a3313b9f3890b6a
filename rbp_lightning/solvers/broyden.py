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
"""Growth of a sample's change, but in a plain step, after which it begins anew."""


@dataclass(slots=True)
class InverseJacobian:
    """The inverse B of the Jacobian of F(h) - h, as -I + the sum of u_i v_i^T, and the last step.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        most: Most u_i.
        left: The u_i.
        right: The v_i.
        plain: Whether the step before was a plain one, ``[*batch, 1]``.
        begun: Whether there is room for them.
        count: How many u_i there are.
        last: h and F(h) - h of the step before, ``[*batch, n]``; ``None`` before the first one.
    """

    batch_dims: int
    most: int
    left: History = field(init=False)
    right: History = field(init=False)
    plain: Tensor = field(init=False)
    begun: bool = False
    count: int = 0
    last: tuple[Tensor, Tensor] | None = None

    def begin(self, like: Tensor) -> None:
        """Makes room.

        Args:
            like: A vector like h.
        """
        self.left, self.right = History(like, self.most), History(like, self.most)
        self.plain = torch.ones_like(like[..., :1], dtype=torch.bool)
        self.begun = True

    def transposed(self, room: int) -> "InverseJacobian":
        """B^T, on which the steps of another solve can build.

        Args:
            room: How many more u_i there may be; at most as many as here.
        """
        other = InverseJacobian(self.batch_dims, self.count + min(room, self.most))
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

    def correct(self, before: Tensor, change: Tensor, lost: Tensor) -> None:
        """Makes B (y) = s of the last step, but where that has failed.

        Args:
            before: h.
            change: F(h) - h.
            lost: Where the step has left the domain of F, and the two are those before it, ``[*batch, 1]``.
        """
        assert self.last is not None  # there was a step
        if self.count == self.most:
            self.count = 0
        difference, change_difference = before - self.last[0], change - self.last[1]
        size, size_before = (vector_norm(one, dim=-1, keepdim=True) for one in (change, self.last[1]))
        failed = (~self.plain & (size > GROWTH * size_before)) | lost
        right = self.transposed_times(difference)
        pivot = vecdot(right, change_difference)[..., None]
        left = divide(difference - self.times(change_difference), pivot)
        # A correction that rounding makes would spoil the others.
        rounding = torch.finfo(pivot.dtype).eps * vector_norm(right, dim=-1, keepdim=True) ** 2
        unsafe = failed | ~(pivot.abs() > rounding)
        self.plain = failed
        self.left.first(self.count).masked_fill_(failed[..., None], 0.0)
        self.left.put(self.count, left.masked_fill(unsafe, 0.0))
        self.right.put(self.count, right.masked_fill(unsafe, 0.0))
        self.count += 1


def _combined(weighing: Tensor, summed: Tensor, vector: Tensor) -> Tensor:
    """The sum of the vectors of one history, weighted by the inner products of a vector with those of another."""
    weights = weighing @ vector[..., None]
    return (weights.mT @ summed).squeeze(-2)


class Broyden(FixedPointSolver):
    """Broyden's good method with limited memory: Newton's with a Jacobian that the steps taken teach.

    The first step is a plain one. Each one after it corrects the inverse B of the Jacobian of F(h) - h by
    B <- B + (s - B y) s^T B / (s^T B y), with the change s of h and y of F(h) - h (Nocedal and Wright, Numerical
    Optimization, 2006, section 11.1), and takes h <- h - B (F(h) - h). Where a step has doubled the residual of a
    sample or left the domain of F, it begins anew with a plain step; where the memory is full, B begins as -I again.

    It cannot be put on a tape, as ``BPTT`` would: combine it with an implicit estimator.

    Args:
        max_steps: Most applications of the update, at least 1. An estimator that tapes K steps takes them out of
            this number. Unless ``tol`` is 0, the last one measures the residual of the iterate that is returned.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs exactly ``max_steps``,
            unless no sample is finite any more.
        check_every: Steps between two convergence checks, each of which waits for the device. From 6 on, the first
            one comes after a third of them, and the others where the residual's decline predicts convergence, at most
            twice as many later.
        atol: Norm of the change ||F(h) - h|| at which a sample has converged whatever its own norm, for fixed points
            at zero; ``None`` is ``tol / 1000``. It is not used where ``tol`` is 0.
        per_leaf: Whether each leaf of a state that has several must converge relative to its own norm; ``false`` takes
            one norm over all of them, in which a large leaf hides a small one.
        memory: Most corrections of the Jacobian, 1 to 100; twice as many states are kept.

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
        """-I."""
        return InverseJacobian(batch_dims, self.memory)

    def step(self, vector: Vector, image: Vector, memory: InverseJacobian) -> tuple[Vector, InverseJacobian]:
        """Corrects the Jacobian and takes its Newton step."""
        following = ravel(image, memory.batch_dims)
        before = ravel(vector, memory.batch_dims).to(following.dtype)
        change = following - before
        if not memory.begun:
            memory.begin(following)
        if memory.last is not None:
            lost = ~vecdot(change, change).isfinite()[..., None]
            before, change = (torch.where(lost, *pair) for pair in zip(memory.last, (before, change), strict=True))
            memory.correct(before, change, lost)
        memory.last = before, change
        return unravel(before - memory.times(change), image), memory
