"""Counts of the operations in a solve and its gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peers.networks import Case

FIRST = 5
"""Number of solves before the one that is counted."""


@dataclass(frozen=True)
class Counts:
    """Counts of one solve and its gradient.

    Attributes:
        applications: How often F was applied.
        products: Products with its transposed Jacobian, including the one into the parameters.
        operators: PyTorch operators, including those of F.
    """

    applications: int
    products: int
    operators: int


class CountOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators.

    Args:
        only: The operator to count; ``None`` for all.

    Attributes:
        count: The number so far.
    """

    def __init__(self, only: Callable[..., Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.only, self.count = only, 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operator, and counts it if asked to."""
        self.count += self.only is None or func == self.only
        return func(*args, **(kwargs or {}))


def counted(case: Case, solve: Callable[[Case], Tensor]) -> Counts:
    """Counts the operations of a solve and its gradient, after a few solves, in which the library may check more.

    Args:
        case: The network.
        solve: Returns the network's fixed point, differentiable with respect to the parameters.
    """
    applications = products = 0

    def pulled_back(gradient: Tensor) -> None:
        nonlocal products
        products += 1

    def step(state: Tensor, *prepared: Tensor) -> Tensor:
        nonlocal applications
        applications += 1
        image: Tensor = case.step(state, *prepared)
        if image.requires_grad:
            image.register_hook(pulled_back)  # type: ignore[no-untyped-call]
        return image

    for _ in range(FIRST):
        torch.autograd.grad(case.loss(solve(case)), case.parameters)
    with CountOperators() as operators:
        torch.autograd.grad(case.loss(solve(replace(case, step=step))), case.parameters)
    return Counts(applications, products, operators.count)
