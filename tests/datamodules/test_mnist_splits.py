"""MNIST-like splits: files, label noise, and batches of a Trainer."""

import gzip
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import nn

from datamodules import MNISTSplits
from datamodules.mnist_files import labelled_images, mnist_files
from rbp_lightning import UserError
from tests.cli.runs import Run
from tests.training import QUIET

NAMES = ("training-images.gz", "training-labels.gz", "test-images.gz", "test-labels.gz")


def loaded(**arguments) -> MNISTSplits:
    data = MNISTSplits(**arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def counted(images: np.ndarray | torch.Tensor, labels: np.ndarray | torch.Tensor, brightest: int) -> Counter:
    """The number of occurrences of each labelled image, by its pixels in the file."""
    pixels = np.rint(np.asarray(images, np.float32).reshape(len(images), -1) * brightest).astype(np.uint8)
    return Counter((row.tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True))


def counted_split(data: MNISTSplits, name: str, brightest: int) -> Counter:
    return counted(data.splits[name]["images"], data.splits[name]["labels"], brightest)


def write_idx(path: Path, array: np.ndarray) -> str:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def small_arrays(height: int = 3, width: int = 5) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (count, height, width)) for count in (30, 12)]
    return [images[0], draw.permutation(30) % 4, images[1], np.arange(12) % 4]


def small_files(folder: Path, arrays: list[np.ndarray] | None = None, names: tuple[str, ...] = NAMES) -> dict[str, str]:
    arrays = small_arrays() if arrays is None else arrays
    return {name: write_idx(folder / name, array) for name, array in zip(names, arrays, strict=True)}


def loaded_small(folder: Path, files: dict[str, str], **arguments) -> MNISTSplits:
    sizes = {"num_train": 20, "num_val": 10, "num_test": 12}
    return loaded(files=files, data_dir=str(folder), **{**sizes, **arguments})


def test_a_split_holds_images_labels_indices_and_flags() -> None:
    data = loaded(num_train=30, num_val=20, num_test=10)
    assert data.num_classes == 10
    for name, count in (("train", 30), ("val", 20), ("test", 10)):
        split = data.splits[name]
        assert set(split) == {"images", "labels", "index", "clean"}
        assert split["images"].shape == (count, 1, 8, 8)
        assert split["images"].dtype is torch.float32
        assert split["labels"].dtype is torch.int64
        assert torch.equal(split["index"], torch.arange(count))
        assert torch.equal(split["clean"], torch.ones(count, dtype=torch.bool))


def test_the_splits_hold_every_digit_once() -> None:
    data = loaded(num_train=700, num_val=600, num_test=497, subtract_mean=False)
    digits = load_digits()
    together = sum((counted_split(data, name, 16) for name in data.splits), Counter())
    assert together == counted(digits.images / 16, digits.target, 16)
    # Drawn at random: in the order of the file, training would get the first ones.
    first = counted(digits.images[:700] / 16, digits.target[:700], 16)
    assert 0.3 < (counted_split(data, "train", 16) & first).total() / 700 < 0.5


def test_mnist_is_split_as_in_the_paper(data_dir) -> None:
    sizes = {"num_train": 10000, "num_val": 50000, "num_test": 10000}
    data = loaded(source="mnist", data_dir=data_dir, subtract_mean=False, **sizes)
    assert {name: len(split["images"]) for name, split in data.splits.items()} == dict(
        zip(("train", "val", "test"), sizes.values(), strict=True)
    )
    for names, prefix in ((("train", "val"), "train"), (("test",), "t10k")):
        files = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]
        images, labels = labelled_images(*mnist_files(files, data_dir))
        together = sum((counted_split(data, name, 255) for name in names), Counter())
        assert together == counted(images, labels, brightest=1)
    centred = loaded(source="mnist", data_dir=data_dir, **sizes)
    mean = data.splits["train"]["images"].double().mean(0).float()
    for name, split in centred.splits.items():
        torch.testing.assert_close(split["images"], data.splits[name]["images"] - mean, rtol=0, atol=1e-6)
        assert torch.equal(split["labels"], data.splits[name]["labels"])


def test_data_dir_comes_from_the_environment(data_dir, monkeypatch) -> None:
    monkeypatch.setenv("RBP_DATA_DIR", data_dir)
    assert loaded(source="mnist").splits["train"]["images"].shape == (500, 1, 28, 28)


