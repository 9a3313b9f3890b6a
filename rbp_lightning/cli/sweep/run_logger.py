"""TensorBoard's HPARAMS of a training that is one of many."""

from typing import Any

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(TensorBoardLogger):
    """A ``TensorBoardLogger`` by whose HPARAMS the trainings of a sweep are told apart.

    The estimator comes first, with its arguments, then what the sweep adds, then all others. The metric is the one that
    the sweep compares, by its own name; no value stands in for one that was not logged.

    Args:
        args: As for ``TensorBoardLogger``.
        metric: The name of the metric.
        first: What the sweep adds: the seed and the model's class.
        kwargs: As for ``TensorBoardLogger``.
    """

    def __init__(self, *args: Any, metric: str, first: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metric, self._first = metric, first or {}
        self._told = False

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Logs hyperparameters; in HPARAMS, those of the first call.

        Args:
            params: The hyperparameters.
            metrics: Values, by metric, to log along.
            step: Their step.
        """
        given = _convert_params(params)
        ordered = {name: given[name] for name in ("estimator",) if name in given} | self._first
        ordered |= {name: value for name, value in given.items() if name not in ordered}
        super().log_hyperparams(ordered, metrics, step)
        if self._told:
            return
        from torch.utils.tensorboard.summary import hparams

        self._told = True
        writer = self.experiment._get_file_writer()
        flat = self._sanitize_params(_flatten_dict(ordered))
        # Of the metric they hold the name alone.
        for summary in hparams(flat, {self._metric: 0.0}):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
