"""A grid sweep: every combination of values with every seed."""

from collections.abc import Sequence

from rbp_lightning.cli.sweep.outcome import Outcome, failed, read_outcome
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.sweep.report import Ended
from rbp_lightning.cli.sweep.run_table import RunTable
from rbp_lightning.cli.sweep.training import Epoch


class Grid:
    """Hands out the runs of a grid in order, without those that finished in an earlier call.

    Args:
        runs: All runs of the grid.
        table: Shows their progress.
    """

    def __init__(self, runs: Sequence[Planned], table: RunTable) -> None:
        self._table = table
        self._outcomes = {run.folder: _finished(run) for run in runs}
        self._runs = runs
        self._missing = [run for run in runs if self._outcomes[run.folder] is None]
        for run in runs:
            if outcome := self._outcomes[run.folder]:
                table.outcome(run, outcome, before=True)

    @property
    def ended(self) -> list[Ended]:
        """The runs that have ended, in grid order."""
        found = ((run, self._outcomes[run.folder]) for run in self._runs)
        return [Ended(run, outcome) for run, outcome in found if outcome is not None]

    def next(self) -> Planned | None:
        """Returns the next run, or ``None`` after the last."""
        return self._missing.pop(0) if self._missing else None

    def report(self, run: Planned, progress: Epoch) -> bool:
        """Shows the progress of a run; a grid never stops one early."""
        self._table.epoch(run, *progress)
        return True

    def start(self, run: Planned) -> None:
        """Shows that a run has started."""
        self._table.reported(run.name)

    def end(self, run: Planned, outcome: Outcome) -> None:
        """Records the outcome of a run."""
        self._outcomes[run.folder] = outcome
        self._table.outcome(run, outcome)

    def fail(self, run: Planned, error: str) -> None:
        """Records the failure of a run."""
        self.end(run, failed(error))


def _finished(run: Planned) -> Outcome | None:
    outcome = read_outcome(run.result)
    # A run that a search in the same folder pruned is continued.
    return None if outcome is None or outcome.state == "pruned" else outcome
