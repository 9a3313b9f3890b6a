"""Samplers that distribute examples over processes."""

from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DistributedSampler

from rbp_lightning.errors import UserError


def epoch_sampler(datamodule: LightningDataModule, dataset: Any, seed: int) -> DistributedSampler[Any]:
    """Returns a sampler for training, which shuffles the examples and distributes them over the Trainer's processes.

    Lightning sets its epoch, so a resumed run sees the same order.

    Args:
        datamodule: The data module.
        dataset: Any object with a length.
        seed: Seed of the orders.

    Example:
        >>> sampler = epoch_sampler(LightningDataModule(), range(3), seed=0)
        >>> sorted(sampler)
        [0, 1, 2]
    """
    processes, rank = _processes(datamodule)
    return DistributedSampler(dataset, num_replicas=processes, rank=rank, seed=seed)


def evaluation_sampler(datamodule: LightningDataModule, dataset: Any) -> DistributedSampler[Any] | None:
    """Returns a sampler for evaluation, which gives each example to exactly one process.

    Lightning's own sampler repeats some examples if their number is not a multiple of that of the processes.

    Args:
        datamodule: The data module.
        dataset: Any object with a length.

    Returns:
        The sampler; ``None``, for all examples in order, with one process.

    Raises:
        UserError: If there are fewer examples than processes.

    Example:
        >>> evaluation_sampler(LightningDataModule(), range(3)) is None
        True
    """
    processes, rank = _processes(datamodule)
    if len(dataset) < processes:
        raise UserError(
            f"{type(datamodule).__name__}: {len(dataset)} examples are too few for an evaluation in {processes} "
            "processes: use more examples, or evaluate in one process."
        )
    if processes == 1:
        return None
    return UnrepeatedDistributedSampler(dataset, num_replicas=processes, rank=rank, shuffle=False)


def _processes(datamodule: LightningDataModule) -> tuple[int, int]:
    trainer = datamodule.trainer
    return (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