def test_the_subtracted_mean_is_that_of_the_training_split() -> None:
    plain, centred = loaded(subtract_mean=False), loaded()
    mean = plain.splits["train"]["images"].mean(0)
    for name, split in plain.splits.items():
        torch.testing.assert_close(centred.splits[name]["images"], split["images"] - mean)
        assert (split["images"] - mean).mean(0).abs().max() > 0.01 or name == "train"
    assert centred.splits["train"]["images"].mean(0).abs().max() < 1e-6
    assert plain.splits["train"]["images"].min() == 0
    assert plain.splits["train"]["images"].max() == 1


@pytest.mark.parametrize(("share", "count"), [(0.25, 125), (0.001, 0), (0.0031, 2), (0.999, 500)])
def test_label_noise_replaces_its_share_of_the_training_labels(share, count) -> None:
    plain, noisy = loaded(), loaded(label_noise=share)
    replaced = plain.splits["train"]["labels"] != noisy.splits["train"]["labels"]
    assert int(replaced.sum()) == count
    assert torch.equal(noisy.splits["train"]["clean"], ~replaced)
    for name in ("val", "test"):
        assert noisy.splits[name]["clean"].all()
        assert torch.equal(noisy.splits[name]["labels"], plain.splits[name]["labels"])
    for name, split in plain.splits.items():
        assert torch.equal(noisy.splits[name]["images"], split["images"])


def test_label_noise_is_uniform_and_reproducible() -> None:
    sizes = {"num_train": 1700, "num_val": 50, "num_test": 47}
    plain, noisy = loaded(**sizes).splits["train"], loaded(**sizes, label_noise=0.9).splits["train"]
    shift = (noisy["labels"] - plain["labels"]) % 10
    counts = torch.bincount(shift, minlength=10)
    assert counts[0] == 170
    # Of 1530 replaced labels, 170 +- 12 are expected at each distance.
    assert (counts[1:] - 170).abs().max() < 50
    # The examples that keep their label are spread out: 85 +- 6.5 are expected in each half.
    assert abs(int(noisy["clean"][:850].sum()) - 85) < 26
    assert torch.equal(loaded(**sizes, label_noise=0.9).splits["train"]["labels"], noisy["labels"])
    less = loaded(**sizes, label_noise=0.5).splits["train"]
    assert int(less["clean"].sum()) == 850


def test_the_splits_depend_on_the_seed() -> None:
    one, same, other = (loaded(split_seed=seed, label_noise=0.5) for seed in (3, 3, 4))
    for name, split in one.splits.items():
        for key, values in split.items():
            assert torch.equal(values, same.splits[name][key])
        assert not torch.equal(split["images"], other.splits[name]["images"])
        assert not torch.equal(split["labels"], other.splits[name]["labels"])
    assert not torch.equal(one.splits["train"]["clean"], other.splits["train"]["clean"])


def test_files_in_mnist_s_format_are_read(tmp_path) -> None:
    arrays = small_arrays()
    names = ("own/a.gz", "own/b.gz", "own/c.gz", "own/d.gz")
    data = loaded_small(tmp_path, small_files(tmp_path, arrays, names), subtract_mean=False)
    assert data.num_classes == 4
    assert data.splits["train"]["images"].shape == (20, 1, 3, 5)
    drawn = counted_split(data, "train", 255) + counted_split(data, "val", 255)
    assert drawn == counted(arrays[0] / 255, arrays[1], 255)
    assert counted_split(data, "test", 255) == counted(arrays[2] / 255, arrays[3], 255)


def test_files_override_the_source(tmp_path) -> None:
    assert loaded_small(tmp_path, small_files(tmp_path), source="mnist").num_classes == 4


def test_test_images_keep_the_order_of_their_file(tmp_path) -> None:
    images = torch.from_numpy(small_arrays()[2]).float() / 255
    files = small_files(tmp_path)
    torch.testing.assert_close(
        loaded_small(tmp_path, files, subtract_mean=False).splits["test"]["images"][:, 0], images
    )
    some = [loaded_small(tmp_path, files, subtract_mean=False, num_test=6, split_seed=seed) for seed in (0, 1)]
    numbers = [
        [int((images - image).flatten(1).abs().sum(1).argmin()) for image in data.splits["test"]["images"]]
        for data in some
    ]
    assert all(drawn == sorted(set(drawn)) for drawn in numbers)
    assert numbers[0] != numbers[1]


def test_label_noise_uses_only_classes_that_occur(tmp_path) -> None:
    images, labels, test_images, test_labels = small_arrays()
    files = small_files(tmp_path, [images, labels * 3, test_images, test_labels * 3])
    data = loaded_small(tmp_path, files, label_noise=0.9)
    assert set(data.splits["train"]["labels"].tolist()) <= {0, 3, 6, 9}
    assert int(data.splits["train"]["clean"].sum()) == 2
    alone = small_files(tmp_path, [images, labels * 0, test_images, test_labels * 0])
    with pytest.raises(UserError, match=r"label_noise=0\.9"):
        loaded_small(tmp_path, alone, label_noise=0.9)


