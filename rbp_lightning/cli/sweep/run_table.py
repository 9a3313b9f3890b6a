"""The live table of a sweep's runs."""

from rbp_lightning.cli.sweep.outcome import Outcome
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.workers import LiveTable


class RunTable(LiveTable):
    """Shows the epoch and the metric of the runs in progress, and the outcome of each that has ended.

    Args:
        total: The number of runs.
        metric: The metric that is compared.
    """

    def __init__(self, total: int, metric: str) -> None:
        super().__init__(total, "epoch", metric)
        self._metric = metric

    def epoch(self, run: Planned, epoch: int, value: float | None) -> None:
        """Shows the progress of a run.

        Args:
            run: The run.
            epoch: The number of epochs completed.
            value: The metric's value; ``None`` if it has not been logged yet.
        """
        epochs = f"{epoch}/{run.config['trainer']['max_epochs'] or 1000}"  # Lightning's default
        self.reported(run.name, epochs, "" if value is None else f"{value:.4g}")

    def outcome(self, run: Planned, outcome: Outcome, before: bool = False) -> None:
        """Removes a run from the table and prints how it ended.

        Args:
            run: The run.
            outcome: Its outcome.
            before: Whether it ended in an earlier call.
        """
        if outcome.state == "failed":
            result = f"failed: {outcome.error} ({run.log})"
        else:
            result = f"{outcome.state}{' before' * before}: {self._metric} {outcome.value(self._metric):.4g}"
        self.ended(run.name, outcome.state, result)
