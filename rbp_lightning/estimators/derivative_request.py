"""Which derivatives of a fixed point are wanted."""

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
"""Makes the differentiable leaves of a fixed point, given F on leaves and the leaves of the initial state."""


@dataclass(frozen=True)
class DerivativeRequest:
    """What is asked for beside first derivatives in reverse mode.

    Attributes:
        order: The highest order.
        transforms: The transforms around the call of the solve; ``None`` for none.
    """

    order: int
    transforms: Transforms | None

    @property
    def vmap_levels(self) -> Sequence[int]:
        """Levels of the vmaps around the solve."""
        return () if self.transforms is None else self.transforms.vmap_levels

    def lift(self, vector: Vector) -> list[Tensor]:
        """Leaves of the solve as they are within the transforms."""
        return list(vector) if self.transforms is None else [self.transforms.lift(leaf) for leaf in vector]

    def function(self, update: Update, solve: Solve) -> Callable[[Vector], Vector]:
        """F on leaves as it is within the transforms, with the samples of a solve frozen that have failed.

        Args:
            update: The update.
            solve: The solve, which has ended.
        """
        function = StateFunction(update, solve.structure)
        frozen = solve.frozen.mapped(lambda one: self.lift([one])[0], solve.batch_dims - len(self.vmap_levels))

        def apply(vector: Vector) -> Vector:
            solve.function.calls += 1
            with sdpa_kernel(SDPBackend.MATH):  # fused kernels of attention have first derivatives alone
                return frozen.apply(function, vector)[1]

        return apply