def test_classes_are_counted_over_the_files_not_the_splits(tmp_path) -> None:
    arrays = small_arrays()
    arrays[1] = np.where(np.arange(30) == 7, 5, 0)
    files = small_files(tmp_path, arrays)
    sizes = {"num_train": 1, "num_val": 1, "num_test": 1}
    assert {loaded_small(tmp_path, files, split_seed=seed, **sizes).num_classes for seed in range(5)} == {6}


def test_images_of_two_sizes_are_refused(tmp_path) -> None:
    files = small_files(tmp_path, [*small_arrays()[:2], *small_arrays(4, 5)[2:]])
    with pytest.raises(UserError, match=rf"{NAMES[2]}.*\(4, 5\).*{NAMES[0]}.*\(3, 5\)"):
        loaded_small(tmp_path, files)


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "g" * 64, 5])
def test_invalid_checksums_are_refused(sha256) -> None:
    files = dict.fromkeys(NAMES, "0" * 64)
    with pytest.raises(UserError, match=rf"files=.*{NAMES[1]}.*{sha256!r}.* 64 "):
        MNISTSplits(files={**files, NAMES[1]: sha256})
    with pytest.raises(UserError, match=r"files=.*four"):
        MNISTSplits(files=list(files))


def test_checksums_may_be_in_capitals_and_given_files_are_not_downloaded(tmp_path) -> None:
    files = {name: sha256.upper() for name, sha256 in small_files(tmp_path).items()}
    assert loaded_small(tmp_path, files).num_classes == 4
    (tmp_path / NAMES[0]).unlink()
    with pytest.raises(UserError, match=rf"Missing {NAMES[0]}.* into {tmp_path}"):
        loaded_small(tmp_path, files)


def test_files_that_do_not_fit_are_refused(tmp_path) -> None:
    arrays = small_arrays()
    for order, name in (([1, 0, 2, 3], NAMES[0]), ([0, 1, 3, 2], NAMES[2]), ([0, 2, 1, 3], NAMES[1])):
        files = small_files(tmp_path, [arrays[i] for i in order])
        with pytest.raises(UserError, match=rf"{name} has .*dimensions.* in the order"):
            loaded_small(tmp_path, files)
    with pytest.raises(UserError, match=rf"(?s){NAMES[0]}.* 30 .*|{NAMES[1]}.* 29 "):
        loaded_small(tmp_path, small_files(tmp_path, [arrays[0], arrays[1][:29], *arrays[2:]]))


def test_corrupt_and_truncated_files_are_refused(tmp_path) -> None:
    files = small_files(tmp_path)
    with pytest.raises(UserError, match=rf"{NAMES[3]} is corrupt .*{'0' * 64}"):
        loaded_small(tmp_path, {**files, NAMES[3]: "0" * 64})
    path = tmp_path / NAMES[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=rf"{NAMES[0]} is corrupt"):
        loaded_small(tmp_path, files)
    truncated = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=rf"{NAMES[0]} is not a gzipped IDX file"):
        loaded_small(tmp_path, {**files, NAMES[0]: truncated})


def test_missing_files_are_named_with_the_remedy(tmp_path) -> None:
    files = small_files(tmp_path)
    for name in NAMES[1:3]:
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"Missing {NAMES[1]}, {NAMES[2]}.*RBP_DATA_DIR"):
        loaded_small(tmp_path, files)


def test_too_many_images_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"num_train=1000.*num_val=500.*num_test=298.* 1797\b"):
        loaded(num_train=1000, num_test=298)
    assert len(loaded(num_train=1000, num_test=297).splits["test"]["labels"]) == 297
    files = small_files(tmp_path)
    with pytest.raises(UserError, match=r"num_train=20.*num_val=11.* 30\b"):
        loaded_small(tmp_path, files, num_val=11)
    with pytest.raises(UserError, match=r"num_test=13.* 12\b"):
        loaded_small(tmp_path, files, num_test=13)


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ({"source": "cifar"}, "digits, mnist"),
        ({"num_train": 0}, "at least 1"),
        ({"num_train": 2.5}, "at least 1"),
        ({"num_val": 0}, "at least 1"),
        ({"num_test": True}, "at least 1"),
        ({"label_noise": -0.1}, r"\[0, "),
        ({"label_noise": float("nan")}, r"\[0, "),
        ({"label_noise": 1.0}, "lower it|below 1"),
        ({"label_noise": 1.5}, r"\[0, 1|below 1"),
        ({"split_seed": -1}, "at least 0"),
        ({"eval_batch_size": 0}, "at least 1"),
    ],
)
def test_arguments_are_checked_at_once(argument, remedy) -> None:
    ((name, value),) = argument.items()
    with pytest.raises(UserError, match=rf"MNISTSplits: {name}={value!r} .*({remedy})"):
        MNISTSplits(**argument)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_any_other_number_of_files_is_refused(count) -> None:
    with pytest.raises(UserError, match=r"MNISTSplits: files=.*four"):
        MNISTSplits(files={f"{number}.gz": "0" * 64 for number in range(count)})


