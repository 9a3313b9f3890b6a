"""How a training of a sweep has ended."""

import json
import math
import signal
from dataclasses import asdict, dataclass

from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.whole_files import written_whole
from rbp_lightning.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """How a training has ended.

    Attributes:
        state: ``finished``, ``pruned`` by a search, or ``failed``.
        metrics: What it logged last.
        seconds: How long it took; ``None`` where it was continued or failed.
        error: Why it failed, in one line.
    """

    state: str
    metrics: dict[str, float]
    seconds: float | None = None
    error: str = ""

    def value(self, metric: str) -> float:
        """What is compared; NaN where it is missing.

        Args:
            metric: Its name.
        """
        return self.metrics.get(metric, math.nan)


def keep(run: Planned, outcome: Outcome) -> None:
    """Writes the outcome of a training that has ended.

    Args:
        run: The training.
        outcome: Its outcome.
    """
    with written_whole(run.result) as unfinished:
        unfinished.write_text(json.dumps(asdict(outcome), indent=1))


def kept(run: Planned) -> Outcome | None:
    """The outcome of a training that has ended, or ``None`` if it has not, or has failed.

    Args:
        run: The training.

    Raises:
        UserError: If its file is damaged.
    """
    if not run.result.is_file():
        return None
    try:
        return Outcome(**json.loads(run.result.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{run.result} is damaged: delete it, and the training is done again.") from error


def failure(run: Planned, status: int | None) -> Outcome:
    """The outcome of a training whose process has ended without one.

    Args:
        run: The training.
        status: The process's exit status, negative where a signal ended it.
    """
    printed = run.log.read_text(errors="replace").strip() if run.log.is_file() else ""
    error = printed.rpartition("\n")[2] or "it printed nothing"
    if status is not None and status < 0:
        error = f"ended by {signal.Signals(-status).name}"
    return Outcome("failed", {}, error=error.removeprefix("error: "))
