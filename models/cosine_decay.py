"""Adam with a cosine decay of the learning rate."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.optim.lr_scheduler import LambdaLR

from rbp_lightning import UserError


def adam_with_cosine_decay(module: LightningModule, learning_rate: float) -> Any:
    """Returns Adam with a cosine decay of its learning rate to 0 over the whole run.

    Args:
        module: The module, whose Trainer knows the run's length.
        learning_rate: The initial learning rate.

    Raises:
        UserError: If the run's length is not limited.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    steps = module.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise UserError(
            f"{type(module).__name__}: the learning rate decay needs to know the run's length: set max_epochs or "
            "max_steps."
        )
    # Not CosineAnnealingLR, which would keep the first run's length when a resumed run has more epochs.
    scheduler = LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * min(step / max(steps, 1), 1)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
