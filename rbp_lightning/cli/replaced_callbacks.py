"""A warning about callbacks of a config that another config or an option replaced."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_warn


def warn_of_replaced_callbacks(configs: Iterable[Any], trainer: Namespace) -> None:
    """Warns if a list of callbacks replaced that of a config instead of extending it.

    Args:
        configs: The paths of the config files; ``None`` for a config given as text.
        trainer: The resulting configuration of the Trainer; ``callbacks=None`` is taken as intended.
    """
    remaining = set(_names(trainer.callbacks))
    for config in configs if trainer.callbacks is not None else []:
        if config is None or not Path(config.absolute).is_file():
            continue
        content = yaml.safe_load(Path(config.absolute).read_text())
        section = content.get("trainer")
        given = section.get("callbacks") if isinstance(section, dict) else None  # else another file
        replaced = sorted(set(_names(given)) - remaining)
        if replaced:
            rank_zero_warn(
                f"trainer.callbacks replaces that of {config.relative}, so {', '.join(replaced)} does not run: list it "
                "again, or extend the list with --trainer.callbacks+=NAME."
            )


def _names(callbacks: Any) -> list[str]:
    entries = callbacks if isinstance(callbacks, list) else [callbacks]
    paths = [entry if isinstance(entry, str) else entry.get("class_path", "") for entry in entries if entry]
    return [path.rpartition(".")[2] for path in paths]
