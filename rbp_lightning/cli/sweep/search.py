"""A search by Optuna, stored in a file in the sweep's folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from rbp_lightning.cli.sweep.options import SweepOptions
from rbp_lightning.cli.sweep.outcome import Outcome, failed, read_outcome
from rbp_lightning.cli.sweep.planned import Planned, Planner
from rbp_lightning.cli.sweep.report import Ended
from rbp_lightning.cli.sweep.run_table import RunTable
from rbp_lightning.cli.sweep.training import Epoch
from rbp_lightning.cli.sweep.variations import Range, Variation
from rbp_lightning.errors import UserError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import TrialState


def probes(vary: tuple[Variation | Range, ...]) -> list[dict[str, str]]:
    """Returns combinations in which every listed value and both ends of every range occur, to be checked by ``fit``.

    Args:
        vary: The options that vary.

    Example:
        >>> probes((Range("a", "int", 1, 5), Variation("b", ("x", "y", "z"))))
        [{'a': '1', 'b': 'x'}, {'a': '5', 'b': 'y'}, {'a': '5', 'b': 'z'}]
    """
    values = {one.key: one.values if isinstance(one, Variation) else (str(one.low), str(one.high)) for one in vary}
    most = max(map(len, values.values()))
    return [{key: some[min(number, len(some) - 1)] for key, some in values.items()} for number in range(most)]


class Search:
    """Hands out the trials of an Optuna study.

    Trials that an earlier, killed call left unfinished are repeated with the same values and resume from their
    checkpoints.

    Args:
        planner: Plans the runs.
        options: The options of the sweep.
        table: Shows their progress.

    Raises:
        UserError: If Optuna is not installed.
    """

    def __init__(self, planner: Planner, options: SweepOptions, table: RunTable) -> None:
        self._planner, self._options, self._table = planner, options, table
        self._study = _study(options.folder, planner.mode)
        self._trials: dict[Path, Trial] = {}
        self.ended: list[Ended] = []
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING":
                self._study.tell(trial.number, state=_state("FAIL"))
                self._study.enqueue_trial(trial.params)
            elif trial.state.name in ("COMPLETE", "PRUNED"):
                run = planner.plan({key: str(value) for key, value in trial.params.items()})[0]
                if outcome := read_outcome(run.result):
                    self.ended.append(Ended(run, outcome))
                    table.outcome(run, outcome, before=True)

    def next(self) -> Planned | None:
        """Returns the run of the next trial, or ``None`` if there is none for now."""
        while len(self.ended) + len(self._trials) < self._options.trials:
            trial = self._study.ask()
            values = {one.key: _suggest(trial, one) for one in self._options.vary}
            run = self._planner.plan(values)[0]
            if run.folder in self._trials:  # a trial in progress has the same values
                self._study.tell(trial, state=_state("FAIL"))
                return None
            self._trials[run.folder] = trial
            outcome = read_outcome(run.result)
            if outcome is None:
                return run
            self.end(run, outcome)
        return None

    def start(self, run: Planned) -> None:
        """Shows that a trial has started."""
        self._table.reported(run.name)

    def report(self, run: Planned, progress: Epoch) -> bool:
        """Reports an epoch to the study; returns ``False`` if the trial is to be pruned."""
        self._table.epoch(run, *progress)
        if progress.value is None:
            return True
        trial = self._trials[run.folder]
        trial.report(progress.value, progress.number)
        return not trial.should_prune()

    def end(self, run: Planned, outcome: Outcome) -> None:
        """Reports the outcome of a trial to the study."""
        trial = self._trials.pop(run.folder)
        state = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[outcome.state]
        value = outcome.value(self._planner.metric) if state == "COMPLETE" else None
        self._study.tell(trial, value, state=_state("FAIL" if value != value else state))
        self.ended.append(Ended(run, outcome))
        self._table.outcome(run, outcome)

    def fail(self, run: Planned, error: str) -> None:
        """Reports the failure of a trial to the study."""
        self.end(run, failed(error))


def _study(folder: Path, mode: str) -> "Study":
    try:
        import optuna
    except ImportError as error:
        raise UserError("--search optuna: Optuna is not installed: pip install optuna.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        study_name="sweep",
        storage=f"sqlite:///{folder / 'optuna.db'}",
        direction="minimize" if mode == "min" else "maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(),
        load_if_exists=True,
    )


def _state(name: str) -> "TrialState":
    from optuna.trial import TrialState

    return TrialState[name]


def _suggest(trial: "Trial", one: Variation | Range) -> str:
    if isinstance(one, Variation):
        return str(trial.suggest_categorical(one.key, one.values))
    if one.kind == "int":
        return str(trial.suggest_int(one.key, int(one.low), int(one.high)))
    return repr(trial.suggest_float(one.key, one.low, one.high, log=one.kind == "log"))
