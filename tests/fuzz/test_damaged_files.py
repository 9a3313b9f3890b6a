"""Damaged files of every kind load as valid data or are refused by name."""

import csv
import functools
import gzip
import hashlib
import io
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.files import obtain
from datamodules.image_sources import folder_images
from datamodules.mnist_files import labelled_images
from datamodules.node_features import principal_components
from datamodules.planetoid_files import read_planetoid
from experiments.runs import read_runs
from rbp_lightning import UserError
from rbp_lightning.checkpoint_file import load_checkpoint
from tests import planetoid
from tests.fuzz.damage import Change, damaged, in_gzip, in_zip
from tests.images import with_checksums
from tests.limits import NO_FILES, bounded, make_no_file


class Kind:
    """Files of one kind, and how to read them.

    Args:
        contents: The contents of the files, by name; the first one is damaged.
        read: Reads the files of a folder and checks the result.
        inner: Another way to damage the first file, beneath its compression or checksum.
    """

    def __init__(self, contents: dict[str, bytes], read: Callable[[Path], None], inner: Change = damaged) -> None:
        self.contents = contents
        self.read = read
        self.inner = inner
        self.name = next(iter(contents))

    def write(self, folder: Path, case: str) -> None:
        """Writes the files, the first one damaged; an empty case damages none."""
        for name, content in self.contents.items():
            (folder / name).write_bytes(content)
        draw = random.Random(case)
        content = self.contents[self.name]
        if case:
            content = draw.choice((damaged, self.inner))(content, draw)
        (folder / self.name).write_bytes(content)


def first(name: str, contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: contents[name], **contents}


# --- MNIST's files


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(
        bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes(), mtime=0
    )


MNIST = {
    "images.gz": idx(np.random.default_rng(0).integers(0, 256, (9, 4, 5), np.uint8)),
    "labels.gz": idx(np.arange(9, dtype=np.uint8)),
}


def read_mnist(folder: Path) -> None:
    images, labels = labelled_images(folder / "images.gz", folder / "labels.gz")
    assert images.dtype == labels.dtype == np.uint8
    assert images.ndim == 3
    assert images.shape[:1] == labels.shape == (9,)
    assert images.size


def read_checked(folder: Path) -> None:
    whole = {name: hashlib.sha256(content).hexdigest() for name, content in MNIST.items()}
    for path in obtain(whole, [folder], urls=()):
        assert path.read_bytes() == MNIST[path.name]


# --- image files


def image_file(kind: str, mode: str, **options: Any) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    notes = {} if kind in ("BMP", "GIF") else {"exif": exif.tobytes()}
    Image.fromarray(values).convert(mode).save(file, kind, **notes, **options)
    return file.getvalue()


def read_image(folder: Path) -> None:
    images = folder_images(str(folder), 1, 8)
    assert images.shape == (1, 8, 8)
    assert images.dtype == np.float32
    assert 0 <= images.min() <= images.max() <= 1


def damaged_png(content: bytes, draw: random.Random) -> bytes:
    return with_checksums(damaged(content, draw))


# --- citation graphs


def read_graph(folder: Path) -> None:
    graph = read_planetoid({end: folder / f"ind.small.{end}" for end in planetoid.ENDS})
    assert graph.x.dtype == torch.float32
    assert graph.x.isfinite().all()
    assert 0 < graph.x.numel() <= 2**26
    assert graph.num_nodes == len(graph.x) == len(graph.y)
    assert -1 <= graph.y.min() <= graph.y.max() < planetoid.CLASSES
    assert 0 <= graph.edge_index.min() <= graph.edge_index.max() < graph.num_nodes
    for name in ("train_mask", "val_mask", "test_mask"):
        assert graph[name].shape == graph.y.shape
        assert graph[name].any()


GRAPH = {f"ind.small.{end}": content for end, content in planetoid.small_contents().items()}


# --- files written by this project


def components() -> Kind:
    features = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        expected = principal_components(features, 3, Path(folder))
        (path,) = Path(folder).iterdir()
        content = path.read_bytes()

    def read(folder: Path) -> None:
        assert torch.equal(principal_components(features, 3, folder), expected)
        assert (folder / path.name).read_bytes() == content
        assert len(list(folder.iterdir())) == 1

    return Kind({path.name: content}, read)


