"""Binary images to store in an associative memory."""

from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.corruption import CORRUPTIONS
from datamodules.epoch_sampler import epoch_sampler, evaluation_sampler
from datamodules.image_sources import digits_images, folder_images, mnist_images
from datamodules.mnist_files import TRAINING_FILES, mnist_files
from rbp_lightning.errors import UserError, check_choice, check_count, check_number, check_seed

MAX_SIZE = 4096
"""The largest height and width that images are resized to."""

MAX_IMAGES = 10**7
"""The most images of an epoch, whose order is drawn at once."""

STREAMS = {"train": 0, "val": 1, "test": 2}


class RepeatedPatterns(Dataset[dict[str, Tensor]]):
    """Repeats each pattern, to be corrupted differently every time.

    Args:
        patterns: Binary images, 0.0 or 1.0, of shape ``[n, height, width]``.
        repeats: The number of times each pattern occurs.

    Example:
        >>> repeated = RepeatedPatterns(torch.eye(2).reshape(2, 1, 2), repeats=3)
        >>> len(repeated), repeated[3]
        (6, {'clean': tensor([[0., 1.]]), 'draw': tensor(3)})
    """

    def __init__(self, patterns: Tensor, repeats: int) -> None:
        self.patterns = patterns
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.patterns) * self.repeats

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"clean": self.patterns[index % len(self.patterns)], "draw": torch.tensor(index)}


