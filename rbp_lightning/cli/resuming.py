"""What Lightning leaves out where a run is continued."""

from itertools import islice
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.hooks import RemovableHandle


class ExactResume(Callback):
    """Makes a continued run the one that would have gone on.

    Lightning copies the checkpoint's parameters into the module before it converts that to the precision of the run,
    which rounds those of ``64-true`` to single precision. A run that was interrupted within an epoch goes on there with
    the epoch's first batches; here it goes on with those that are left.
    """

    hook: RemovableHandle | None = None

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Skips the batches that were done of the epoch, once its sampler has drawn their order."""
        loop, fetcher = trainer.fit_loop, trainer.fit_loop._data_fetcher
        done: int = cast(Any, loop.epoch_loop.batch_progress.current).processed
        if not loop.restarted_mid_epoch or fetcher is None or fetcher.iterator is None:
            return
        # One without a length has fetched its first batch already.
        if fetcher.length is not None and done < fetcher.length:
            fetcher.iterator = islice(fetcher.iterator, done, None)
