"""Exact resuming: what Lightning does not restore from a checkpoint."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.hooks import RemovableHandle

from rbp_lightning.cli.generators import generator_states, set_generator_states

_KEY = "generators"


class ExactResume(Callback):
    """Makes a resumed run equal to one that was never interrupted.

    Lightning loads the checkpoint's parameters before it converts the module to the precision of the run, which rounds
    those of ``64-true`` to single precision; here the module is converted first. Lightning resumes within an epoch with
    the epoch's first batches; here a run resumes with the remaining ones. For that, checkpoints hold the states of each
    process's global random generators, both current and at the start of the epoch, where they determine the order of
    shuffled batches.
    """

    hook: RemovableHandle | None = None
    saved: Any = None
    epoch_start: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Converts the module before parameters are loaded, including those that its ``setup`` will create."""

        def convert(module: LightningModule, *_: Any) -> None:
            trainer.precision_plugin.convert_module(module)

        self.hook = cast(Any, pl_module).register_load_state_dict_pre_hook(convert)

    def _remove_hook(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None  # the hook holds the trainer

    on_fit_start = on_validation_start = on_test_start = on_predict_start = _remove_hook

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the states of the generators, from which a sampler will draw an order."""
        self.epoch_start = generator_states(trainer.strategy.root_device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the states of the generators of all processes, all of which call this."""
        states = {"now": generator_states(trainer.strategy.root_device), "epoch": self.epoch_start}
        gathered = [states] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(gathered, states)
        checkpoint[_KEY] = gathered

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the states for the start of the training, unless they are of another number of processes."""
        gathered = checkpoint.get(_KEY, [])
        self.saved = gathered[trainer.global_rank] if len(gathered) == trainer.world_size else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the generators, and skips the batches of the epoch that were done before."""
        saved, self.saved = self.saved, None
        if saved is not None:
            self.epoch_start = saved["epoch"]
            set_generator_states(saved["now"], trainer.strategy.root_device)
        loop, fetcher = trainer.fit_loop, trainer.fit_loop._data_fetcher
        done: int = cast(Any, loop.epoch_loop.batch_progress.current).processed if loop.restarted_mid_epoch else 0
        resumed = saved is not None or done > 0
        # A fetcher without a length has already fetched its first batch.
        if resumed and fetcher is not None and fetcher.iterator is not None and done < (fetcher.length or 0):
            fetcher.iterator = _RemainingBatches(trainer, done, saved if done else None)


class _RemainingBatches(Iterator[Any]):
    """Iterates over the remaining batches of an epoch, in the order in which the epoch began.

    Args:
        trainer: The trainer.
        done: The number of batches that were done.
        saved: The states of the generators, current and at the start of the epoch.
    """

    def __init__(self, trainer: Trainer, done: int, saved: dict[str, Any] | None) -> None:
        self._trainer, self._done, self._saved = trainer, done, saved
        self._loader: Any = None

    def __next__(self) -> Any:
        if self._loader is None:
            self._start()
        return next(self._loader)

    def _start(self) -> None:
        device, self._loader = self._trainer.strategy.root_device, self._trainer.fit_loop._combined_loader
        if self._saved is not None:
            set_generator_states(self._saved["epoch"], device)
        if self._trainer.current_epoch > 0:
            iter(self._loader)  # the first epoch's iterator is created before the epoch starts
        for _ in range(self._done):
            next(self._loader)
        if self._saved is not None:
            set_generator_states(self._saved["now"], device)
