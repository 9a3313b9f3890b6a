"""Image patterns: corruptions, sources and batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.datasets import load_digits

from datamodules import ImagePatterns
from datamodules.corruption import erase, occlude, salt_and_pepper
from datamodules.mnist_files import TRAINING_FILES, labelled_images, mnist_files
from rbp_lightning import UserError

images = arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0.0, 1.0]))
levels = st.floats(0, 1)
seeds = st.integers(0, 2**31)


@settings(deadline=None)
@given(image=images, level=levels, seed=seeds)
def test_erase_turns_off_its_share_of_the_on_pixels(image, level, seed) -> None:
    corrupted = erase(image, level, np.random.default_rng(seed))
    assert np.all(corrupted <= image)
    assert image.sum() - corrupted.sum() == round(level * image.sum())


@settings(deadline=None)
@given(image=images, level=levels, seed=seeds)
def test_salt_and_pepper_changes_at_most_its_share_of_pixels(image, level, seed) -> None:
    corrupted = salt_and_pepper(image, level, np.random.default_rng(seed))
    assert set(np.unique(corrupted)) <= {0.0, 1.0}
    assert (corrupted != image).sum() <= round(level * image.size)


def test_salt_and_pepper_turns_pixels_on_and_off() -> None:
    grey = salt_and_pepper(np.zeros((100, 100), dtype=np.float32), 0.4, np.random.default_rng(0))
    assert 0.18 < grey.mean() < 0.22
    grey = salt_and_pepper(np.ones((100, 100), dtype=np.float32), 0.4, np.random.default_rng(0))
    assert 0.78 < grey.mean() < 0.82


@settings(deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), level=levels, seed=seeds)
def test_occlude_turns_one_block_off(height, width, level, seed) -> None:
    off = occlude(np.ones((height, width), dtype=np.float32), level, np.random.default_rng(seed)) == 0
    rows, columns = off.any(1).sum(), off.any(0).sum()
    assert off.sum() == rows * columns == round(height * level**0.5) * round(width * level**0.5)


def loaded(**arguments) -> ImagePatterns:
    data = ImagePatterns(**arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def batch_of(data: ImagePatterns, stage: str, epoch: int = 0) -> dict[str, torch.Tensor]:
    loader = data.train_dataloader() if stage == "train" else data.val_dataloader()
    return data.corrupt(next(iter(loader)), stage, epoch)


def test_stored_digits_are_the_first_of_each_class_binarised() -> None:
    digits = load_digits()
    stored = loaded(num_patterns=10).stored
    for label in range(10):
        first = digits.images[np.flatnonzero(digits.target == label)[0]]
        assert np.array_equal(stored[label].numpy(), (first >= 8).astype(np.float32))


def test_corruptions_depend_on_seed_stage_and_epoch() -> None:
    one, same, other = (loaded(corruption_seed=seed) for seed in (0, 0, 1))
    for stage in ("train", "val", "test"):
        assert torch.equal(batch_of(one, stage)["corrupted"], batch_of(same, stage)["corrupted"])
        assert not torch.equal(batch_of(one, stage)["corrupted"], batch_of(other, stage)["corrupted"])
    assert not torch.equal(batch_of(one, "val")["corrupted"], batch_of(one, "test")["corrupted"])
    assert not torch.equal(batch_of(one, "train", 0)["corrupted"], batch_of(one, "train", 1)["corrupted"])


def test_a_corruption_does_not_depend_on_its_batch() -> None:
    data = loaded()
    batch = next(iter(data.val_dataloader()))
    whole = data.corrupt(batch, "val")["corrupted"]
    for i in (0, 7, 19):
        alone = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        assert torch.equal(data.corrupt(alone, "val")["corrupted"][0], whole[i])


def test_draws_of_one_pattern_differ() -> None:
    data = loaded(num_patterns=1, eval_draws=20)
    corrupted = batch_of(data, "val")["corrupted"]
    assert len({tuple(image.flatten().tolist()) for image in corrupted}) > 10


def test_training_and_recall_can_be_corrupted_differently() -> None:
    data = loaded(train_level=0.0, level=1.0)
    train, val = batch_of(data, "train"), batch_of(data, "val")
    assert torch.equal(train["corrupted"], train["clean"])
    assert float(val["corrupted"].sum()) == 0


def test_an_epoch_holds_every_draw_of_every_pattern_in_a_new_order() -> None:
    data = loaded(num_patterns=3, train_draws=4, batch_size=5)
    loader = data.train_dataloader()
    orders = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([batch["draw"] for batch in loader]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1]


def test_held_out_patterns_are_not_stored() -> None:
    data = loaded(num_patterns=10, held_out=5, eval_draws=1, batch_size=5)
    recalled = batch_of(data, "val")["clean"]
    assert len(recalled) == 5
    assert not any(torch.equal(image, stored) for image in recalled for stored in data.stored)


def test_mnist_is_read_and_binarised(data_dir) -> None:
    stored = loaded(source="mnist", data_dir=data_dir).stored
    assert stored.shape == (10, 28, 28)
    # The first zero is the second image of the training set; pixels from 128 on exceed half of 255.
    images, _ = labelled_images(*mnist_files(TRAINING_FILES, data_dir))
    assert images.shape == (60000, 28, 28)
    assert images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert np.array_equal(stored[0].numpy(), (images[1] >= 128).astype(np.float32))


def test_data_dir_comes_from_the_environment(data_dir, monkeypatch) -> None:
    monkeypatch.setenv("RBP_DATA_DIR", data_dir)
    assert len(loaded(source="mnist").stored) == 10


def test_images_of_a_folder_are_sorted_by_name_and_resized(tmp_path) -> None:
    for name, value in (("b.png", 255), ("a.jpg", 0), ("c.bmp", 255)):
        Image.new("RGB", (20, 10), (value,) * 3).save(tmp_path / name)
    stored = loaded(source="folder", data_dir=str(tmp_path), num_patterns=3, size=6).stored
    assert stored.shape == (3, 6, 6)
    assert stored.mean(dim=(1, 2)).tolist() == [0, 1, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_photos_are_rotated_by_their_exif_orientation(tmp_path, suffix, orientation) -> None:
    """The pattern is the same for every orientation in which the camera stored the photo."""
    upright = np.zeros((16, 16), dtype=np.uint8)
    upright[:, :8] = 255
    upright[:4, :4] = 0  # distinguishes all eight orientations
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"photo.{suffix}", exif=exif.tobytes())
    (pattern,) = loaded(source="folder", data_dir=str(tmp_path), num_patterns=1, size=16).stored
    assert np.array_equal(pattern.numpy(), upright > 127)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "F", "CMYK"])
def test_images_that_would_be_misread_are_refused(tmp_path, mode) -> None:
    Image.new(mode, (6, 6)).save(tmp_path / ("a.tiff" if mode in ("F", "CMYK") else "a.png"))
    with pytest.raises(UserError, match=r"a\.(png|tiff).*8-bit"):
        loaded(source="folder", data_dir=str(tmp_path), num_patterns=1)


def test_images_with_opaque_alpha_are_accepted(tmp_path) -> None:
    Image.new("RGBA", (6, 6), (255, 255, 255, 255)).save(tmp_path / "a.png")
    assert float(loaded(source="folder", data_dir=str(tmp_path), num_patterns=1).stored.mean()) == 1


def test_low_precision_batches_are_corrupted_in_the_same_way() -> None:
    data = loaded()
    batch = next(iter(data.val_dataloader()))
    exact = data.corrupt(batch, "val")["corrupted"]
    low = data.corrupt({**batch, "clean": batch["clean"].bfloat16()}, "val")["corrupted"]
    assert low.dtype is torch.bfloat16
    assert torch.equal(low.float(), exact)


def test_unusable_folders_and_files_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="needs data_dir"):
        ImagePatterns(source="folder")
    with pytest.raises(UserError, match="not a folder"):
        loaded(source="folder", data_dir=str(tmp_path / "none"), num_patterns=1)
    Image.new("L", (64, 64), 255).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"1.*set num_patterns"):
        loaded(source="folder", data_dir=str(tmp_path), num_patterns=2)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a\.png is not an image"):
        loaded(source="folder", data_dir=str(tmp_path), num_patterns=1)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"a\.png is not an image"):
        loaded(source="folder", data_dir=str(tmp_path), num_patterns=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"source": "cifar"},
        {"corruption": "blur"},
        {"train_corruption": "blur"},
        {"num_patterns": 0},
        {"held_out": -1},
        {"level": 1.5},
        {"train_level": -0.1},
        {"threshold": 2},
        {"batch_size": 0},
        {"eval_draws": 0},
        {"size": 0},
    ],
)
def test_arguments_are_checked_at_once(arguments) -> None:
    with pytest.raises(UserError, match=f"ImagePatterns: {next(iter(arguments))}="):
        ImagePatterns(**arguments)


def test_size_is_refused_for_other_sources_than_a_folder() -> None:
    with pytest.raises(UserError, match=r"size=16.*source='folder'"):
        ImagePatterns(size=16)
    with pytest.raises(UserError, match="ImagePatterns: size=0 must be"):
        ImagePatterns(source="folder", data_dir=".", size=0)
