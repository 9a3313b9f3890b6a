"""What Lightning leaves out where a run is continued."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.hooks import RemovableHandle

from rbp_lightning.cli.generators import generator_states, set_generator_states

_KEY = "generators"


class ExactResume(Callback):
    """Makes a continued run the one that would have gone on.

    Lightning copies the checkpoint's parameters into the module before it converts that to the precision of the run,
    which rounds those of ``64-true`` to single precision. A run that was interrupted within an epoch goes on there with
    the epoch's first batches; here it goes on with those that are left. Checkpoints hold the states of the global
    random generators of each process, now and as the epoch began, which order its batches where they are shuffled.
    """

    hook: RemovableHandle | None = None
    saved: Any = None
    began: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Converts the module before parameters are copied into it, with those that its ``setup`` is going to make."""

        def convert(module: LightningModule, *_: Any) -> None:
            trainer.precision_plugin.convert_module(module)

        self.hook = cast(Any, pl_module).register_load_state_dict_pre_hook(convert)

    def _restored(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None  # it holds the trainer

    on_fit_start = on_validation_start = on_test_start = on_predict_start = _restored

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the states of the generators, from which a sampler is about to draw an order."""
        self.began = generator_states(trainer.strategy.root_device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the states of the generators of all processes, which save together."""
        own = {"now": generator_states(trainer.strategy.root_device), "epoch": self.began}
        of_each = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(of_each, own)
        checkpoint[_KEY] = of_each

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the states for the start of the training; those of another number of processes are none of this run."""
        of_each = checkpoint.get(_KEY, [])
        self.saved = of_each[trainer.global_rank] if len(of_each) == trainer.world_size else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets the generators, and has the batches that were done of the epoch passed over."""
        saved, self.saved = self.saved, None
        if saved is not None:
            self.began = saved["epoch"]
            set_generator_states(saved["now"], trainer.strategy.root_device)
        loop, fetcher = trainer.fit_loop, trainer.fit_loop._data_fetcher
        done: int = cast(Any, loop.epoch_loop.batch_progress.current).processed if loop.restarted_mid_epoch else 0
        resumed = saved is not None or done > 0
        # A fetcher without a length has fetched its first batch already.
        if resumed and fetcher is not None and fetcher.iterator is not None and done < (fetcher.length or 0):
            fetcher.iterator = _Left(trainer, done, saved if done else None)


class _Left(Iterator[Any]):
    """The batches that are left of an epoch, begun as the epoch was.

    Args:
        trainer: The trainer.
        done: How many batches were done.
        saved: The states of the generators, now and as the epoch began.
    """

    def __init__(self, trainer: Trainer, done: int, saved: dict[str, Any] | None) -> None:
        self._trainer, self._done, self._saved = trainer, done, saved
        self._loader: Any = None

    def __next__(self) -> Any:
        if self._loader is None:
            self._begin()
        return next(self._loader)

    def _begin(self) -> None:
        device, self._loader = self._trainer.strategy.root_device, self._trainer.fit_loop._combined_loader
        if self._saved is not None:
            set_generator_states(self._saved["epoch"], device)
        if self._trainer.current_epoch > 0:
            iter(self._loader)  # that of the first epoch is made before the epoch begins
        for _ in range(self._done):
            next(self._loader)
        if self._saved is not None:
            set_generator_states(self._saved["now"], device)
