"""Labelled images for hyperparameter optimisation, where a training step trains a whole network."""

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.epoch_sampler import evaluation_sampler
from datamodules.files import data_directory, obtain
from datamodules.label_noise import flip_labels
from datamodules.mnist_files import ORDER, TEST_FILES, TRAINING_FILES, labelled_images, mnist_files
from rbp_lightning.errors import UserError, check_choice, check_count, check_number, check_seed


class MNISTSplits(LightningDataModule):
    """MNIST, other data in its format, or scikit-learn's digits, for models that train a network in each step.

    An epoch has a single training batch: the whole ``train`` and ``val`` splits, from which the model draws its own
    minibatches; every process gets both. Validation, test and prediction iterate over a split in batches.

    A split, or a batch of one, is a dictionary of ``images``, float32 of shape ``[n, 1, height, width]``, with
    intensities from 0 to 1 before the mean is subtracted; their ``labels``, int64; the ``index`` of each in its split;
    and ``clean``, whether the label is the original one.

    Args:
        source: ``"digits"`` (1797 images of 8 x 8, bundled with scikit-learn) or ``"mnist"`` (28 x 28).
        files: Other data in MNIST's format, instead of ``source``: the SHA-256 checksum, in hexadecimal, of each
            gzipped IDX file by its name in ``data_dir``, in the order training images, training labels, test images,
            test labels. They are not downloaded.
        data_dir: The folder of ``files``, or of MNIST's files, which may also be in its ``mnist/raw`` or ``MNIST/raw``.
            ``None`` for the environment variable ``RBP_DATA_DIR`` or else ``data``.
        num_train: Number of training images, drawn from the digits or the training files.
        num_val: Number of validation images, drawn from the rest of those.
        num_test: Number of test images, drawn from the rest of the digits or from the test files; their order is kept.
        subtract_mean: Whether to subtract the mean of the training split's images from the images of all splits.
        label_noise: Fraction of the training split's labels, below 1, that are replaced by other classes at random.
        split_seed: Seed of the splits and of the label noise.
        eval_batch_size: Batch size per process in validation, test and prediction.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> data = MNISTSplits(num_train=100, num_val=50, num_test=20)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["train"]["images"].shape, batch["val"]["labels"].shape
        (torch.Size([100, 1, 8, 8]), torch.Size([50]))
    """

    def __init__(
        self,
        source: Literal["digits", "mnist"] = "digits",
        files: dict[str, str] | None = None,
        data_dir: str | None = None,
        num_train: int = 500,
        num_val: int = 500,
        num_test: int = 700,
        subtract_mean: bool = True,
        label_noise: float = 0.0,
        split_seed: int = 0,
        eval_batch_size: int = 10000,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.source = check_choice(self, "source", source, ("digits", "mnist"))
        if files is not None:
            if not isinstance(files, dict) or len(files) != 4:
                raise UserError(f"MNISTSplits: files={files!r} must be four names, each with its checksum: {ORDER}.")
            for name, sha256 in files.items():
                if not re.fullmatch("[0-9a-fA-F]{64}", str(sha256)):
                    raise UserError(
                        f"MNISTSplits: files={{{name!r}: {sha256!r}}} must be the file's SHA-256 checksum, 64 "
                        "hexadecimal digits: copy what sha256sum prints."
                    )
        self.files = files
        self.data_dir = data_dir
        self.num_train = check_count(self, "num_train", num_train, 1)
        self.num_val = check_count(self, "num_val", num_val, 1)
        self.num_test = check_count(self, "num_test", num_test, 1)
        self.subtract_mean = subtract_mean
        self.label_noise = check_number(self, "label_noise", label_noise, 0.0, 1.0)
        if self.label_noise == 1:
            raise UserError(f"MNISTSplits: label_noise={label_noise!r} leaves no label unchanged: lower it.")
        self.split_seed = check_seed(self, "split_seed", split_seed)
        self.eval_batch_size = check_count(self, "eval_batch_size", eval_batch_size, 1)

    def prepare_data(self) -> None:
        """Downloads MNIST if needed and missing."""
        if self.files is None and self.source == "mnist":
            self._paths()

    def setup(self, stage: str) -> None:
        """Loads the images and draws the splits.

        Raises:
            UserError: If files are missing or corrupt, do not belong together, or hold too few images.
        """
        if hasattr(self, "splits"):
            return
        images, brightest, labels, rows = self._draw()
        given = labels.copy()
        if self.label_noise:
            classes = np.unique(labels)
            if len(classes) == 1:
                raise UserError(f"MNISTSplits: label_noise={self.label_noise} needs several classes: set it to 0.")
            # A generator of its own, so that the splits do not depend on the noise.
            noise = np.random.default_rng([self.split_seed, 1])
            given[rows["train"]] = flip_labels(labels[rows["train"]], classes, self.label_noise, noise)
        splits = {
            name: {
                "images": torch.from_numpy(np.divide(images[chosen], brightest, dtype=np.float32)).unsqueeze(1),
                "labels": torch.from_numpy(given[chosen]),
                "index": torch.arange(len(chosen)),
                "clean": torch.from_numpy(given[chosen] == labels[chosen]),
            }
            for name, chosen in rows.items()
        }
        if self.subtract_mean:
            mean = splits["train"]["images"].mean(0)
            for split in splits.values():
                split["images"] -= mean
        self.num_classes = int(labels.max()) + 1
        self.splits = splits

    def _draw(self) -> tuple[NDArray[Any], int, NDArray[np.int64], dict[str, NDArray[np.int64]]]:
        """Loads all images with their greatest intensity and their labels, and draws the indices of each split."""
        generator = np.random.default_rng([self.split_seed, 0])
        if self.files is None and self.source == "digits":
            digits = load_digits()
            images, brightest, labels = digits.images, 16, digits.target
            self._check_enough(["num_train", "num_val", "num_test"], len(labels), "source='digits' has")
            drawn = generator.permutation(len(labels))
            test_drawn = drawn[self.num_train + self.num_val :]
        else:
            paths = self._paths()
            images, labels = labelled_images(*paths[:2])
            test_images, test_labels = labelled_images(*paths[2:])
            if images.shape[1:] != test_images.shape[1:]:
                raise UserError(
                    f"{paths[2]} has images of {test_images.shape[1:]} pixels and {paths[0]} of {images.shape[1:]}: "
                    "give files of one data set."
                )
            self._check_enough(["num_train", "num_val"], len(labels), f"{paths[0]} has")
            self._check_enough(["num_test"], len(test_labels), f"{paths[2]} has")
            drawn = generator.permutation(len(labels))
            test_drawn = len(labels) + generator.permutation(len(test_labels))
            images, brightest = np.concatenate([images, test_images]), 255
            labels = np.concatenate([labels, test_labels])
        rows = {
            "train": drawn[: self.num_train],
            "val": drawn[self.num_train : self.num_train + self.num_val],
            "test": np.sort(test_drawn[: self.num_test]),
        }
        return images, brightest, labels.astype(np.int64), rows

    def _paths(self) -> list[Path]:
        if self.files is None:
            return mnist_files((*TRAINING_FILES, *TEST_FILES), self.data_dir)
        checksums = {name: sha256.lower() for name, sha256 in self.files.items()}
        return obtain(checksums, [data_directory(self.data_dir)], urls=())

    def _check_enough(self, names: list[str], available: int, holder: str) -> None:
        counts = [getattr(self, name) for name in names]
        if sum(counts) > available:
            wanted = " + ".join(f"{name}={count}" for name, count in zip(names, counts, strict=True))
            raise UserError(f"MNISTSplits: {wanted} is more than the {available} images that {holder}: lower it.")

    def train_dataloader(self) -> DataLoader[dict[str, dict[str, Tensor]]]:
        """A single batch of the whole training and validation splits."""
        # Lightning's distributed sampler gives a single item to every process.
        return DataLoader([{"train": self.splits["train"], "val": self.splits["val"]}], batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[int]:
        """The validation split in batches, in order."""
        return self._batches("val")

    def test_dataloader(self) -> DataLoader[int]:
        """The test split in batches, in order."""
        return self._batches("test")

    predict_dataloader = test_dataloader

    def _batches(self, name: str) -> DataLoader[int]:
        indices = range(len(self.splits[name]["index"]))
        # Indexing a split once per batch is much faster than collating its examples.
        collate = partial(_examples, self.splits[name])
        sampler = evaluation_sampler(self, indices)
        return DataLoader(indices, batch_size=self.eval_batch_size, sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


def _examples(split: dict[str, Tensor], indices: list[int]) -> dict[str, Tensor]:
    return {name: tensor[indices] for name, tensor in split.items()}
