"""The outcome of a run of a sweep, and its file."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

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


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Writes the outcome of a run.

    Args:
        path: The run's file.
        outcome: Its outcome.
    """
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(asdict(outcome), indent=1))


def read_outcome(path: Path) -> Outcome | None:
    """Reads the outcome of a run; ``None`` if the run has not ended or has failed.

    Args:
        path: The run's file.

    Raises:
        UserError: If the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        return Outcome(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it to repeat the run.") from error


def failed(error: str) -> Outcome:
    """Returns the outcome of a run that ended without one.

    Args:
        error: Why, in one line.
    """
    return Outcome("failed", {}, error=error)
