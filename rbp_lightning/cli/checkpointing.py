"""The checkpoints of a run."""

from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from rbp_lightning.errors import check_choice, check_count


class Checkpointing:
    """Keeps the checkpoints ``last.ckpt`` and ``best.ckpt`` of a run.

    They are in ``checkpoints`` of the run's folder or, without a logger, of ``trainer.default_root_dir``. Without
    either, or with ``trainer.enable_checkpointing=false``, there are none. A resumed run keeps checkpoints of its own:
    its ``best.ckpt`` is the best since it resumed.

    Args:
        monitor: The metric that selects the best checkpoint; ``null`` keeps no ``best.ckpt``.
        mode: Whether a low (``min``) or a high (``max``) value is better.
        every_n_train_steps: Write ``last.ckpt`` also within an epoch, every so many optimiser steps; ``null`` writes it
            at the end of each epoch only.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int | None = None,
    ) -> None:
        self.monitor = monitor
        self.mode = check_choice(self, "mode", mode, ("min", "max"))
        steps = every_n_train_steps
        self.every_n_train_steps = None if steps is None else check_count(self, "every_n_train_steps", steps, 1)

    def trainer_arguments(self, trainer: Namespace) -> dict[str, Any]:
        """Returns the Trainer's arguments for checkpoints, which take precedence over the configured ones.

        Args:
            trainer: The Trainer's configuration, with instantiated callbacks.
        """
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        callbacks = [callback for callback in callbacks if callback is not None]
        if trainer.enable_checkpointing is False:
            return {}
        if trainer.logger is False and trainer.default_root_dir is None:
            own = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
            return {} if own else {"enable_checkpointing": False}
        # Lightning rejects two callbacks with the same state key.
        keys = {callback.state_key for callback in callbacks}
        return {"callbacks": [*callbacks, *(one for one in self._callbacks() if one.state_key not in keys)]}

    def _callbacks(self) -> list[ModelCheckpoint]:
        # With save_last, ModelCheckpoint writes last.ckpt only when the best one changes.
        same: dict[str, Any] = {"filename": "last", "enable_version_counter": False}
        last = [ModelCheckpoint(**same, save_on_train_epoch_end=True)]
        if self.every_n_train_steps is not None:
            last.append(_WithinEpochs(**same, every_n_train_steps=self.every_n_train_steps))
        return last if self.monitor is None else [ModelCheckpoint(None, "best", self.monitor, mode=self.mode), *last]


class _WithinEpochs(ModelCheckpoint):
    """Skips the last batch of an epoch: a run resumed from there would skip the epoch's validation."""

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *arguments)
