"""Dropping the steps of optimisers whose gradients are invalid."""

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from rbp_lightning.failures import Failure


class SkippedSteps:
    """Knows which parameters have an invalid gradient, and how many steps were dropped for it.

    Attributes:
        total: How many batches had a step dropped.
        in_a_row: How many of the last ones did, without one between them that did not.
        reason: Why the last one did.
    """

    def __init__(self) -> None:
        self.total = self.in_a_row = 0
        self.reason = "another process failed"
        self._optimizers: Sequence[Optimizer] = ()
        self._invalid: set[int] = set()
        self._stepped = self._dropped = False

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: no optimisers, whose steps are not its own."""
        return {**vars(self), "_optimizers": (), "_invalid": set()}

    def watch(self, optimizers: Sequence[Optimizer]) -> None:
        """Begins a training.

        Args:
            optimizers: Those whose steps may be dropped.
        """
        self._optimizers = optimizers

    def mark_invalid(self, failure: Failure, parameters: Iterable[Tensor] | None) -> None:
        """Marks gradients as invalid.

        Args:
            failure: Why.
            parameters: The parameters; ``None`` for all.
        """
        self.reason = failure.value
        stepped = {id(parameter) for optimizer in self._optimizers for parameter in parameters_of(optimizer)}
        self._invalid |= stepped if parameters is None else stepped & {id(parameter) for parameter in parameters}

    def has_invalid(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the gradient of one of some parameters is invalid."""
        return not self._invalid.isdisjoint(id(parameter) for parameter in parameters)

    def drop_step(self, pl_module: LightningModule, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        """Drops the step that an optimiser is about to take, by taking its gradients away.

        Args:
            pl_module: The module, whose gradients are not clipped in this step: there are none.
            optimizer: The optimiser.
            parameters: Its parameters.
        """
        for parameter in parameters:
            parameter.grad = None
        self._leave_clipping_out(pl_module, optimizer)
        self._invalid -= {id(parameter) for parameter in parameters}
        if not self._dropped:  # several optimisers may step on one batch
            self.total += 1
            self.in_a_row += 1
        self._dropped = True

    @staticmethod
    def _leave_clipping_out(pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Clipping by value fails on no gradients at all.
        def leave_out(*arguments: Any, **named: Any) -> None:
            put_back()

        def put_back(*arguments: Any) -> None:
            if vars(pl_module).get("configure_gradient_clipping") is leave_out:
                del pl_module.configure_gradient_clipping
            handle.remove()

        pl_module.configure_gradient_clipping = leave_out  # type: ignore[method-assign]
        handle = optimizer.register_step_post_hook(put_back)

    def stepped(self) -> None:
        """Notes that an optimiser took its step."""
        self._stepped = True

    def end_batch(self) -> None:
        """Ends a batch; gradients that are accumulated for a later step stay invalid."""
        if self._stepped and not self._dropped:
            self.in_a_row = 0
        self._stepped = self._dropped = False

    def forget(self) -> None:
        """Forgets what was invalid, at the end of a training."""
        self._optimizers, self._invalid = (), set()
        self._stepped = self._dropped = False


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters that an optimiser steps."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
