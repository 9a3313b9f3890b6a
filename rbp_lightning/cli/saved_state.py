"""Checks of a checkpoint's other state: paths of files that a run may delete, and counters."""

from pathlib import PurePath
from typing import Any

from torch import Tensor

from rbp_lightning.checkpoint_file import is_local, shown
from rbp_lightning.errors import UserError

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


def check_saved_state(content: dict[str, Any], source: str) -> None:
    """Checks the states of callbacks, loops and learning-rate schedulers in a checkpoint.

    A ``ModelCheckpoint`` deletes the file, or folder, that its state calls the previous one, if the path lies lexically
    in its own folder or is on another file system.

    Args:
        content: The checkpoint.
        source: The checkpoint's name in messages.

    Raises:
        UserError: If a path is not a plain local one, or a counter is not a count.
    """
    states = content.get("callbacks", {})
    for name, value in {"callbacks": states, "loops": content.get("loops", {})}.items():
        if not isinstance(value, dict):
            raise UserError(f"{source}: its {name} are not a dict: use another checkpoint.")
    for name, state in states.items():
        ranked = state.get("best_k_models", {}) if isinstance(state, dict) else None
        if not isinstance(ranked, dict):
            raise UserError(f"{source}: its state of {shown(name)} is not a dict: use another checkpoint.")
        for path in [*(state.get(one) for one in _PATHS), *ranked]:
            if not (path is None or _is_plain(path)):
                raise UserError(
                    f"{source} would make its callbacks delete {shown(path)}: use a checkpoint of a run on this "
                    "machine, whose paths have no '..' inside."
                )
    _check_counters(content.get("loops", {}), "loops", source)
    schedulers = content.get("lr_schedulers", [])
    if not isinstance(schedulers, list):
        raise UserError(f"{source}: its lr_schedulers are not a list: use another checkpoint.")
    for index, scheduler in enumerate(schedulers):
        _check_numbers(scheduler, f"lr_schedulers.{index}", source)


def _is_plain(path: object) -> bool:
    if not isinstance(path, str) or not is_local(path) or not path.isprintable():
        return False
    parts = PurePath(path).parts
    up = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
    return ".." not in parts[up:]


def _check_counters(node: Any, name: str, source: str, counted: bool = False) -> None:
    """Checks the progress of each loop: one that starts far below 0 would run for ever."""
    if isinstance(node, dict):
        for key, value in node.items():
            inner = counted or key in ("current", "total", "_batches_that_stepped")
            _check_counters(value, f"{name}.{shown(key)[1:-1]}", source, inner)
    elif counted and not (isinstance(node, int) and 0 <= node < 2**63):
        raise UserError(f"{source}: its {name}={shown(node)} is not a count: use another checkpoint.")


def _check_numbers(node: Any, name: str, source: str, depth: int = 5) -> None:
    """Checks the state of a learning-rate scheduler, which computes with it long after loading."""
    if isinstance(node, dict | list | tuple) and depth > 0:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            _check_numbers(value, f"{name}.{shown(key).strip(chr(39))}", source, depth - 1)
            if key in ("last_epoch", "_step_count") and not (isinstance(value, int) and -1 <= value < 2**63):
                raise UserError(f"{source}: its {name}.{key}={shown(value)} is not a count: use another checkpoint.")
    elif isinstance(node, dict | list | tuple | complex) or (
        isinstance(node, Tensor) and (node.is_complex() or node.numel() != 1)
    ):
        raise UserError(f"{source}: its {name}={shown(node)} is not a number: use another checkpoint.")
