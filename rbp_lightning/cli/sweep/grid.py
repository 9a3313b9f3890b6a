"""All combinations, each with each seed."""

from collections.abc import Sequence

from rbp_lightning.cli.sweep.live_table import LiveTable
from rbp_lightning.cli.sweep.outcome import Outcome, kept
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.sweep.report import Ended


class Grid:
    """The trainings of a sweep in their order, without those that have ended in an earlier call.

    Args:
        runs: All trainings.
        table: Where it is shown how they go.
    """

    def __init__(self, runs: Sequence[Planned], table: LiveTable) -> None:
        self._table = table
        self._outcomes = {run.folder: _finished(run) for run in runs}
        self._runs = runs
        self._missing = [run for run in runs if self._outcomes[run.folder] is None]
        for run in runs:
            if outcome := self._outcomes[run.folder]:
                table.ended(run, outcome, before=True)

    @property
    def ended(self) -> list[Ended]:
        """Those that have ended, in their order."""
        found = ((run, self._outcomes[run.folder]) for run in self._runs)
        return [Ended(run, outcome) for run, outcome in found if outcome is not None]

    def next(self) -> Planned | None:
        """The next training."""
        return self._missing.pop(0) if self._missing else None

    def report(self, run: Planned, epoch: int, value: float | None) -> bool:
        """Shows how a training goes; it goes on."""
        self._table.reported(run, epoch, value)
        return True

    def start(self, run: Planned) -> None:
        """Shows that a training has begun."""
        self._table.started(run)

    def end(self, run: Planned, outcome: Outcome) -> None:
        """Takes the outcome of a training."""
        self._outcomes[run.folder] = outcome
        self._table.ended(run, outcome)


def _finished(run: Planned) -> Outcome | None:
    outcome = kept(run)
    # What a search in the same folder has pruned goes on.
    return None if outcome is None or outcome.state == "pruned" else outcome
