"""The logger of a sweep's runs, for TensorBoard's HPARAMS tab."""

from typing import Any

from lightning.fabric.utilities.logger import _convert_params
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from rbp_lightning.cli.hparams_tab import list_run


class RunLogger(TensorBoardLogger):
    """A ``TensorBoardLogger`` whose HPARAMS tab shows how the runs of a sweep differ.

    The columns are the estimator with its arguments, then ``first``, then all other hyperparameters, and the metric
    that the sweep compares, under its own name. A metric that was not logged gets no placeholder value.

    Args:
        args: As for ``TensorBoardLogger``.
        metric: The name of the metric.
        first: Hyperparameters to show first: the seed and the model's class.
        kwargs: As for ``TensorBoardLogger``.
    """

    def __init__(self, *args: Any, metric: str, first: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metric, self._first = metric, first or {}
        self._written = False

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Logs hyperparameters; the HPARAMS tab shows those of the first call.

        Args:
            params: The hyperparameters.
            metrics: Values to log with them, by metric.
            step: The step of these values.
        """
        given = _convert_params(params)
        ordered = {name: given[name] for name in ("estimator",) if name in given} | self._first
        ordered |= {name: value for name, value in given.items() if name not in ordered}
        super().log_hyperparams(ordered, metrics, step)
        if not self._written:
            self._written = True
            list_run(self, ordered, [self._metric])
