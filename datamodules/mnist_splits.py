"""Labelled images for networks whose training is differentiated."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.files import data_directory, obtain
from datamodules.mnist_files import mnist_file, read_idx
from rbp_lightning.errors import UserError, check_choice, check_count, check_number

MNIST = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

Split = dict[str, Tensor]
"""``images``, float32 [n, 1, height, width]; ``labels``, int64, ``index``, int64, and ``clean``, bool, each [n]."""

Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Intensities, 0 to 1, of shape [n, height, width], and classes."""


class Examples(Dataset[Split]):
    """Examples of a split, taken out in slices of its tensors."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split["labels"])

    def __getitems__(self, numbers: list[int]) -> Split:
        """The examples of a batch."""
        return {name: values[numbers] for name, values in self.split.items()}


class MNISTSplits(LightningDataModule):
    """Images with labels in three splits, of which training sees two as a whole.

    A split holds ``images``, float32 of shape ``[n, 1, height, width]``, and of shape ``[n]`` their ``labels``, int64,
    each one's number in the split, ``index``, int64, and whether its label is the original one, ``clean``, bool. An
    epoch of training is one batch, the splits ``train`` and ``val``: the model draws minibatches of its own.

    Args:
        source: ``"digits"`` (8 x 8, 1,797 of them, bundled with scikit-learn) or ``"mnist"`` (28 x 28).
        files: Another data set in MNIST's format, in place of ``source``: names of its four gzipped IDX files with
            their SHA-256 sums, in the order training images, training labels, test images, test labels.
        data_dir: The folder of the files; ``None`` is the environment variable ``RBP_DATA_DIR`` or else ``data``.
        num_train: Number of training images. The paper takes 10,000 of MNIST.
        num_val: Number of validation images, which are training images of the files. The paper takes 50,000.
        num_test: Number of test images, which are test images of the files. The paper takes 10,000.
        subtract_mean: Whether to take the mean training image off all images.
        label_noise: Share of the training labels, in [0, 1), that are replaced by another class.
        split_seed: Seed of the choice of the images, and of the replaced labels.
        eval_batch_size: Images in a batch of validation, test and prediction.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> data = MNISTSplits(num_train=100, num_val=50, num_test=60)
        >>> data.setup("fit")
        >>> data.splits["train"]["images"].shape
        torch.Size([100, 1, 8, 8])
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
        if files is not None and len(files) != 4:
            raise UserError(
                f"MNISTSplits: files={list(files)} must be four: training images, training labels, test images, test "
                "labels, each with its SHA-256 sum."
            )
        self.files = files
        self.data_dir = data_dir
        self.num_train = check_count(self, "num_train", num_train, 1)
        self.num_val = check_count(self, "num_val", num_val, 1)
        self.num_test = check_count(self, "num_test", num_test, 1)
        self.subtract_mean = subtract_mean
        self.label_noise = check_number(self, "label_noise", label_noise, 0.0)
        if label_noise >= 1:
            raise UserError(f"MNISTSplits: label_noise={label_noise!r} must be below 1, or no label is right.")
        self.split_seed = check_count(self, "split_seed", split_seed, 0)
        self.eval_batch_size = check_count(self, "eval_batch_size", eval_batch_size, 1)

    def prepare_data(self) -> None:
        """Downloads MNIST where it is wanted and missing."""
        self._paths()

    def _paths(self) -> Sequence[Path]:
        if self.files is not None:
            return obtain(self.files, [data_directory(self.data_dir)], urls=())
        return [mnist_file(name, self.data_dir) for name in MNIST] if self.source == "mnist" else []

    def setup(self, stage: str) -> None:
        """Loads the images and splits them.

        Raises:
            UserError: If files are missing or corrupt, or hold too few images.
        """
        if hasattr(self, "splits"):
            return
        draw = np.random.default_rng([self.split_seed, 0])
        if paths := self._paths():
            rest, held_out = _labelled(*paths[:2]), _labelled(*paths[2:])
            chosen = self._choose(draw, rest, num_train=self.num_train, num_val=self.num_val)
            chosen += self._choose(draw, held_out, num_test=self.num_test)
        else:
            digits = load_digits()
            everything = (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
            sizes = {"num_train": self.num_train, "num_val": self.num_val, "num_test": self.num_test}
            chosen = self._choose(draw, everything, **sizes)
        self.num_classes = 1 + max(int(labels.max()) for _, labels in chosen)
        mean = chosen[0][0].mean(0) if self.subtract_mean else np.float32(0)
        self.splits: dict[str, Split] = {}
        for name, (images, labels) in zip(("train", "val", "test"), chosen, strict=True):
            noisy = self._with_noise(labels) if name == "train" else labels
            self.splits[name] = {
                "images": torch.from_numpy(images - mean)[:, None],
                "labels": torch.from_numpy(noisy),
                "index": torch.arange(len(labels)),
                "clean": torch.from_numpy(noisy == labels),
            }

    def _choose(self, draw: np.random.Generator, pool: Labelled, **sizes: int) -> list[Labelled]:
        images, labels = pool
        if sum(sizes.values()) > len(labels):
            wanted = " and ".join(f"{name}={size}" for name, size in sizes.items())
            raise UserError(
                f"MNISTSplits: {wanted} want {sum(sizes.values())} images, but there are {len(labels)}: lower them."
            )
        order = draw.permutation(len(labels))
        ends = np.cumsum(list(sizes.values()))
        return [(images[part], labels[part]) for part in np.split(order, ends)[: len(sizes)]]

    def _with_noise(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        draw = np.random.default_rng([self.split_seed, 1])
        wrong = draw.permutation(len(labels))[: round(self.label_noise * len(labels))]
        noisy = labels.copy()
        noisy[wrong] = (labels[wrong] + draw.integers(1, self.num_classes, len(wrong))) % self.num_classes
        return noisy

    def train_dataloader(self) -> DataLoader[dict[str, Split]]:
        """One batch, the training and the validation split as a whole."""
        both = [{"train": self.splits["train"], "val": self.splits["val"]}]
        return DataLoader(both, batch_size=1, collate_fn=_only)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Split]:
        """Validation images, in order."""
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader[Split]:
        """Test images, in order."""
        return self._in_order("test")

    predict_dataloader = test_dataloader

    def _in_order(self, name: str) -> DataLoader[Split]:
        return DataLoader(Examples(self.splits[name]), batch_size=self.eval_batch_size, collate_fn=_as_it_is)  # type: ignore[arg-type]


def _labelled(images_path: Path, labels_path: Path) -> Labelled:
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, dims in ((images_path, images, 3), (labels_path, labels, 1)):
        if array.ndim != dims:
            raise UserError(
                f"{path} has {array.ndim} dimensions instead of {dims}: put images and labels in the order that files "
                "describes, or take data of that kind."
            )
    if len(images) != len(labels):
        raise UserError(f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels.")
    return (images / 255).astype(np.float32), labels.astype(np.int64)


def _only(splits: list[dict[str, Split]]) -> dict[str, Split]:
    (both,) = splits
    return both


def _as_it_is(split: Split) -> Split:
    return split
