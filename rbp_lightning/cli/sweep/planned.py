"""The trainings of a sweep: what each is, and where it lies."""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rbp_lightning.cli.main import RBPLightningCLI
from rbp_lightning.cli.sweep.options import SweepOptions
from rbp_lightning.cli.sweep.variations import title
from rbp_lightning.errors import UserError

_OF_FOLDERS = [f"lightning.pytorch.loggers.{logger.__name__}" for logger in (TensorBoardLogger, CSVLogger)]


class _Parsed(RBPLightningCLI):
    """Parses the arguments, and makes and runs nothing."""

    def _set_seed(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def fit_config(words: list[str]) -> dict[str, Any]:
    """The whole configuration of ``fit``, with all defaults.

    Args:
        words: The arguments of ``fit``.

    Raises:
        ArgumentError: If an option is wrong.
        UserError: If a file is.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # those of the sweep are others
        cli = _Parsed(args=["fit", *words])
    text = cli._parser("fit").dump(cli.config["fit"], format="json", skip_link_targets=False, skip_unset=False)
    content: dict[str, Any] = json.loads(text)
    return content


@dataclass(frozen=True)
class Planned:
    """A training.

    Attributes:
        values: What varies, by option.
        seed: Its seed.
        config: The configuration of ``fit``.
        seeded: Further options that are given the seed.
        folder: Its own folder, the same whenever the configuration is.
    """

    values: dict[str, str]
    seed: int
    config: dict[str, Any]
    seeded: tuple[str, ...]
    folder: Path

    @property
    def title(self) -> str:
        """What varies, without the seed."""
        return title(self.values)

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return f"{self.title}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """The file of what it prints."""
        return self.folder / "output.txt"

    @property
    def result(self) -> Path:
        """The file that says that, and how, it has ended."""
        return self.folder / "result.json"

    def arguments(self) -> list[str]:
        """Writes its configuration, and returns the arguments of ``fit`` that go on where it was."""
        path = self.folder / "sweep.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.config, indent=1))  # which is YAML
        last = self.folder / "checkpoints" / "last.ckpt"
        continued = [f"--ckpt_path={last}"] if last.is_file() else []
        return ["fit", f"--config={path}", *_seeds(self.seed, self.seeded), *continued]


class Planner:
    """Makes the trainings of a sweep.

    Args:
        words: The arguments of ``fit`` that all have.
        options: The options of the sweep.

    Raises:
        ArgumentError: If an argument is wrong.
        UserError: If a file is wrong, or nothing is compared.
    """

    def __init__(self, words: list[str], options: SweepOptions) -> None:
        self._words, self._options = words, options
        self.metric, self.mode = "", ""

    def plan(self, values: dict[str, str]) -> list[Planned]:
        """The trainings of a combination, one for each seed.

        Args:
            values: The combination.

        Raises:
            ArgumentError: If a key or a value is wrong.
            UserError: If it is no configuration of a sweep.
        """
        options = self._options
        varied = [f"--{key}={value}" for key, value in values.items()]
        config = fit_config([*self._words, *varied, *_seeds(0, options.seeded)])
        checkpoint, trainer = config["checkpoint"], config["trainer"]
        self.metric, self.mode = options.metric or checkpoint["monitor"], options.mode or checkpoint["mode"]
        if self.metric is None:
            raise UserError("Nothing is compared: set --metric, such as to val/loss, or --checkpoint.monitor.")
        if options.test == "best" and checkpoint["monitor"] is None:
            raise UserError("--test best: no best checkpoint is kept: set --checkpoint.monitor, or --test last.")
        if trainer["devices"] not in ("auto", "1", 1) or trainer["num_nodes"] != 1:
            raise UserError(
                f"--trainer.devices={trainer['devices']}: each training of a sweep is one process: leave it out, and "
                "the sweep's trainings are spread over the devices."
            )
        config = {name: value for name, value in config.items() if name not in ("ckpt_path", "weights_only")}
        others = [one for one in _loggers(trainer["logger"]) if one["class_path"] not in _OF_FOLDERS]
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
        return Planned(values, seed, {**config, "trainer": trainer}, options.seeded, folder)


def _seeds(seed: int, seeded: tuple[str, ...]) -> list[str]:
    return [f"--{key}={seed}" for key in ("seed_everything", *seeded)]


def _loggers(given: Any) -> list[dict[str, Any]]:
    several = given if isinstance(given, list) else [given]
    return [one for one in several if isinstance(one, dict)]
