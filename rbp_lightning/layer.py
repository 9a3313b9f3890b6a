"""A layer whose output is a fixed point."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rbp_lightning.agreement import agreeing
from rbp_lightning.errors import UserError, check_count, check_instance
from rbp_lightning.estimators import GradientEstimator, Implicit
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.kept_solves import KeptSolves
from rbp_lightning.nn import held
from rbp_lightning.pytree import State
from rbp_lightning.state_function import Update
from rbp_lightning.tracing import is_traced


class FixedPointLayer(nn.Module):
    """A layer whose output is the fixed point h* = cell(h*, *inputs).

    During a solve, ``held`` keeps random numbers, such as dropout masks, and parametrized weights constant. The
    processes that share a sharded cell solve together.

    Args:
        cell: A module ``cell(h, *inputs)`` that returns the next state, with the structure and shapes of h.
        estimator: Finds the fixed point and its gradient; ``None`` is the estimator of the Trainer in a
            LightningModule that has one, and ``Implicit()`` otherwise.
        batch_dims: Number of leading dimensions of the state that index independent samples.
        order: The highest order of derivatives, at least 1.
        initial_state: A module ``initial_state(*inputs)`` that returns the initial state; ``None`` is zeros with the
            shape and dtype of the first input. Only ``BPTT`` and ``CheckpointedBPTT`` propagate a gradient to it.
        warm_start: Whether a solve starts at the last fixed point, sample by sample, if its shape is the same. Training
            and evaluation have separate warm starts, which are part of the ``state_dict``.
        eval_max_steps: Maximum number of applications of the cell in evaluation mode; ``None`` is the solver's.
        penalty: A function ``penalty(update, state)``, such as ``jacobian_penalty``, whose value in training mode is
            ``FixedPoint.penalty``, to be weighted and added to the loss.

    Raises:
        UserError: If an argument is invalid.

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

    def __init__(
        self,
        cell: nn.Module,
        estimator: GradientEstimator | None = None,
        batch_dims: int = 1,
        order: int = 1,
        initial_state: nn.Module | None = None,
        warm_start: bool = False,
        eval_max_steps: int | None = None,
        penalty: Callable[[Update, State], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.cell = check_instance(self, "cell", cell, nn.Module, "a torch.nn.Module that maps (h, *inputs) to h")
        if estimator is not None:
            check_instance(self, "estimator", estimator, GradientEstimator, "one, such as Implicit()")
        self.takes_estimator = estimator is None
        self.estimator: GradientEstimator = Implicit() if estimator is None else estimator
        self.batch_dims = check_count(self, "batch_dims", batch_dims, 0)
        self.order = check_count(self, "order", order, 1)
        if initial_state is not None:
            check_instance(self, "initial_state", initial_state, nn.Module, "a module that makes it from the inputs")
        self.initial_state = initial_state
        check_instance(self, "warm_start", warm_start, bool, "true or false")
        self.kept_solves = KeptSolves() if warm_start else None
        self.eval_max_steps = None if eval_max_steps is None else check_count(self, "eval_max_steps", eval_max_steps, 1)
        if penalty is not None and not callable(penalty):
            raise UserError(
                f"FixedPointLayer: penalty={penalty!r} is not a function: pass one, such as jacobian_penalty."
            )
        self.penalty = penalty

    def solve(self, *inputs: Any, initial_state: State | None = None, max_steps: int | None = None) -> FixedPoint:
        """Finds the fixed point.

        Args:
            inputs: The inputs of the cell other than the state.
            initial_state: The initial state; ``None`` is the layer's.
            max_steps: Maximum number of applications of the cell; ``None`` is the layer's.

        Returns:
            The fixed point, and how the solve ended.

        Raises:
            UserError: If there is no initial state, and no input to take its shape from.
        """
        if is_traced():
            return self._solve(inputs, initial_state, max_steps)
        with agreeing(self.cell):
            return self._solve(inputs, initial_state, max_steps)

    def _solve(self, inputs: tuple[Any, ...], initial_state: State | None, max_steps: int | None) -> FixedPoint:
        update = held(lambda state: self.cell(state, *inputs), self.cell)
        fixed_point: FixedPoint = self.estimator(
            update,
            self._start(inputs) if initial_state is None else initial_state,
            batch_dims=self.batch_dims,
            warm_start=None if self.kept_solves is None else self.kept_solves.of_mode(self.training),
            max_steps=self.eval_max_steps if max_steps is None and not self.training else max_steps,
            order=self.order,
        )
        if self.penalty is None or not self.training:
            return fixed_point
        return replace(fixed_point, penalty=self.penalty(update, fixed_point.state))

    def forward(self, *inputs: Any, initial_state: State | None = None, max_steps: int | None = None) -> State:
        """Returns the state at the fixed point; the arguments are those of ``solve``."""
        return self.solve(*inputs, initial_state=initial_state, max_steps=max_steps).state

    def _start(self, inputs: tuple[Any, ...]) -> State:
        if self.initial_state is not None:
            return self.initial_state(*inputs)
        if not inputs or not isinstance(inputs[0], Tensor) or inputs[0].layout is not torch.strided:
            raise UserError("FixedPointLayer: its first input is not a dense tensor: pass an initial_state.")
        return torch.zeros_like(inputs[0])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Ignores saved warm starts if this layer has none."""
        if self.kept_solves is None:
            state_dict.pop(f"{prefix}kept_solves._extra_state", None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        shown = {"estimator": self.estimator, "batch_dims": self.batch_dims}
        defaults = {"order": 1, "eval_max_steps": None, "penalty": None}
        shown |= {name: value for name, default in defaults.items() if (value := getattr(self, name)) != default}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())
