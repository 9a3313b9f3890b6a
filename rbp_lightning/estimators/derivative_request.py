"""The derivatives that are requested of a fixed point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rbp_lightning.estimators.transforms import Transforms
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import Solve
from rbp_lightning.state_function import StateFunction, Update

Attach: TypeAlias = Callable[[Callable[[Vector], Vector], Vector], Vector]
"""Returns the differentiable leaves of a fixed point, from F on leaves and the leaves of the initial state."""


@dataclass(frozen=True)
class DerivativeRequest:
    """Requested derivatives other than first derivatives in reverse mode.

    Attributes:
        order: The highest order of derivatives.
        transforms: The torch.func transforms in which the solve is called; ``None`` if there are none.
    """

    order: int
    transforms: Transforms | None

    @property
    def vmap_levels(self) -> Sequence[int]:
        """Levels of the vmaps around the solve."""
        return () if self.transforms is None else self.transforms.vmap_levels

    def lift(self, vector: Vector) -> list[Tensor]:
        """Moves leaves of the solve into the transforms."""
        return list(vector) if self.transforms is None else [self.transforms.lift(leaf) for leaf in vector]

    def function(self, update: Update, solve: Solve) -> Callable[[Vector], Vector]:
        """F on leaves within the transforms, with the frozen samples of the solve.

        Args:
            update: The update.
            solve: The finished solve.
        """
        function = StateFunction(update, solve.structure)
        frozen = solve.frozen.mapped(lambda one: self.lift([one])[0], solve.batch_dims - len(self.vmap_levels))

        def apply(vector: Vector) -> Vector:
            solve.function.calls += 1
            with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no second derivatives
                return frozen.apply(function, vector)[1]

        return apply
