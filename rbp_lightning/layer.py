"""A fixed point as a layer."""

from typing import Any

import torch
from torch import Tensor, nn

from rbp_lightning.errors import UserError, check_count, check_instance
from rbp_lightning.estimators import GradientEstimator, Implicit
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.pytree import State


class FixedPointLayer(nn.Module):
    """A layer whose output is the fixed point h* = cell(h*, *inputs).

    Args:
        cell: A module ``cell(h, *inputs)`` that returns the next state, of the structure and shapes of h.
        estimator: Finds the fixed point and decides how gradients flow; ``None`` is ``Implicit()``.
        batch_dims: How many leading dimensions of the state index independent samples.

    Raises:
        UserError: If an argument is not as described.

    Example:
        >>> class Cell(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(8, 8)
        ...     def forward(self, h, x):
        ...         return torch.tanh(0.5 * self.linear(h) + x)
        >>> layer = FixedPointLayer(Cell(), CGRBP())
        >>> layer(torch.randn(4, 8)).shape
        torch.Size([4, 8])
    """

    def __init__(self, cell: nn.Module, estimator: GradientEstimator | None = None, batch_dims: int = 1) -> None:
        super().__init__()
        self.cell = check_instance(self, "cell", cell, nn.Module, "a torch.nn.Module that maps (h, *inputs) to h")
        if estimator is not None:
            check_instance(self, "estimator", estimator, GradientEstimator, "one, such as Implicit()")
        self.estimator: GradientEstimator = Implicit() if estimator is None else estimator
        self.batch_dims = check_count(self, "batch_dims", batch_dims, 0)

    def solve(self, *inputs: Any, initial_state: State | None = None, max_steps: int | None = None) -> FixedPoint:
        """Finds the fixed point.

        Args:
            inputs: What the cell takes beside the state.
            initial_state: Where to start; ``None`` is zeros of the first input's shape and dtype.
            max_steps: Most applications of the cell; ``None`` takes the solver's.

        Returns:
            The fixed point, and how the solve ended.

        Raises:
            UserError: If there is neither an initial state nor an input to take its shape from.
        """
        if initial_state is None:
            if not inputs or not isinstance(inputs[0], Tensor) or inputs[0].layout is not torch.strided:
                raise UserError("FixedPointLayer: its first input is no dense tensor: pass an initial_state.")
            initial_state = torch.zeros_like(inputs[0])
        fixed_point: FixedPoint = self.estimator(
            lambda state: self.cell(state, *inputs), initial_state, batch_dims=self.batch_dims, max_steps=max_steps
        )
        return fixed_point

    def forward(self, *inputs: Any, initial_state: State | None = None, max_steps: int | None = None) -> State:
        """Returns the state at the fixed point; arguments as ``solve`` takes them."""
        return self.solve(*inputs, initial_state=initial_state, max_steps=max_steps).state

    def extra_repr(self) -> str:
        """Estimator and batch dimensions, for ``repr``."""
        return f"estimator={self.estimator!r}, batch_dims={self.batch_dims}"
