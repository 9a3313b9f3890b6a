"""A live table of the runs in progress."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from rbp_lightning.cli.sweep.outcome import Outcome
from rbp_lightning.cli.sweep.planned import Planned


class LiveTable:
    """Shows a table of the runs in progress and a line for each that has ended, on standard error.

    Args:
        total: The number of runs.
        metric: The metric that is compared.
    """

    def __init__(self, total: int, metric: str) -> None:
        self._total, self._metric = total, metric
        self._rows: dict[str, tuple[str, str]] = {}
        self._counts = {"finished": 0, "pruned": 0, "failed": 0}
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveTable":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, run: Planned) -> None:
        """Adds a run to the table.

        Args:
            run: The run.
        """
        self._rows[run.name] = ("", "")
        self._draw()

    def reported(self, run: Planned, epoch: int, value: float | None) -> None:
        """Shows the progress of a run.

        Args:
            run: The run.
            epoch: The number of epochs completed.
            value: The metric's value; ``None`` if it has not been logged yet.
        """
        epochs = f"{epoch}/{run.config['trainer']['max_epochs'] or 1000}"  # Lightning's default
        self._rows[run.name] = (epochs, "" if value is None else f"{value:.4g}")
        self._draw()

    def ended(self, run: Planned, outcome: Outcome, before: bool = False) -> None:
        """Removes a run from the table and prints how it ended.

        Args:
            run: The run.
            outcome: Its outcome.
            before: Whether it ended in an earlier call.
        """
        self._rows.pop(run.name, None)
        self._counts[outcome.state] += 1
        if outcome.state == "failed":
            result = f"failed: {outcome.error} ({run.log})"
        else:
            result = f"{outcome.state}{' before' * before}: {self._metric} {outcome.value(self._metric):.4g}"
        self._live.console.print(f"{run.name} {result}", markup=False, highlight=False, soft_wrap=True)
        self._draw()

    def _draw(self) -> None:
        table = Table("run", "epoch", self._metric, box=SIMPLE_HEAD)
        for name, cells in self._rows.items():
            table.add_row(name, *cells)
        table.caption = ", ".join(f"{count} {state}" for state, count in self._counts.items() if count)
        table.caption = f"{table.caption or '0 finished'} of {self._total}"
        self._live.update(table, refresh=True)
