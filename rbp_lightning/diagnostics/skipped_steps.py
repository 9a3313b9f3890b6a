"""Skipping the steps of optimisers whose gradients are invalid."""

from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from rbp_lightning.failures import Failure


class SkippedSteps:
    """Tracks the parameters whose gradient is invalid, and counts the steps skipped for it.

    Attributes:
        total: The number of batches with a skipped step.
        in_a_row: The number of such batches in a row, up to the last one.
        reason: The reason of the last skipped step.
    """

    def __init__(self) -> None:
        self.total = self.in_a_row = 0
        self.reason = "another process failed"
        self._optimizers: Sequence[Optimizer] = ()
        self._invalid: set[int] = set()
        self._stepped = self._skipped = False

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, without the optimisers, which are not its own."""
        return {**vars(self), "_optimizers": (), "_invalid": set()}

    def watch(self, optimizers: Sequence[Optimizer]) -> None:
        """Sets the optimisers of a training.

        Args:
            optimizers: The optimisers whose steps may be skipped.
        """
        self._optimizers = optimizers

    def mark_invalid(self, failure: Failure, parameters: Iterable[Tensor] | None) -> None:
        """Marks gradients as invalid.

        Args:
            failure: The reason.
            parameters: The parameters; ``None`` for all.
        """
        self.reason = failure.value
        stepped = {id(parameter) for optimizer in self._optimizers for parameter in parameters_of(optimizer)}
        self._invalid |= stepped if parameters is None else stepped & {id(parameter) for parameter in parameters}

    def has_invalid(self, parameters: Sequence[Tensor]) -> bool:
        """Whether the gradient of any of the parameters is invalid."""
        return not self._invalid.isdisjoint(id(parameter) for parameter in parameters)

    def skip_step(self, pl_module: LightningModule, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        """Skips the step that an optimiser is about to take, by removing its gradients.

        Args:
            pl_module: The module, whose gradient clipping is skipped as well.
            optimizer: The optimiser.
            parameters: Its parameters.
        """
        for parameter in parameters:
            parameter.grad = None
        self._skip_clipping(pl_module, optimizer)
        self._invalid -= {id(parameter) for parameter in parameters}
        if not self._skipped:  # several optimisers may step on one batch
            self.total += 1
            self.in_a_row += 1
        self._skipped = True

    @staticmethod
    def _skip_clipping(pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Clipping by value fails without gradients.
        def no_clipping(*arguments: Any, **named: Any) -> None:
            restore()

        def restore(*arguments: Any) -> None:
            if vars(pl_module).get("configure_gradient_clipping") is no_clipping:
                del pl_module.configure_gradient_clipping
            handle.remove()

        pl_module.configure_gradient_clipping = no_clipping  # type: ignore[method-assign]
        handle = optimizer.register_step_post_hook(restore)

    def mark_stepped(self) -> None:
        """Marks that an optimiser took its step."""
        self._stepped = True

    def end_batch(self) -> None:
        """Ends a batch; gradients accumulated for a later step stay invalid."""
        if self._stepped and not self._skipped:
            self.in_a_row = 0
        self._stepped = self._skipped = False

    def forget(self) -> None:
        """Forgets the optimisers and invalid gradients at the end of a training."""
        self._optimizers, self._invalid = (), set()
        self._stepped = self._skipped = False


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Returns the parameters of an optimiser."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
