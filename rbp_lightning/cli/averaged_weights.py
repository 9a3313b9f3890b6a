"""Evaluation of averaged weights."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging


def stop_averaging(trainer: Trainer) -> None:
    """Removes Lightning's weight averaging from a Trainer whose training has ended.

    A checkpoint has both weights. With the callback, a Trainer that has trained would evaluate those not averaged.

    Args:
        trainer: The Trainer.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [one for one in callbacks if not isinstance(one, WeightAveraging)]
