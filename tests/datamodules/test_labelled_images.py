"""Labelled images: splits, files and augmentation."""

import hashlib
import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from datamodules import LabelledImages
from datamodules.augmentation import augment
from datamodules.cifar_files import ARCHIVE, FILES, FOLDER, cifar_files, read_cifar
from datamodules.mnist_files import TEST_FILES, TRAINING_FILES, labelled_images, mnist_files
from rbp_lightning import UserError
from tests.training import make_trainer


def loaded(**arguments) -> LabelledImages:
    data = LabelledImages(**arguments)
    data.setup("fit")
    return data


def counted(images: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor) -> Counter:
    """The number of occurrences of each labelled image."""
    pixels = np.asarray(images).reshape(len(images), -1).astype(np.uint8)
    return Counter((row.tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True))


def test_the_splits_hold_every_digit_once_with_its_label() -> None:
    data, digits = loaded(num_val=100), load_digits()
    assert [len(split["labels"]) for split in data.splits.values()] == [1797 - 100 - 449, 100, 449]
    found = sum((counted(split["images"], split["labels"]) for split in data.splits.values()), Counter())
    assert found == counted(digits.images, digits.target)
    batch = next(iter(data.val_dataloader()))
    assert batch["images"].dtype is torch.float32
    assert float(batch["images"].max()) == 1
    torch.testing.assert_close(16 * batch["images"], data.splits["val"]["images"].float())
    assert torch.equal(batch["labels"], data.splits["val"]["labels"])


@pytest.mark.data
def test_the_test_split_of_mnist_is_its_test_files(data_dir) -> None:
    data = loaded(source="mnist", data_dir=data_dir, num_train=100, num_val=50)
    images, labels = labelled_images(*mnist_files(TEST_FILES, data_dir))
    assert np.array_equal(data.splits["test"]["images"][:, 0], images)
    assert np.array_equal(data.splits["test"]["labels"], labels)
    known = counted(*labelled_images(*mnist_files(TRAINING_FILES, data_dir)))
    for name in ("train", "val"):
        assert counted(data.splits[name]["images"], data.splits[name]["labels"]) <= known


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """CIFAR-10's archive with four images per file; label and pixels are the number of the image."""
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as file:
        for number, name in enumerate(FILES):
            rows = np.full((4, 3073), np.arange(4 * number, 4 * number + 4)[:, None], np.uint8)
            rows[:, 0] %= 10
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = rows.nbytes
            file.addfile(member, io.BytesIO(rows.tobytes()))
    return tmp_path / ARCHIVE


def test_cifar_is_read_from_its_archive(archive, monkeypatch) -> None:
    monkeypatch.setattr("datamodules.cifar_files.SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    data = loaded(source="cifar10", data_dir=str(archive.parent), num_val=5)
    assert [len(split["labels"]) for split in data.splits.values()] == [15, 5, 4]
    for split in data.splits.values():
        assert split["images"].shape[1:] == (3, 32, 32)
        assert torch.equal(split["images"][:, 0, 0, 0].long() % 10, split["labels"])
    assert data.splits["test"]["images"][:, 2, 31, 31].tolist() == [20, 21, 22, 23]
    assert len({int(image[0, 0, 0]) for split in data.splits.values() for image in split["images"]}) == 24


def test_an_archive_that_is_not_the_published_one_is_refused(archive) -> None:
    with pytest.raises(UserError, match=rf"{ARCHIVE} is corrupt"):
        loaded(source="cifar10", data_dir=str(archive.parent))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(UserError, match=rf"{ARCHIVE} is not an archive"):
        read_cifar(archive)


@pytest.mark.parametrize("folder", [".", "cifar10"])
def test_cifar_is_read_from_an_unpacked_folder(folder, archive, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("datamodules.cifar_files.IMAGES", 4)
    expected = read_cifar(archive)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / folder, filter="data")
    monkeypatch.setattr("datamodules.cifar_files.SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert cifar_files(str(tmp_path)) == archive  # whose checksum is known
    archive.unlink()
    found = read_cifar(cifar_files(str(tmp_path)))
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)
    data = loaded(source="cifar10", data_dir=str(tmp_path), num_val=5)
    assert [len(split["labels"]) for split in data.splits.values()] == [15, 5, 4]


@pytest.mark.parametrize("change", [-1, 1, None])
def test_an_unpacked_folder_with_a_wrong_file_is_refused(change, archive, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("datamodules.cifar_files.IMAGES", 4)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    archive.unlink()
    damaged = tmp_path / FOLDER / FILES[3]
    if change is None:
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:change] if change < 0 else damaged.read_bytes() + b"0")
    with pytest.raises(UserError, match=rf"{FOLDER} is not a folder of .*{FILES[3]}.* {4 * 3073} bytes"):
        loaded(source="cifar10", data_dir=str(tmp_path))


