"""Logs the estimator together with the hyperparameters of a module."""

import os
from typing import Any

from lightning.pytorch import LightningModule, Trainer


def log_hyperparameters(trainer: Trainer, pl_module: LightningModule, further: dict[str, Any]) -> None:
    """Logs a run's hyperparameters with the class of its module, its seed, if any, and further ones.

    TensorBoard's HPARAMS only keep the first hyperparameters that a run logs, and Lightning logs those of the module
    after the ``setup`` of all callbacks. They are therefore logged here as well, if the module and the data module log
    them.

    Args:
        trainer: The Trainer with the loggers.
        pl_module: The module.
        further: Hyperparameters to add.
    """
    params: dict[str, Any] = {}
    for owner in (getattr(trainer, "datamodule", None), pl_module):
        if owner is not None and getattr(owner, "_log_hyperparams", False):
            params.update(owner.hparams_initial)
    for internal in ("_class_path", "_instantiator"):  # added by LightningCLI
        params.pop(internal, None)
    added = {"model": type(pl_module).__name__, **further}
    if (seed := os.environ.get("PL_GLOBAL_SEED")) is not None:  # set by Lightning's seed_everything
        added["seed"] = int(seed)
    # The user's own hyperparameters take precedence.
    params.update({name: value for name, value in added.items() if name not in params})
    for logger in trainer.loggers:
        logger.log_hyperparams(params)
