"""Labelled images for classification."""

from functools import partial
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from datamodules.augmentation import augment, epoch_draws
from datamodules.epoch_sampler import epoch_sampler, evaluation_sampler
from datamodules.labelled_sources import SOURCES
from rbp_lightning.errors import UserError, check_choice, check_count, check_number, check_seed


class LabelledImages(LightningDataModule):
    """Scikit-learn's digits, MNIST or CIFAR-10, for classifiers.

    A batch holds ``images``, float32 of shape ``[batch, channels, height, width]`` from 0 to 1, their ``labels``,
    int64, and the ``index`` of each in its split. For MNIST and CIFAR-10, the test split is drawn from the test files.
    Training images can be augmented by random shifts, rotations and scalings, new in every epoch.

    Args:
        source: ``"digits"`` (1797 images of 8 x 8, bundled with scikit-learn), ``"mnist"`` (70,000 of 28 x 28) or
            ``"cifar10"`` (60,000 of 32 x 32 in three colours).
        data_dir: The folder of the files, which may also be in its ``mnist/raw``, ``MNIST/raw`` or ``cifar10``;
            ``None`` for the environment variable ``RBP_DATA_DIR`` or else ``data``.
        num_train: Number of training images; ``None`` for all that the other splits leave.
        num_val: Number of validation images, drawn from the digits or from the training files.
        num_test: Number of test images; ``None`` for a quarter of the digits, or all images of the test files.
        shift: Largest shift of training images in each direction, in pixels.
        rotation: Largest rotation of training images, in degrees, 0 to 180.
        scaling: Largest relative change in the size of training images, 0 to 1.
        batch_size: Training batch size per process.
        eval_batch_size: Batch size per process in validation, test and prediction.
        data_seed: Seed of the splits, of the order in training and of the augmentation.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> data = LabelledImages(num_val=100, batch_size=32)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["images"].shape, batch["labels"].shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        source: Literal["digits", "mnist", "cifar10"] = "digits",
        data_dir: str | None = None,
        num_train: int | None = None,
        num_val: int = 200,
        num_test: int | None = None,
        shift: float = 0.0,
        rotation: float = 0.0,
        scaling: float = 0.0,
        batch_size: int = 64,
        eval_batch_size: int = 500,
        data_seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.source = check_choice(self, "source", source, SOURCES)
        self.data_dir = data_dir
        self.num_train = None if num_train is None else check_count(self, "num_train", num_train, 1)
        self.num_val = check_count(self, "num_val", num_val, 1)
        self.num_test = None if num_test is None else check_count(self, "num_test", num_test, 1)
        self.shift = check_number(self, "shift", shift, 0.0)
        self.rotation = check_number(self, "rotation", rotation, 0.0, 180.0)
        self.scaling = check_number(self, "scaling", scaling, 0.0, 1.0)
        self.batch_size = check_count(self, "batch_size", batch_size, 1)
        self.eval_batch_size = check_count(self, "eval_batch_size", eval_batch_size, 1)
        self.data_seed = check_seed(self, "data_seed", data_seed)

    def prepare_data(self) -> None:
        """Downloads missing files."""
        SOURCES[self.source].files(self.data_dir)

    def setup(self, stage: str) -> None:
        """Loads the images and draws the splits.

        Raises:
            UserError: If files are missing or corrupt, or there are too few images.
        """
        if hasattr(self, "splits"):
            return
        source = SOURCES[self.source]
        images, labels, in_test_files = source.load(source.files(self.data_dir))
        generator = np.random.default_rng([self.data_seed, 0])
        drawn = generator.permutation(len(labels) - in_test_files)
        if in_test_files:
            test = len(labels) - in_test_files + generator.permutation(in_test_files)
        else:
            test, drawn = np.split(drawn, [self.num_test or len(drawn) // 4])
        num_train = len(drawn) - self.num_val if self.num_train is None else self.num_train
        chosen = {
            "train": drawn[self.num_val : self.num_val + num_train],
            "val": drawn[: self.num_val],
            "test": test[: self.num_test],
        }
        wanted = {"num_train": max(num_train, 1), "num_val": self.num_val, "num_test": self.num_test or len(test)}
        if [len(rows) for rows in chosen.values()] != list(wanted.values()):
            given = ", ".join(f"{name}={count}" for name, count in wanted.items())
            of_test = f", {in_test_files} of them in its test files" if in_test_files else ""
            raise UserError(
                f"LabelledImages: {given} is more than the {len(labels)} images of source={self.source!r}{of_test}: "
                "lower them."
            )
        self.brightest = source.brightest
        self.splits = {
            name: {
                "images": torch.from_numpy(images[np.sort(rows)]),
                "labels": torch.from_numpy(labels[np.sort(rows)]).long(),
                "index": torch.arange(len(rows)),
            }
            for name, rows in chosen.items()
        }

    def train_dataloader(self) -> DataLoader[int]:
        """Training images in an order that depends on seed and epoch."""
        sampler = epoch_sampler(self, self.splits["train"]["index"], self.data_seed)
        return self._loader("train", self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[int]:
        """Validation images in order."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader[int]:
        """Test images in order."""
        return self._evaluation("test")

    predict_dataloader = test_dataloader

    def _evaluation(self, name: str) -> DataLoader[int]:
        return self._loader(name, self.eval_batch_size, evaluation_sampler(self, self.splits[name]["index"]))

    def _loader(self, name: str, batch_size: int, sampler: DistributedSampler[int] | None) -> DataLoader[int]:
        # Indexing a split once per batch is much faster than collating its images.
        collate = partial(_examples, self.splits[name], self.brightest)
        indices = range(len(self.splits[name]["index"]))
        return DataLoader(indices, batch_size=batch_size, sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Augments training images."""
        assert self.trainer is not None  # a Trainer calls this hook
        if not self.trainer.training or not (self.shift or self.rotation or self.scaling):
            return batch
        drawn = epoch_draws(self.data_seed, self.trainer.current_epoch, len(self.splits["train"]["index"]))
        draws = torch.from_numpy(drawn[batch["index"].numpy()])
        images = augment(batch["images"], draws, self.shift, self.rotation, self.scaling)
        return {**batch, "images": images}


def _examples(split: dict[str, Tensor], brightest: int, indices: list[int]) -> dict[str, Tensor]:
    batch = {name: tensor[indices] for name, tensor in split.items()}
    return {**batch, "images": batch["images"].float() / brightest}