class ImagePatterns(LightningDataModule):
    """Binary images, clean and corrupted.

    A batch holds ``clean`` and ``corrupted`` images, 0.0 or 1.0, of shape ``[batch, height, width]``, and the number
    ``draw`` of each. Training, validation and test differ in their corruptions, which depend only on the seed, the
    epoch (in training) and the draw, not on the batch size, the number of processes or interruptions. Validation and
    test recall the stored patterns or, with ``held_out``, others.

    Args:
        source: ``"digits"`` (8 x 8, bundled with scikit-learn), ``"mnist"`` (28 x 28) or ``"folder"`` (BMP, GIF, JPEG,
            PNG or TIFF files of up to 33 million pixels each).
        num_patterns: Number of images to store: digits from all classes in turn, files of a folder by name.
        held_out: Number of other images to recall in validation and test; 0 recalls the stored ones.
        data_dir: The folder of image files, or of MNIST's files; ``None`` for the environment variable
            ``RBP_DATA_DIR`` or else ``data``.
        size: With ``source="folder"``, the height and width that images are resized to; ``None`` for 28.
        threshold: Intensity, 0 to 1, from which on a pixel is on.
        train_corruption: Corruption of training images: ``"erase"`` turns off some of the on pixels,
            ``"salt_and_pepper"`` replaces pixels by random ones, ``"occlude"`` turns a block off.
        train_level: Fraction of the on pixels, of all pixels, or of the area, respectively, that is corrupted in
            training; 0 trains on clean images, as the paper does.
        corruption: Corruption of the images to recall.
        level: Corrupted fraction of the images to recall.
        train_draws: Number of corrupted versions of each pattern per epoch; each epoch has new ones.
        eval_draws: Number of corrupted versions of each pattern in validation, and in test.
        batch_size: Images in a batch of one process.
        corruption_seed: Seed of all corruptions.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> data = ImagePatterns(num_patterns=10)
        >>> data.setup("fit")
        >>> len(data.stored), data.stored[0].shape
        (10, torch.Size([8, 8]))
    """

    def __init__(
        self,
        source: Literal["digits", "mnist", "folder"] = "digits",
        num_patterns: int = 10,
        held_out: int = 0,
        data_dir: str | None = None,
        size: int | None = None,
        threshold: float = 0.5,
        train_corruption: Literal["erase", "salt_and_pepper", "occlude"] = "erase",
        train_level: float = 0.3,
        corruption: Literal["erase", "salt_and_pepper", "occlude"] = "erase",
        level: float = 0.3,
        train_draws: int = 100,
        eval_draws: int = 50,
        batch_size: int = 20,
        corruption_seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_choice(self, "source", source, ("digits", "mnist", "folder"))
        check_choice(self, "train_corruption", train_corruption, CORRUPTIONS)
        check_choice(self, "corruption", corruption, CORRUPTIONS)
        if source == "folder" and data_dir is None:
            raise UserError("ImagePatterns: source='folder' needs data_dir, the folder of image files.")
        self.source = source
        self.num_patterns = check_count(self, "num_patterns", num_patterns, 1)
        self.held_out = check_count(self, "held_out", held_out, 0)
        self.data_dir = data_dir
        if source != "folder" and size is not None:
            raise UserError(f"ImagePatterns: size={size!r} is only for source='folder': leave it out (null).")
        self.size = 28 if size is None else check_count(self, "size", size, 1, MAX_SIZE)
        self.threshold = check_number(self, "threshold", threshold, 0.0, 1.0)
        self.train_corruption, self.corruption = train_corruption, corruption
        self.train_level = check_number(self, "train_level", train_level, 0.0, 1.0)
        self.level = check_number(self, "level", level, 0.0, 1.0)
        self.train_draws = check_count(self, "train_draws", train_draws, 1)
        self.eval_draws = check_count(self, "eval_draws", eval_draws, 1)
        if (num_patterns + held_out) * max(train_draws, eval_draws) > MAX_IMAGES:
            raise UserError(
                f"ImagePatterns: train_draws={train_draws} or eval_draws={eval_draws} of num_patterns={num_patterns} "
                f"and held_out={held_out} images exceed the limit of {MAX_IMAGES} in an epoch: lower them."
            )
        self.batch_size = check_count(self, "batch_size", batch_size, 1)
        self.corruption_seed = check_seed(self, "corruption_seed", corruption_seed)

    def prepare_data(self) -> None:
        """Downloads MNIST if needed and missing."""
        if self.source == "mnist":
            mnist_files(TRAINING_FILES, self.data_dir)

    def setup(self, stage: str) -> None:
        """Loads and binarises the images.

        Raises:
            UserError: If files are missing, corrupt or too few.
        """
        count = self.num_patterns + self.held_out
        if self.source == "digits":
            images = digits_images(count)
        elif self.source == "mnist":
            images = mnist_images(count, self.data_dir)
        else:
            images = folder_images(str(self.data_dir), count, self.size)
        if len(images) < count:
            raise UserError(
                f"ImagePatterns: num_patterns={self.num_patterns} and held_out={self.held_out} need {count} images, "
                f"but source={self.source!r} has {len(images)}: set num_patterns to no more than that."
            )
        patterns = torch.from_numpy((images >= self.threshold).astype(np.float32))
        self.stored = patterns[: self.num_patterns]
        self.recalled = patterns[self.num_patterns :] if self.held_out else self.stored

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Stored patterns in an order that depends on seed and epoch."""
        dataset = RepeatedPatterns(self.stored, self.train_draws)
        sampler = epoch_sampler(self, dataset, self.corruption_seed)
        return DataLoader(dataset, batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Patterns to recall, in order."""
        dataset = RepeatedPatterns(self.recalled, self.eval_draws)
        return DataLoader(dataset, batch_size=self.batch_size, sampler=evaluation_sampler(self, dataset))

    test_dataloader = predict_dataloader = val_dataloader

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Corrupts the images of a batch, each with its own random numbers."""
        assert self.trainer is not None  # a Trainer calls this hook
        if self.trainer.training:
            return self.corrupt(batch, "train", self.trainer.current_epoch)
        return self.corrupt(batch, "val" if self.trainer.validating or self.trainer.sanity_checking else "test")

    def corrupt(
        self, batch: dict[str, Tensor], stage: Literal["train", "val", "test"], epoch: int = 0
    ) -> dict[str, Tensor]:
        """Adds the corrupted images to a batch.

        Args:
            batch: ``clean`` images and their ``draw`` numbers.
            stage: The stage whose corruption, level and random numbers to use.
            epoch: The training epoch.

        Returns:
            The batch with ``corrupted`` images.
        """
        kind, level = (self.train_corruption, self.train_level) if stage == "train" else (self.corruption, self.level)
        corrupted = [
            CORRUPTIONS[kind](image, level, np.random.default_rng([self.corruption_seed, STREAMS[stage], epoch, draw]))
            for image, draw in zip(batch["clean"].float().numpy(), batch["draw"].tolist(), strict=True)
        ]
        return {**batch, "corrupted": torch.from_numpy(np.stack(corrupted)).to(batch["clean"].dtype)}