def runs() -> Kind:
    wanted = [{"config": "configs/a.yaml", "overrides": "--a=1, --b", "seed": str(seed)} for seed in range(4)]
    keys, measured = list(wanted[0]), ["accuracy", "curve"]
    rows = [{**keys, "accuracy": f"{80 + row}.5", "curve": "1.5 nan 2e-05"} for row, keys in enumerate(wanted)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, keys + measured)
    writer.writeheader()
    writer.writerows(rows)

    def read(folder: Path) -> None:
        for row in read_runs(folder / "runs.csv", keys, measured):
            assert list(row) == keys + measured
            assert [float(number) for number in (row["accuracy"], *row["curve"].split())]

    return Kind({"runs.csv": text.getvalue().encode()}, read)


def checkpoint() -> Kind:
    weights = {"layer.weight": torch.rand(3, 4), "layer.bias": torch.arange(3), "half": torch.rand(2).bfloat16()}
    content = {
        **{"epoch": 3, "global_step": 40, "pytorch-lightning_version": lightning.__version__, "state_dict": weights},
        **{"hyper_parameters": {"size": 3, "name": "a", "_class_path": "models.A"}, "callbacks": {}, "loops": {}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}],
    }
    file = io.BytesIO()
    torch.save(content, file)

    def read(folder: Path) -> None:
        loaded = load_checkpoint(folder / "last.ckpt")
        assert isinstance(loaded, dict)
        assert {"state_dict", "pytorch-lightning_version"} <= loaded.keys()

    return Kind({"last.ckpt": file.getvalue()}, read, in_zip)


KINDS: dict[str, Callable[[], Kind]] = {
    "checked by its sum": lambda: Kind(MNIST, read_checked),
    "idx images": lambda: Kind(MNIST, read_mnist, in_gzip),
    "idx labels": lambda: Kind(first("labels.gz", MNIST), read_mnist, in_gzip),
    "BMP": lambda: Kind({"a.png": image_file("BMP", "RGB")}, read_image),
    "GIF": lambda: Kind({"a.png": image_file("GIF", "P")}, read_image),
    "JPEG": lambda: Kind({"a.png": image_file("JPEG", "RGB")}, read_image),
    "JPEG, progressive": lambda: Kind({"a.png": image_file("JPEG", "L", progressive=True)}, read_image),
    "PNG": lambda: Kind({"a.png": image_file("PNG", "RGB")}, read_image, damaged_png),
    "PNG, palette": lambda: Kind({"a.png": image_file("PNG", "P")}, read_image, damaged_png),
    "TIFF": lambda: Kind({"a.png": image_file("TIFF", "RGB")}, read_image),
    "TIFF, compressed": lambda: Kind({"a.png": image_file("TIFF", "RGB", compression="tiff_lzw")}, read_image),
    "TIFF, fax": lambda: Kind({"a.png": image_file("TIFF", "1", compression="group4")}, read_image),
    **{
        f"graph: {end}": functools.partial(Kind, first(f"ind.small.{end}", GRAPH), read_graph)
        for end in planetoid.ENDS
        if end != "x"  # is not read
    },
    "components": components,
    "runs": runs,
    "checkpoint": checkpoint,
}


def refuses(files: Kind, folder: Path, case: str) -> bool:
    """Reads damaged files; returns whether they were refused, in one line that names one of them."""
    try:
        with bounded(64, 20, case):
            files.read(folder)
    except UserError as error:
        named = str(folder) in str(error) and len(str(error).splitlines()) == 1
        if case and named:
            return True
        raise AssertionError(f"{case or 'the whole file'} is refused: {error}") from error
    except Exception as error:
        raise AssertionError(f"{case}: {error!r}") from error
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind, cases, figures, tmp_path, monkeypatch) -> None:
    """``KINDS[kind]().write(folder, case)`` writes the files of a case."""
    monkeypatch.chdir(tmp_path)
    files, refused, tried = KINDS[kind](), 0, cases(20, 1000)
    for number in range(-1, tried):
        case, folder = f"{kind}, case {number}" if number >= 0 else "", tmp_path / f"{number}"
        folder.mkdir()
        files.write(folder, case)
        refused += refuses(files, folder, case)
        assert not Path("executed").exists(), case
        shutil.rmtree(folder)
    figures.update(tried=tried, refused=refused)
    assert refused >= tried // 4 or kind == "components"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "components"])
def test_paths_that_are_not_regular_files_are_refused(kind, tmp_path) -> None:
    files = KINDS[kind]()
    for number, other in enumerate(NO_FILES):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        files.write(folder, "")
        (folder / files.name).unlink()
        make_no_file(folder / files.name, other)
        assert refuses(files, folder, f"{kind}, a {other}")
