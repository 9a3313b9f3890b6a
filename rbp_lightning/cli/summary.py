"""What a run says of itself."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

print_once = rank_zero_only(print)
"""``print``, in the first of several processes alone."""


def print_training(trainer: Trainer) -> None:
    """Prints a training's last metrics, and where its logs and its best checkpoint are.

    Args:
        trainer: A Trainer that has fitted; its process 0 prints.
    """
    log_dir = trainer.log_dir  # every rank has to ask
    if not trainer.is_global_zero:
        return
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"{name}: {float(value):.4g}")
    if log_dir is not None and trainer.loggers:
        print(f"Logs: {log_dir}")
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            print(_best(callback, trainer))


def print_results(trainer: Trainer) -> None:
    """Prints where the results of a validation, test, prediction or audit are.

    Args:
        trainer: The Trainer that ran it; its process 0 prints.
    """
    log_dir = trainer.log_dir  # every rank has to ask
    if trainer.is_global_zero and log_dir is not None and trainer.loggers and Path(log_dir).exists():
        print(f"Results: {log_dir}")


def _best(callback: ModelCheckpoint, trainer: Trainer) -> str:
    if callback.best_model_path:
        return f"Best checkpoint: {callback.best_model_path}"
    return (
        f"No best checkpoint: {callback.monitor} was not logged in {trainer.current_epoch} epoch(s). Log it, or "
        f"validate more often than trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch}."
    )
