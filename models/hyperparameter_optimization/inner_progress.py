"""An observer of an inner training."""

import math
import sys
from types import TracebackType

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from tqdm import tqdm

from models.inner_training import TrainingState

MAX_LOSSES = 100
"""The most losses in the loss curve of an inner training."""


class InnerProgress:
    """Shows a progress bar, keeps a loss curve, and detects values that are not finite.

    It does not wait for the device before the training ends.

    Args:
        trainer: The Trainer; without its progress bar, none is shown here.
        max_steps: Number of steps of the inner training.

    Attributes:
        losses: Losses at evenly spaced steps, by step.
    """

    def __init__(self, trainer: Trainer, max_steps: int) -> None:
        outer = trainer.progress_bar_callback
        self._shown = isinstance(outer, TQDMProgressBar) and outer.is_enabled
        self.max_steps = max_steps
        self.losses: dict[int, Tensor] = {}
        self._every = math.ceil(max_steps / MAX_LOSSES)
        self._finite = torch.tensor(True)
        self._finite_steps = torch.tensor(0)
        self._steps = 0

    def __enter__(self) -> "InnerProgress":
        self._bar = tqdm(
            total=self.max_steps, desc="inner steps", position=1, leave=False, disable=not self._shown, file=sys.stdout
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def __call__(self, step: int, loss: Tensor, state: TrainingState) -> None:
        """Records a step.

        Args:
            step: Number of steps so far.
            loss: The loss before the step.
            state: The state after it.
        """
        if step > self.max_steps:  # diagnostics apply the update again after the training
            return
        self._bar.update()
        if (step - 1) % self._every == 0:
            self.losses[step] = loss
        with torch.no_grad():
            # A solver considers a state diverged once its norm overflows.
            norms = [leaf.norm().float() for leaf in state["parameters"].values()]
            finite = torch.stack([loss.float(), *norms]).isfinite().all()
            self._finite = finite & self._finite.to(finite.device)
            self._finite_steps = self._finite_steps.to(finite.device) + self._finite
        self._steps = step

    def failed_at(self, trainer: Trainer) -> int | None:
        """Returns the first step with a value that is not finite in any process; ``None`` if all are finite.

        Args:
            trainer: The Trainer, whose processes are compared.
        """
        finite_steps = int(trainer.strategy.reduce(self._finite_steps, reduce_op="min"))
        return finite_steps + 1 if finite_steps < self._steps else None
