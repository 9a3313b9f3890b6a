"""Logging an estimator beside a module's hyperparameters, and leaving these as they are."""

import os
from typing import Any

from lightning.pytorch import LightningModule, Trainer


def log_hyperparameters(trainer: Trainer, pl_module: LightningModule, further: dict[str, Any]) -> None:
    """Logs a run's hyperparameters with the class of its module, its seed, where it has one, and some further ones.

    TensorBoard's HPARAMS keep what a run logs first, and Lightning logs the module's after all callbacks' ``setup``: so
    these are logged along, but only where the module and the data module have them logged.

    Args:
        trainer: The Trainer, whose loggers are logged to.
        pl_module: The module.
        further: What to add.
    """
    params: dict[str, Any] = {}
    for owner in (getattr(trainer, "datamodule", None), pl_module):
        if owner is not None and getattr(owner, "_log_hyperparams", False):
            params.update(owner.hparams_initial)
    for internal in ("_class_path", "_instantiator"):  # which LightningCLI needs
        params.pop(internal, None)
    told = {"model": type(pl_module).__name__, **further}
    if (seed := os.environ.get("PL_GLOBAL_SEED")) is not None:  # where Lightning's seed_everything leaves it
        told["seed"] = int(seed)
    # Not the user's own argument of the same name.
    params.update({name: value for name, value in told.items() if name not in params})
    for logger in trainer.loggers:
        logger.log_hyperparams(params)
