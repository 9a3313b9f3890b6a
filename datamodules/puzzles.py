"""The base class of data modules of generated puzzles."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from datamodules.epoch_sampler import epoch_sampler, evaluation_sampler
from rbp_lightning.errors import UserError, check_count, check_seed

MAX_PUZZLES = 10**6
"""The most puzzles of a split."""

IGNORED = -100
"""Target of positions that are not part of the answer; ``cross_entropy`` ignores it."""

Split = dict[str, Tensor]


class Puzzles(LightningDataModule, ABC):
    """Random puzzles, with one or more sizes to train on and others to test on.

    Several training sizes are a curriculum: each gets an equal share of the run's epochs, in the given order. The
    Trainer must then reload data loaders at each epoch.

    A batch holds puzzles of one size: ``inputs``, float32 of shape ``[batch, channels, *positions]``, the classes
    ``targets``, int64 of shape ``[batch, *positions]``, which are ``IGNORED`` at positions without an answer, and the
    ``size`` of each puzzle. Validation and test have a data loader for each size. No puzzle occurs twice.

    Args:
        train_sizes: Sizes in training, one after the other.
        val_sizes: Sizes in validation.
        test_sizes: Sizes in test and prediction.
        num_train: Number of training puzzles of each size.
        num_val: Number of validation puzzles of each size.
        num_test: Number of test puzzles of each size.
        batch_size: Batch size per process.
        data_seed: Seed of all puzzles and of their order in training.

    Raises:
        UserError: If an argument is out of its range.
    """

    def __init__(
        self,
        train_sizes: Sequence[int],
        val_sizes: Sequence[int],
        test_sizes: Sequence[int],
        num_train: int,
        num_val: int,
        num_test: int,
        batch_size: int,
        data_seed: int,
    ) -> None:
        super().__init__()
        self.sizes = {"train": tuple(train_sizes), "val": tuple(val_sizes), "test": tuple(test_sizes)}
        self.counts = {
            "train": check_count(self, "num_train", num_train, 1, MAX_PUZZLES),
            "val": check_count(self, "num_val", num_val, 1, MAX_PUZZLES),
            "test": check_count(self, "num_test", num_test, 1, MAX_PUZZLES),
        }
        self.batch_size = check_count(self, "batch_size", batch_size, 1)
        self.data_seed = check_seed(self, "data_seed", data_seed)

    @abstractmethod
    def draw(self, size: int, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws distinct puzzles.

        Args:
            size: The size of the puzzles.
            count: The number of puzzles.
            generator: The random generator.

        Returns:
            The ``inputs`` and ``targets`` of the puzzles.

        Raises:
            UserError: If there are too few distinct puzzles.
        """

    def setup(self, stage: str) -> None:
        """Draws the puzzles, those of one size together so that no two splits share any."""
        if hasattr(self, "splits"):
            return
        stages = [(stage, size) for stage, sizes in self.sizes.items() for size in sizes]
        totals: Counter[int] = Counter()
        for name, size in stages:
            totals[size] += self.counts[name]
        drawn = {
            size: self.draw(size, count, np.random.default_rng([self.data_seed, size]))
            for size, count in totals.items()
        }
        self.splits: dict[str, dict[int, Split]] = {name: {} for name in self.sizes}
        for name, size in reversed(stages):
            totals[size] -= self.counts[name]
            chosen = slice(totals[size], totals[size] + self.counts[name])
            inputs, targets = (part[chosen] for part in drawn[size])
            sizes = targets.new_full((len(targets),), size)
            self.splits[name][size] = {"inputs": inputs, "targets": targets, "size": sizes}

    def train_dataloader(self) -> DataLoader[int]:
        """Training puzzles of the current size, in an order that depends on seed and epoch.

        Raises:
            UserError: If there are several sizes, but the Trainer does not reload data loaders or has no last epoch.
        """
        sizes, trainer = self.sizes["train"], self.trainer
        index = 0
        if len(sizes) > 1 and trainer is not None:
            if trainer.reload_dataloaders_every_n_epochs != 1 or (trainer.max_epochs or 0) < 1:  # type: ignore[attr-defined]
                raise UserError(
                    f"{type(self).__name__}: training takes the sizes {list(sizes)} in turn, so set the Trainer's "
                    "reload_dataloaders_every_n_epochs=1 and max_epochs."
                )
            index = min(trainer.current_epoch * len(sizes) // trainer.max_epochs, len(sizes) - 1)  # type: ignore[operator]
        split = self.splits["train"][sizes[index]]
        return self._loader(split, epoch_sampler(self, split["size"], self.data_seed))

    def val_dataloader(self) -> list[DataLoader[int]]:
        """Validation puzzles in order, a data loader for each size."""
        return self._evaluation("val")

    def test_dataloader(self) -> list[DataLoader[int]]:
        """Test puzzles in order, a data loader for each size."""
        return self._evaluation("test")

    predict_dataloader = test_dataloader

    def _evaluation(self, stage: str) -> list[DataLoader[int]]:
        splits = [self.splits[stage][size] for size in self.sizes[stage]]
        return [self._loader(split, evaluation_sampler(self, split["size"])) for split in splits]

    def _loader(self, split: Split, sampler: DistributedSampler[int] | None) -> DataLoader[int]:
        # Indexing a split once per batch is much faster than collating its puzzles.
        collate = partial(_puzzles, split)
        indices = range(len(split["size"]))
        return DataLoader(indices, batch_size=self.batch_size, sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


def _puzzles(split: Split, indices: list[int]) -> Split:
    return {name: tensor[indices] for name, tensor in split.items()}


def check_sizes(owner: object, name: str, sizes: Sequence[int], minimum: int, maximum: int) -> list[int]:
    """Checks an argument that lists different sizes, and returns it.

    Args:
        owner: The object whose argument it is.
        name: The argument's name.
        sizes: The argument's value.
        minimum: The smallest size allowed.
        maximum: The largest size allowed.

    Raises:
        UserError: If it is not a list, is empty, or a size is out of range or repeated.

    Example:
        >>> check_sizes(torch.eye, "sizes", [3, 3], 1, 10)
        Traceback (most recent call last):
        rbp_lightning.errors.UserError: eye: sizes=[3, 3] must be a list of different sizes: remove one.
    """
    owner_name = getattr(owner, "__name__", type(owner).__name__)
    if not isinstance(sizes, list | tuple) or not sizes:
        raise UserError(f"{owner_name}: {name}={sizes!r} must be a list of sizes, such as [{minimum}].")
    checked = [check_count(owner, name, size, minimum, maximum) for size in sizes]
    if len(set(checked)) < len(checked):
        raise UserError(f"{owner_name}: {name}={sizes!r} must be a list of different sizes: remove one.")
    return checked
