"""A live table of the jobs in progress."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table


class LiveTable:
    """Shows a table of the jobs in progress and a line for each that has ended, on standard error.

    Args:
        total: The number of jobs.
        columns: The titles of the columns that show their progress.
    """

    def __init__(self, total: int, *columns: str) -> None:
        self._total, self._columns = total, columns
        self._rows: dict[str, tuple[str, ...]] = {}
        self._counts = {"finished": 0, "pruned": 0, "failed": 0}
        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def reported(self, name: str, *cells: str) -> None:
        """Shows the progress of a job.

        Args:
            name: The job's name.
            cells: Its progress, one for each column; none if it has just started.
        """
        self._rows[name] = cells
        self._draw()

    def ended(self, name: str, state: str, result: str) -> None:
        """Removes a job from the table and prints how it ended.

        Args:
            name: The job's name.
            state: ``finished``, ``pruned`` or ``failed``.
            result: What to print.
        """
        self._rows.pop(name, None)
        self._counts[state] += 1
        self._live.console.print(f"{name} {result}", markup=False, highlight=False, soft_wrap=True)
        self._draw()

    def _draw(self) -> None:
        table = Table("run", *self._columns, box=SIMPLE_HEAD)
        for name, cells in self._rows.items():
            table.add_row(name, *cells)
        table.caption = ", ".join(f"{count} {state}" for state, count in self._counts.items() if count)
        table.caption = f"{table.caption or '0 finished'} of {self._total}"
        self._live.update(table, refresh=True)
