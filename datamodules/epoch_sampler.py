"""The order of training examples, which depends on a seed and the epoch."""

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DistributedSampler


def epoch_sampler(datamodule: LightningDataModule, dataset: Any, seed: int) -> DistributedSampler[Any]:
    """Makes the sampler of a training, which deals the examples to the Trainer's processes.

    Lightning sets its epoch, so a resumed run sees the same order.

    Args:
        datamodule: The data module.
        dataset: Anything that has a length.
        seed: Seed of the orders.

    Example:
        >>> sampler = epoch_sampler(LightningDataModule(), range(3), seed=0)
        >>> sorted(sampler)
        [0, 1, 2]
    """
    trainer = datamodule.trainer
    processes, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
    return DistributedSampler(dataset, num_replicas=processes, rank=rank, seed=seed)
