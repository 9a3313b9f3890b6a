"""The summary that a run prints."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.model_helpers import is_overridden

from rbp_lightning.diagnostics.policy import FailurePolicy
from rbp_lightning.estimators import GradientEstimator
from rbp_lightning.overview import program

print_once = rank_zero_only(print)
"""``print`` in process 0 only."""


def print_training(trainer: Trainer) -> None:
    """Prints the gradient and the metrics of a training, what failed in it, the paths of its files and a next command.

    Args:
        trainer: The Trainer after ``fit``; its process 0 prints.
    """
    log_dir = trainer.log_dir  # all ranks must ask together
    if not trainer.is_global_zero:
        return
    best = _best(trainer)
    print(f"\nTrained for {trainer.current_epoch} epoch(s), {trainer.global_step} step(s).")
    hidden = _print_metrics(trainer)
    estimators = [one for one in trainer.callbacks if isinstance(one, GradientEstimator)]  # type: ignore[attr-defined]
    for estimator in estimators:
        print(f"Gradient: {estimator}")
    policies = [one for one in trainer.callbacks if isinstance(one, FailurePolicy)]  # type: ignore[attr-defined]
    if failures := [failure.value for policy in policies for failure in policy.found]:
        print(f"Failures: {'; '.join(failures)}. The warnings above say what to do.")
    folder = relative(log_dir) if log_dir is not None and trainer.loggers else None
    if folder is not None:
        _print_pictures(folder)
    for callback in best:
        print(_best_checkpoint(callback, trainer))
    if folder is not None:
        print(f"Logs: {folder}" + (f", with {hidden} more metric(s)" if hidden else ""))
        if isinstance(trainer.logger, TensorBoardLogger):
            print(f"To view them: tensorboard --logdir {shlex.quote(str(folder.parent))}")
        if (folder / "config.yaml").is_file():
            print(f"Next: {_next_command(trainer, folder, best)}")


def shown_metrics(trainer: Trainer, names: Iterable[str]) -> list[str]:
    """Returns the metrics of the progress bar and those that select checkpoints or, if there are none, all.

    Args:
        trainer: The Trainer.
        names: The metrics to choose from.
    """
    important = {*trainer.progress_bar_metrics, *(str(one.monitor) for one in _best(trainer))}
    return sorted(important & set(names) or names, key=_in_order)


def _print_metrics(trainer: Trainer) -> int:
    """Prints the metrics that matter; returns the number of the others."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    wanted = shown_metrics(trainer, metrics)
    margin = max(map(len, wanted), default=0) + 2
    for name in wanted:
        print(f"  {name.ljust(margin)}{metrics[name]:.4g}")
    return len(metrics) - len(wanted)


def _in_order(name: str) -> list[int | str]:
    """A key by which numbers in names are sorted by value.

    Example:
        >>> sorted(["test/exact_512", "test/exact_16"], key=_in_order)
        ['test/exact_16', 'test/exact_512']
    """
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def print_results(trainer: Trainer, metrics: bool = False) -> None:
    """Prints metrics and the path of the results of a validation, test, prediction or audit.

    Args:
        trainer: The Trainer; its process 0 prints.
        metrics: Whether there are metrics of this run to print.
    """
    log_dir = trainer.log_dir  # all ranks must ask together
    if not trainer.is_global_zero:
        return
    if metrics and (hidden := _print_metrics(trainer)):
        print(f"  and {hidden} more (--verbose=true prints all)")
    if log_dir is not None and trainer.loggers and Path(log_dir).exists():
        _print_pictures(relative(log_dir))
        print(f"Results: {relative(log_dir)}")


def relative(path: str | Path) -> Path:
    """Returns a path relative to the current folder if it lies inside, and unchanged otherwise.

    Args:
        path: The path.

    Example:
        >>> relative(Path.cwd() / "logs").name, relative("/").is_absolute()
        ('logs', True)
    """
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else Path(path)


def _best(trainer: Trainer) -> list[ModelCheckpoint]:
    found = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    return [one for one in found if one.monitor is not None]


def _print_pictures(folder: Path) -> None:
    if pictures := sorted(path.name for path in folder.glob("*.png")):
        print(f"Pictures in {folder}: {', '.join(pictures)}")


def _best_checkpoint(callback: ModelCheckpoint, trainer: Trainer) -> str:
    if callback.best_model_path:
        score = "" if callback.best_model_score is None else f" ({callback.monitor} {callback.best_model_score:.4g})"
        return f"Best checkpoint: {relative(callback.best_model_path)}{score}"
    return (
        f"No best checkpoint: {callback.monitor} was not logged in {trainer.current_epoch} epoch(s). Log it, or "
        f"validate more often than trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch}."
    )


def _next_command(trainer: Trainer, folder: Path, best: list[ModelCheckpoint]) -> str:
    """Returns the command that tests the best checkpoint or, without a test, audits its gradients."""
    module, data = trainer.lightning_module, getattr(trainer, "datamodule", None)
    tested = is_overridden("test_step", module) and is_overridden("test_dataloader", data or module)
    words = ["test" if tested else "audit", "--config", str(folder / "config.yaml")]
    callbacks = [*best, *(one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint))]
    found = [str(relative(one.best_model_path)) for one in callbacks if one.best_model_path]
    return f"{program()} {shlex.join([*words, *(['--ckpt_path', found[0]] if found else [])])}"