def test_the_splits_are_drawn_once() -> None:
    data = loaded()
    splits = data.splits
    data.setup("test")
    assert data.splits is splits


class Recorder(LightningModule):
    """A model that records its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.seen: dict[str, list] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return nn.functional.cross_entropy(self.layer(batch["train"]["images"].flatten(1)), batch["train"]["labels"])

    def validation_step(self, batch, batch_idx) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch)
        return batch["labels"]  # Lightning warns if this is None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def assert_equal(batch: dict, split: dict, rows: slice = slice(None)) -> None:
    assert set(batch) == set(split)
    for name, values in batch.items():
        assert torch.equal(values, split[name][rows])


def test_training_gets_whole_splits_and_evaluation_gets_batches() -> None:
    data, model = MNISTSplits(num_train=40, num_val=25, num_test=31, eval_batch_size=10, label_noise=0.2), Recorder()
    trainer = Trainer(**QUIET, max_epochs=2, num_sanity_val_steps=0, log_every_n_steps=1)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    trainer.predict(model, data)
    assert len(model.seen["train"]) == 2
    for batch in model.seen["train"]:
        assert set(batch) == {"train", "val"}
        assert_equal(batch["train"], data.splits["train"])
        assert_equal(batch["val"], data.splits["val"])
    # There is a validation after each of the two epochs.
    for name, split, starts in (
        ("val", "val", [0, 10, 20] * 2),
        *((n, "test", [0, 10, 20, 30]) for n in ("test", "predict")),
    ):
        for batch, start in zip(model.seen[name], starts, strict=True):
            assert_equal(batch, data.splits[split], slice(start, start + 10))


class SaveSeenBatches(Callback):
    """Saves the batches that each process has seen to the current folder."""

    def on_fit_end(self, trainer: Trainer, pl_module: Recorder) -> None:
        torch.save(pl_module.seen, f"fit{trainer.global_rank}")

    def on_predict_end(self, trainer: Trainer, pl_module: Recorder) -> None:
        torch.save(pl_module.seen, f"predict{trainer.global_rank}")


def in_two_processes() -> None:
    """Trains and predicts in two processes."""
    data, model = MNISTSplits(num_train=40, num_val=26, num_test=31, eval_batch_size=10, label_noise=0.2), Recorder()
    options = {**QUIET, "devices": 2, "strategy": "ddp_fork", "max_epochs": 2, "num_sanity_val_steps": 0}
    trainer = Trainer(**options, log_every_n_steps=1, callbacks=[SaveSeenBatches()])
    trainer.fit(model, data)
    trainer.predict(model, data, return_predictions=False)


@pytest.mark.slow
def test_two_processes_get_the_whole_training_batch_and_their_share_of_others(zygote, tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from tests.datamodules.test_mnist_splits import in_two_processes\nin_two_processes()\n")
    run = Run(zygote, tmp_path, [], {}, script)
    assert run.end(300) == 0, run.error()[-3000:]
    splits = loaded(num_train=40, num_val=26, num_test=31, label_noise=0.2).splits
    seen = []
    for rank in (0, 1):
        fitted, predicted = (torch.load(tmp_path / f"{stage}{rank}") for stage in ("fit", "predict"))
        seen.append({**fitted, "predict": predicted["predict"]})
    for of_rank in seen:
        assert len(of_rank["train"]) == 2
        for batch in of_rank["train"]:
            assert_equal(batch["train"], splits["train"])
            assert_equal(batch["val"], splits["val"])
        for name, split in (("val", "val"), ("predict", "test")):
            for batch in of_rank[name]:
                assert_equal(batch, splits[split], batch["index"])
    for name, expected in (("val", sorted([*range(26)] * 2)), ("predict", [*range(31)])):
        assert sorted(int(i) for of_rank in seen for batch in of_rank[name] for i in batch["index"]) == expected
