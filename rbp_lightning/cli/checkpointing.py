"""The checkpoints of a run."""

from typing import Any, Literal

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from rbp_lightning.errors import check_choice, check_count


class Checkpointing:
    """Which checkpoints of a run are kept: ``last.ckpt`` and ``best.ckpt``.

    They lie in ``checkpoints`` of the run's folder or, without a logger, of ``trainer.default_root_dir``. Without
    either, or with ``trainer.enable_checkpointing=false``, none are kept. A run that continues another one keeps its
    own: its ``best.ckpt`` is the best since then.

    Args:
        monitor: The metric that decides which checkpoint is best; ``null`` keeps no ``best.ckpt``.
        mode: Whether the least (``min``) or the greatest (``max``) value is best.
        every_n_train_steps: After how many steps of the optimiser ``last.ckpt`` is written within an epoch as well;
            ``null`` writes it at the ends of epochs alone.
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
        """Returns what the Trainer is given beside, or in place of, its configured arguments.

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
        # Lightning refuses two that would save their state under the same key.
        keys = {callback.state_key for callback in callbacks}
        return {"callbacks": [*callbacks, *(one for one in self._callbacks() if one.state_key not in keys)]}

    def _callbacks(self) -> list[ModelCheckpoint]:
        # ModelCheckpoint's save_last is written only along with a new best.
        same: dict[str, Any] = {"filename": "last", "enable_version_counter": False}
        kept = [ModelCheckpoint(**same, save_on_train_epoch_end=True)]
        if self.every_n_train_steps is not None:
            kept.append(_WithinEpochs(**same, every_n_train_steps=self.every_n_train_steps))
        return kept if self.monitor is None else [ModelCheckpoint(None, "best", self.monitor, mode=self.mode), *kept]


class _WithinEpochs(ModelCheckpoint):
    """Leaves the last batch of an epoch to the checkpoint of the epoch: a run from here would skip its validation."""

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *arguments)
