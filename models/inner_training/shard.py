"""Distributing examples over processes."""

from torch import Tensor
from torch import distributed as dist

from models.hyperparameters import Examples


def local_shard(examples: Examples, indices: Tensor | slice = slice(None)) -> tuple[Examples, float]:
    """Returns this process's shard of some examples.

    Args:
        examples: All examples.
        indices: The examples to distribute over the processes; all by default.

    Returns:
        The shard, and the divisor for sums over it, with which the mean over the processes is the mean over all
        distributed examples.

    Example:
        >>> shard, divisor = local_shard({"labels": torch.tensor([3, 5, 7])}, slice(0, 2))
        >>> shard["labels"], divisor
        (tensor([3, 5]), 2.0)
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    chosen = {name: values[indices] for name, values in examples.items()}
    shard = {name: values[rank::processes] for name, values in chosen.items()}
    return shard, len(next(iter(chosen.values()))) / processes
