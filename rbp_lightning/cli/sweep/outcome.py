"""The outcome of a run of a sweep, and its file."""

import json
import math
import signal
from dataclasses import asdict, dataclass

from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.whole_files import written_whole
from rbp_lightning.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: ``finished``, ``pruned`` by a search, or ``failed``.
        metrics: The last logged values.
        seconds: Its duration; ``None`` if it was resumed or failed.
        error: Why it failed, in one line.
    """

    state: str
    metrics: dict[str, float]
    seconds: float | None = None
    error: str = ""

    def value(self, metric: str) -> float:
        """Returns the value of a metric; NaN if it is missing.

        Args:
            metric: The metric's name.
        """
        return self.metrics.get(metric, math.nan)


def write_outcome(run: Planned, outcome: Outcome) -> None:
    """Writes the outcome of a run into its folder.

    Args:
        run: The run.
        outcome: Its outcome.
    """
    with written_whole(run.result) as unfinished:
        unfinished.write_text(json.dumps(asdict(outcome), indent=1))


def read_outcome(run: Planned) -> Outcome | None:
    """Reads the outcome of a run; ``None`` if the run has not ended or has failed.

    Args:
        run: The run.

    Raises:
        UserError: If the file is damaged.
    """
    if not run.result.is_file():
        return None
    try:
        return Outcome(**json.loads(run.result.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{run.result} is damaged: delete it to repeat the run.") from error


def failure(run: Planned, status: int | None) -> Outcome:
    """Returns the outcome of a run whose process ended without writing one.

    Args:
        run: The run.
        status: The process's exit status, negative if a signal ended it; ``None`` if it is unknown.
    """
    printed = run.log.read_text(errors="replace").strip() if run.log.is_file() else ""
    error = printed.rpartition("\n")[2] or "it printed nothing"
    if status is not None and status < 0:
        error = f"ended by {signal.Signals(-status).name}"
    return Outcome("failed", {}, error=error.removeprefix("error: "))
