"""The Newton-Krylov method."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.linalg import vector_norm

from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_count
from rbp_lightning.pytree import Vector, ravel, unravel
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.history import History
from rbp_lightning.state_function import precision

LEAST_DAMPING = 2.0**-10
"""Smallest fraction of a Newton step that is tried."""


@dataclass(slots=True)
class Newton:
    """The current Newton step.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        point: h and F(h) - h, ``[*batch, n]``, and the norm of the latter; ``None`` before the first step.
        krylov: Number of products with J per Newton step.
        epsilon: Relative precision of the update.
        basis: Orthonormal basis of the Krylov space.
        hessenberg: Projection of I - J onto the basis, ``[*batch, krylov + 1, krylov]``.
        damping: Fraction of the Newton step that is taken, ``[*batch, 1]``.
        difference: Step size of the finite difference, ``[*batch, 1]``.
        count: Number of products with J so far; at 0, F is applied to h itself.
    """

    batch_dims: int
    krylov: int
    epsilon: float
    basis: History = field(init=False)
    hessenberg: Tensor = field(init=False)
    damping: Tensor = field(init=False)
    difference: Tensor = field(init=False)
    point: tuple[Tensor, Tensor, Tensor] | None = None
    count: int = 0


class NewtonKrylov(FixedPointSolver):
    """Newton's method, h <- h + (I - J)^-1 (F(h) - h), with GMRES for the linear equation.

    GMRES uses finite differences of F as products J v (Knoll and Keyes, Jacobian-free Newton-Krylov methods, J. Comput.
    Phys. 193, 2004, section 2). Each of them is one application of F and counts as a step, so a Newton step costs
    ``krylov`` + 1 steps. If a Newton step does not lower a sample's residual, it is undone and half of it is tried. The
    method also finds fixed points of updates that are not contractions.

    It cannot be unrolled by ``BPTT``; combine it with an implicit estimator.

    Args:
        max_steps: Maximum number of applications of the update, at least 1, including those that an estimator
            differentiates. Unless ``tol`` is 0, the last one only measures the residual of the result.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs ``max_steps`` steps,
            or until no sample is finite.
        check_every: Not used; every Newton step is checked, which synchronises with the device.
        atol: Absolute residual ||F(h) - h|| at which a sample has also converged, for fixed points at zero; ``None`` is
            ``tol / 1000``. Not used if ``tol`` is 0.
        per_leaf: Whether each leaf of the state must converge relative to its own norm; ``false`` uses one norm over
            all leaves, in which a large leaf can hide a small one.
        krylov: Number of products with J per Newton step, 1 to 100, at most ``max_steps - 2``; as many states are
            stored.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> fixed_point = NeumannRBP(0, NewtonKrylov(krylov=2))(lambda h: 1 - 2.3 * h, torch.zeros(2))
        >>> fixed_point.status.value, fixed_point.state.detach()
        ('converged', tensor([0.3030, 0.3030]))
    """

    differentiable, probes = False, True

    def __init__(
        self,
        max_steps: int = 100,
        tol: float = 1e-6,
        check_every: int = 10,
        atol: float | None = None,
        per_leaf: bool = True,
        krylov: int = 10,
    ) -> None:
        super().__init__(max_steps, tol, check_every, atol, per_leaf)
        self.krylov = check_count(self, "krylov", krylov, 1, 100)
        # A Newton step must fit between two applications of F to iterates.
        self._length = max(1, min(self.krylov, self.max_steps - 2))

    def init(self, vector: Vector, batch_dims: int) -> Newton:
        """Starts without a Newton step."""
        return Newton(batch_dims, self._length, precision(vector))

    def is_probe(self, memory: Newton) -> bool:
        """Whether the next application of F is for a product with J."""
        return memory.count > 0

    def step(self, vector: Vector, image: Vector, memory: Newton) -> tuple[Vector, Newton]:
        """Prepares the next product with J, or takes the Newton step."""
        flat, following = ravel(vector, memory.batch_dims), ravel(image, memory.batch_dims)
        if memory.count == 0:
            _begin(memory, flat.to(following.dtype), following, max(memory.epsilon, precision(image)))
        else:
            _extend(memory, following)
        assert memory.point is not None  # the first step has one
        if memory.count < self._length:
            direction = memory.basis.first(memory.count + 1)[..., -1, :]
            memory.count += 1
            return unravel(memory.point[0] + memory.difference * direction, image), memory
        memory.count = 0
        basis = memory.basis.first(self._length)
        # The pseudoinverse, because the Krylov space may have fewer dimensions.
        weights = torch.linalg.pinv(memory.hessenberg.nan_to_num(0.0, 0.0, 0.0))[..., 0] * memory.point[2]
        return unravel(memory.point[0] + memory.damping * (weights[..., None, :] @ basis).squeeze(-2), image), memory

    def after_check(self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: Newton) -> Newton:
        """Moves the next check to the next Newton step."""
        schedule.next_check = step + self._length + 1
        return memory


def _begin(memory: Newton, flat: Tensor, following: Tensor, epsilon: float) -> None:
    """Accepts the new point, or returns to the old one where it is not better, and starts a Krylov basis."""
    change = following - flat
    if memory.point is None:
        memory.basis = History(flat, memory.krylov + 1)
        memory.hessenberg = flat.new_zeros(*flat.shape[:-1], memory.krylov + 1, memory.krylov)
        memory.damping = flat.new_ones(*flat.shape[:-1], 1)
    size = vector_norm(change, dim=-1, keepdim=True)
    if memory.point is not None:
        better = size < memory.point[2]
        longer = (2 * memory.damping).clamp_max(1.0)
        memory.damping = torch.where(better, longer, (memory.damping / 2).clamp_min(LEAST_DAMPING))
        pairs = zip((flat, change, size), memory.point, strict=True)
        flat, change, size = (torch.where(better, new, old) for new, old in pairs)
    memory.point = flat, change, size
    scale = torch.maximum(vector_norm(flat, dim=-1, keepdim=True), vector_norm(flat + change, dim=-1, keepdim=True))
    memory.difference = epsilon**0.5 * torch.where(scale > 0, scale, 1.0)
    memory.hessenberg.zero_()
    memory.basis.put(0, torch.where(size > 0, change / size, 0.0))


def _extend(memory: Newton, following: Tensor) -> None:
    """Adds a vector to the basis (Arnoldi's method), from the value of F at the probe."""
    assert memory.point is not None  # the basis has a first vector
    basis = memory.basis.first(memory.count)
    product = basis[..., -1, :] - (following - memory.point[0] - memory.point[1]) / memory.difference
    for _ in range(2):  # a single pass loses orthogonality to rounding
        weights = (basis @ product[..., None]).squeeze(-1)
        product = product - (weights[..., None, :] @ basis).squeeze(-2)
        memory.hessenberg[..., : memory.count, memory.count - 1] += weights
    size = vector_norm(product, dim=-1, keepdim=True)
    memory.hessenberg[..., memory.count, memory.count - 1] = size.squeeze(-1)
    memory.basis.put(memory.count, torch.where(size > 0, product / size, 0.0))