@pytest.mark.parametrize(("source", "name"), [("mnist", TRAINING_FILES[0]), ("cifar10", ARCHIVE)])
def test_missing_files_are_named_with_the_remedy(source, name, tmp_path, monkeypatch) -> None:
    def offline(*args, **kwargs) -> None:
        raise OSError("no network")

    monkeypatch.setattr("pooch.retrieve", offline)
    with pytest.raises(UserError, match=rf"^Missing {name}.* into {tmp_path}.*data_dir"):
        LabelledImages(source=source, data_dir=str(tmp_path)).prepare_data()


def test_too_many_images_are_refused() -> None:
    assert len(loaded(num_train=1000, num_val=500, num_test=297).splits["train"]["labels"]) == 1000
    for counts in ({"num_train": 1000, "num_val": 500, "num_test": 298}, {"num_val": 1600}, {"num_test": 1800}):
        with pytest.raises(UserError, match=rf"{next(iter(counts))}.* 1797 images"):
            loaded(**counts)


def test_images_are_shifted_rotated_and_scaled() -> None:
    images = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))

    def by(*draws: float, shift: float = 0.0, rotation: float = 0.0, scaling: float = 0.0) -> torch.Tensor:
        return augment(images, torch.tensor(draws).expand(3, 4), shift, rotation, scaling)

    torch.testing.assert_close(by(1, 1, 1, 1), images)
    shifted = torch.zeros_like(images)
    shifted[:, :, :-1, :-2] = images[:, :, 1:, 2:]
    torch.testing.assert_close(by(0, 1, 0.5, 0, shift=2), shifted)
    torch.testing.assert_close(by(1, 0, 0, 0, rotation=90), images.rot90(1, (2, 3)))
    half = torch.zeros_like(images)
    half[:, :, 1:5, 1:5] = 1
    torch.testing.assert_close(augment(torch.ones_like(images), torch.tensor([[0, 0, 0, 1.0]] * 3), 0, 0, 0.5), half)


def test_augmentation_depends_only_on_seed_epoch_and_image() -> None:
    def seen(batch_size: int, seed: int, training: bool = True) -> list[dict[int, torch.Tensor]]:
        data = loaded(num_train=12, num_val=20, num_test=5, shift=2, batch_size=batch_size, data_seed=0)
        data.data_seed = seed
        data.trainer = make_trainer()
        data.trainer.training = training
        epochs = []
        for epoch in (0, 1):
            data.trainer.fit_loop.epoch_progress.current.completed = epoch
            data.trainer.fit_loop.epoch_progress.current.processed = epoch
            batches = [data.on_before_batch_transfer(batch, 0) for batch in data.train_dataloader()]
            epochs.append({int(i): image for b in batches for i, image in zip(b["index"], b["images"], strict=True)})
        return epochs

    def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
        return all(torch.equal(image, other[index]) for index, image in one.items())

    first, second = seen(4, 0)
    assert same(first, seen(5, 0)[0])
    assert same(second, seen(5, 0)[1])
    assert not same(first, second)
    assert not same(first, seen(4, 1)[0])
    plain = seen(4, 0, training=False)
    assert same(*plain)
    assert not same(first, plain[0])
