"""The planned runs of a sweep: configuration, seed and folder of each."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rbp_lightning.cli.main import RBPLightningCLI
from rbp_lightning.cli.sweep.options import SweepOptions
from rbp_lightning.cli.sweep.outcome import Outcome, write_outcome
from rbp_lightning.cli.sweep.training import Epoch, train_and_test
from rbp_lightning.cli.sweep.variations import title
from rbp_lightning.errors import UserError

_FOLDER_LOGGERS = [f"lightning.pytorch.loggers.{logger.__name__}" for logger in (TensorBoardLogger, CSVLogger)]


class _ParseOnly(RBPLightningCLI):
    """Parses the arguments; instantiates and runs nothing."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def fit_config(words: list[str]) -> dict[str, Any]:
    """Returns the full configuration of ``fit``, with all defaults.

    Args:
        words: The arguments of ``fit``.

    Raises:
        ArgumentError: If an option is wrong.
        UserError: If a file is wrong.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # sys.argv has those of the sweep
        cli = _ParseOnly(args=["fit", *words])
    text = cli._parser("fit").dump(cli.config["fit"], format="json", skip_link_targets=False, skip_unset=False)
    content: dict[str, Any] = json.loads(text)
    return content


@dataclass(frozen=True)
class Planned:
    """A run of a sweep, a job of its workers.

    Attributes:
        values: The values of the options that vary.
        seed: The seed.
        config: The configuration of ``fit``.
        seeded: Other options that are set to the seed.
        folder: The run's folder, whose name depends on the configuration alone.
        metric: The metric that is compared.
        test: ``last`` or ``best``; ``None`` for no test.
    """

    values: dict[str, str]
    seed: int
    config: dict[str, Any]
    seeded: tuple[str, ...]
    folder: Path
    metric: str
    test: str | None

    @property
    def title(self) -> str:
        """The values that vary, without the seed, as shown in tables."""
        return title(self.values)

    @property
    def name(self) -> str:
        """The run's name in messages."""
        return f"{self.title}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """The file that its output goes to."""
        return self.folder / "output.txt"

    @property
    def result(self) -> Path:
        """The file of its outcome, which exists once it has ended."""
        return self.folder / "result.json"

    def arguments(self) -> list[str]:
        """Writes the run's configuration; returns the arguments with which ``fit`` starts or resumes it."""
        path = self.folder / "sweep.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.config, indent=1))  # JSON is YAML
        last = self.folder / "checkpoints" / "last.ckpt"
        resume = [f"--ckpt_path={last}"] if last.is_file() else []
        return ["fit", f"--config={path}", *_seeds(self.seed, self.seeded), *resume]

    def work(self, report: Callable[[Epoch], bool]) -> Outcome:
        """Trains and tests it, and writes its outcome unless it fails.

        Args:
            report: Reports each epoch; returns whether the run is to continue.
        """
        outcome = train_and_test(self.arguments(), self.metric, self.test, report)
        write_outcome(self.result, outcome)
        return outcome


class Planner:
    """Plans the runs of a sweep.

    Args:
        words: The arguments of ``fit`` that all runs share.
        options: The options of the sweep.

    Attributes:
        metric: The metric that is compared; known after the first ``plan``.
        mode: ``min`` or ``max``; known after the first ``plan``.
    """

    def __init__(self, words: list[str], options: SweepOptions) -> None:
        self._words, self._options = words, options
        self.metric, self.mode = "", ""

    def plan(self, values: dict[str, str]) -> list[Planned]:
        """Plans the runs of a combination, one for each seed.

        Args:
            values: The combination.

        Raises:
            ArgumentError: If a key or a value is wrong.
            UserError: If a sweep cannot run the configuration.
        """
        options = self._options
        varied = [f"--{key}={value}" for key, value in values.items()]
        config = fit_config([*self._words, *varied, *_seeds(0, options.seeded)])
        checkpoint, trainer = config["checkpoint"], config["trainer"]
        self.metric, self.mode = options.metric or checkpoint["monitor"], options.mode or checkpoint["mode"]
        if self.metric is None:
            raise UserError("Nothing is compared: set --metric, for example to val/loss, or --checkpoint.monitor.")
        if options.test == "best" and checkpoint["monitor"] is None:
            raise UserError("--test best: no best checkpoint is kept: set --checkpoint.monitor, or --test last.")
        if trainer["devices"] not in ("auto", "1", 1) or trainer["num_nodes"] != 1:
            raise UserError(
                f"--trainer.devices={trainer['devices']}: each run of a sweep is one process: leave it out; the sweep "
                "spreads its runs over the devices."
            )
        config = {name: value for name, value in config.items() if name not in ("ckpt_path", "weights_only")}
        others = [one for one in _loggers(trainer["logger"]) if one["class_path"] not in _FOLDER_LOGGERS]
        trainer.update(logger=others, enable_progress_bar=False, enable_model_summary=False)
        return [self._at_seed(values, seed, config, others) for seed in range(options.seeds)]

    def _at_seed(self, values: dict[str, str], seed: int, config: dict[str, Any], others: list[Any]) -> Planned:
        options = self._options
        identity = json.dumps([config, seed, options.seeded, options.test, self.metric], sort_keys=True)
        readable = re.sub(r"[^\w.=-]+", "_", f"{title(values)}_seed={seed}")[:80]
        folder = options.folder / "runs" / f"{readable}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        arguments = {"save_dir": str(folder.parent), "name": "", "version": folder.name, "default_hp_metric": False}
        first = {"seed": seed, "model": config["model"]["class_path"]}
        logger = {
            "class_path": "rbp_lightning.cli.sweep.run_logger.RunLogger",
            "init_args": {**arguments, "metric": self.metric, "first": first},
        }
        trainer = {**config["trainer"], "logger": [logger, *others], "default_root_dir": str(folder)}
        config = {**config, "trainer": trainer}
        return Planned(values, seed, config, options.seeded, folder, self.metric, options.test)


def _seeds(seed: int, seeded: tuple[str, ...]) -> list[str]:
    return [f"--{key}={seed}" for key in ("seed_everything", *seeded)]


def _loggers(given: Any) -> list[dict[str, Any]]:
    loggers = given if isinstance(given, list) else [given]
    return [logger for logger in loggers if isinstance(logger, dict)]
