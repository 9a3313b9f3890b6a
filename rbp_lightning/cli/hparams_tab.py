"""TensorBoard's HPARAMS tab, with metrics under their own names."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.fabric.utilities.logger import _flatten_dict
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from rbp_lightning.cli.summary import shown_metrics

_CHOSEN = "hp_metric"
"""The metric that Lightning lists; a user's module may log it."""


def list_run(logger: TensorBoardLogger, params: Mapping[str, Any], metrics: Iterable[str]) -> None:
    """Lists a run in the HPARAMS tab, which ignores all but the first call.

    Args:
        logger: The run's logger.
        params: The hyperparameters.
        metrics: Names of metrics; the tab takes their values from the curves.
    """
    from torch.utils.tensorboard.summary import hparams

    writer = logger.experiment._get_file_writer()
    flat = logger._sanitize_params(_flatten_dict(dict(params)))
    # The summaries hold the metrics' names, not their values.
    for summary in hparams(flat, dict.fromkeys(metrics, 0.0)):  # type: ignore[no-untyped-call]
        writer.add_summary(summary)


class HParamsTab(Callback):
    """Lists a training in the HPARAMS tab of its ``TensorBoardLogger``, once it has been validated or has ended.

    Its metrics are those of the summary that are known then. It replaces Lightning's own entry, which has ``hp_metric``
    alone, with the value -1.
    """

    listed = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lists the training after its first validation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._list(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lists a training without a validation."""
        self._list(trainer)

    def _list(self, trainer: Trainer) -> None:
        if self.listed:
            return
        self.listed = True
        logged = trainer.logged_metrics  # all ranks must ask together, since values may not have been reduced yet
        metrics = sorted({*shown_metrics(trainer, logged), *({_CHOSEN} & logged.keys())})
        for logger in listing_loggers(trainer) if trainer.is_global_zero else []:
            list_run(logger, logger.hparams, metrics)  # type: ignore[arg-type]


def listing_loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    """The ``TensorBoardLogger``s that are Lightning's own: a subclass may list its runs by itself.

    Args:
        trainer: The Trainer.
    """
    return [logger for logger in trainer.loggers if type(logger) is TensorBoardLogger]
