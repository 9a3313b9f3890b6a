"""What every data module does. A new one is a line in ``CASES``."""

import hashlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch_geometric.data import Data

import datamodules
from datamodules import CitationGraph, ImagePatterns, LabelledImages, Mazes, MNISTSplits, PrefixSums, Sudoku, SudokuFile
from datamodules.puzzles import Puzzles
from datamodules.sudoku_generation import puzzle
from rbp_lightning import UserError
from tests.graphs import RandomGraph
from tests.puzzles import write_puzzles
from tests.training import make_trainer


def nodes(data: CitationGraph) -> list[list[Any]]:
    return [data.graph[f"{split}_mask"].nonzero()[:, 0].tolist() for split in ("train", "val", "test")]


def patterns(data: ImagePatterns) -> list[list[Any]]:
    return [[digest(pattern) for pattern in split] for split in (data.stored, data.recalled)]


def images(data: MNISTSplits | LabelledImages) -> list[list[Any]]:
    return [[digest(image) for image in split["images"]] for split in data.splits.values()]


def puzzles(data: Puzzles) -> list[list[Any]]:
    return [
        [digest(puzzle) for split in sizes.values() for puzzle in split["inputs"]] for sizes in data.splits.values()
    ]


def generated(kind: type[Puzzles], **arguments: Any) -> Callable[..., LightningDataModule]:
    """Returns a function that makes a data module of a few generated puzzles."""
    few = {"num_train": 20, "num_val": 4, "num_test": 4, "batch_size": 8}
    return lambda data_dir, **others: kind(**few, **arguments, **others)


def from_file(data_dir: str, **others: Any) -> LightningDataModule:
    """A data module of puzzles in a file, which is written first."""
    file = Path(data_dir, "sudoku.csv")
    if data_dir != "." and not file.exists():
        generator = np.random.default_rng(0)
        write_puzzles(file, [drawn for _ in range(60) if (drawn := puzzle(4, 8, generator)) is not None])
    return generated(SudokuFile, side=4, data_dir=data_dir)(data_dir, **others)


@dataclass
class Case:
    """A data module to test.

    Attributes:
        make: Makes a small data module from ``data_dir`` and further arguments.
        splits: Returns the examples of each split, as comparable values.
        seed: Name of the argument for the seed.
        real: Whether it reads real data files; its tests skip without them.
    """

    make: Callable[..., LightningDataModule]
    splits: Callable[[Any], list[list[Any]]]
    seed: str
    real: bool = False


RANDOM = partial(CitationGraph, dataset=RandomGraph, split="per_class", per_class=2, num_val=6, num_test=10)
PATTERNS = partial(ImagePatterns, held_out=10, train_draws=3, eval_draws=2)
LABELLED = partial(LabelledImages, num_train=30, num_val=20, num_test=10, batch_size=8, eval_batch_size=8)
SPLITS = partial(MNISTSplits, num_train=30, num_val=20, num_test=10)
CASES = {
    "CitationGraph": Case(RANDOM, nodes, "split_seed"),
    "CitationGraph-ratio": Case(partial(RANDOM, split="ratio", train_ratio=0.3, pca=2), nodes, "split_seed"),
    "CitationGraph-parts": Case(partial(RANDOM, num_parts=3), nodes, "split_seed"),
    "CitationGraph-random-parts": Case(partial(RANDOM, num_parts=3, partition="random"), nodes, "split_seed"),
    "CitationGraph-Cora": Case(partial(CitationGraph, split="per_class", pca=4), nodes, "split_seed", real=True),
    "ImagePatterns": Case(PATTERNS, patterns, "corruption_seed"),
    "LabelledImages": Case(LABELLED, images, "data_seed"),
    "LabelledImages-augmented": Case(partial(LABELLED, shift=1, rotation=10, scaling=0.1), images, "data_seed"),
    "MNISTSplits": Case(SPLITS, images, "split_seed"),
    "MNISTSplits-noise": Case(partial(SPLITS, label_noise=0.5), images, "split_seed"),
    "MNISTSplits-MNIST": Case(partial(SPLITS, source="mnist"), images, "split_seed", real=True),
    "Mazes": Case(generated(Mazes, cells=4), puzzles, "data_seed"),
    "Mazes-loops": Case(generated(Mazes, cells=4, loops=0.2), puzzles, "data_seed"),
    "Mazes-dead-ends": Case(generated(Mazes, cells=4, dead_end_start=True), puzzles, "data_seed"),
    "PrefixSums": Case(generated(PrefixSums), puzzles, "data_seed"),
    "Sudoku": Case(generated(Sudoku), puzzles, "data_seed"),
    "SudokuFile": Case(from_file, puzzles, "data_seed"),
}
CLASSES = [getattr(datamodules, name) for name in datamodules.__all__]


def digest(batch: Any) -> str:
    """A checksum of all tensors of a batch."""
    content = batch.to_dict() if isinstance(batch, Data) else batch
    tensors = [leaf for leaf in tree_leaves(content) if isinstance(leaf, Tensor)]
    assert tensors
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


class Recorder(LightningModule):
    """Records the checksum of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: dict[str, list[str]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches["train"].append(digest(batch))
        return self.weight.square()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches["val"].append(digest(batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches["test"].append(digest(batch))

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        self.batches["predict"].append(digest(batch))
        return torch.zeros(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(epochs: int) -> Trainer:
    return make_trainer(max_epochs=epochs, num_sanity_val_steps=0)


def all_batches(data: LightningDataModule) -> dict[str, list[str]]:
    """The checksums of the batches of two training epochs and of each evaluation."""
    recorder, trainer = Recorder(), trainer_of(epochs=2)
    trainer.fit(recorder, data)
    trainer.test(recorder, data, verbose=False)
    trainer.predict(recorder, data, return_predictions=False)
    return recorder.batches


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


@pytest.fixture
def make(case, request, tmp_path) -> Callable[..., LightningDataModule]:
    """Makes the case's data module, with its data files in a temporary folder."""
    data_dir = request.getfixturevalue("data_dir") if case.real else str(tmp_path / "data")
    return partial(case.make, data_dir=data_dir)


def test_every_data_module_has_a_case() -> None:
    assert {type(case.make(data_dir=".")) for case in CASES.values()} == set(CLASSES)


def test_every_stage_has_batches(make) -> None:
    assert all(all_batches(make()).values())


def test_setup_is_idempotent(make, case) -> None:
    data = make()
    data.prepare_data()
    data.setup("fit")
    before = case.splits(data)
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
        assert case.splits(data) == before


def test_a_second_run_sees_the_same_batches(make) -> None:
    data = make()
    batches = all_batches(data)
    assert all_batches(data) == batches


def test_the_data_depend_on_the_seed_argument_only(make, case) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        seed_everything(number, verbose=False)
        found.append(all_batches(make(**{case.seed: seed})))
    assert found[0] == found[1] != found[2]


def test_loading_does_not_change_the_global_rng_state(make) -> None:
    data = make()
    state = torch.get_rng_state()
    data.prepare_data()
    data.setup("fit")
    assert torch.equal(torch.get_rng_state(), state)


def test_splits_are_disjoint(make, case) -> None:
    data = make()
    data.setup("fit")
    examples = [example for split in case.splits(data) for example in set(split)]
    assert all(case.splits(data))
    assert len(examples) == len(set(examples))


def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_run(make, tmp_path) -> None:
    whole, first, second = Recorder(), Recorder(), Recorder()
    trainer_of(epochs=4).fit(whole, make())
    trainer = trainer_of(epochs=2)
    trainer.fit(first, make())
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.rand(10)  # other draws must not matter
    trainer_of(epochs=4).fit(second, make(), ckpt_path=tmp_path / "half.ckpt")
    for stage in ("train", "val"):
        assert first.batches[stage] + second.batches[stage] == whole.batches[stage]


def test_two_processes_evaluate_each_example_once(make, monkeypatch) -> None:
    shares, sizes = [], []
    for rank in ("1", "0"):  # the rank 0 last, since a Trainer leaves its rank to later ones
        monkeypatch.setenv("LOCAL_RANK", rank)
        data = make()
        if isinstance(data, CitationGraph):
            pytest.skip("each process evaluates the whole graph")
        data.trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
        data.setup("fit")
        found = [getattr(data, f"{stage}_dataloader")() for stage in ("val", "test", "predict")]
        loaders = [loader for one in found for loader in (one if isinstance(one, list) else [one])]
        shares.append([list(loader.sampler) for loader in loaders])
        sizes = [len(loader.dataset) for loader in loaders]
    for one, other, size in zip(*shares, sizes, strict=True):
        assert sorted(one + other) == list(range(size))


def test_a_data_module_can_be_pickled(make, case) -> None:
    data = make()
    data.setup("fit")
    assert case.splits(pickle.loads(pickle.dumps(data))) == case.splits(data)


def test_the_arguments_are_hyperparameters_in_checkpoints(make, tmp_path) -> None:
    data = make()
    assert set(data.hparams) >= set(inspect.signature(type(data)).parameters)
    trainer = trainer_of(epochs=1)
    trainer.fit(Recorder(), data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    kept = torch.load(tmp_path / "run.ckpt", weights_only=True)
    assert kept[type(data).CHECKPOINT_HYPER_PARAMS_KEY].keys() >= set(inspect.signature(type(data)).parameters)


# --- files

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate"}


class WriteRecorder:
    """An audit hook that records the paths that Python writes to."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            changed = arguments[:1]
        else:
            changed = arguments[:2] if event in CHANGES else ()
        self.paths += [os.path.abspath(os.fsdecode(path)) for path in changed if isinstance(path, str | bytes)]


@lru_cache  # an audit hook cannot be removed
def write_recorder() -> WriteRecorder:
    recorder = WriteRecorder()
    sys.addaudithook(recorder)
    return recorder


def test_nothing_is_written_outside_data_dir(make, tmp_path, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data, recorder = make(), write_recorder()
    recorder.paths.clear()
    data.prepare_data()
    data.setup("fit")
    inside = [path for path in recorder.paths if path.startswith(str(getattr(data, "data_dir", None)))]
    outside = [path for path in recorder.paths if path not in inside and "__pycache__" not in path]
    assert not outside
    assert not list(Path().iterdir())
    if getattr(data, "pca", None) == 2:  # this case writes a cache, so the recorder must have seen it
        assert inside


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.real])
def test_missing_files_are_named_with_their_folder(name, tmp_path, monkeypatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("pooch.retrieve", offline)
    for load in (lambda data: data.prepare_data(), lambda data: data.setup("fit")):
        with pytest.raises(UserError, match=rf"^Missing .* into {tmp_path}.*data_dir") as error:
            load(CASES[name].make(data_dir=str(tmp_path)))
        assert "\n" not in str(error.value)


# --- arguments


def bad_values() -> Iterator[Any]:
    """Invalid values for every argument that is a number or one of several names."""
    for kind in CLASSES:
        hints = get_type_hints(kind.__init__)
        for name in inspect.signature(kind).parameters:
            options = get_args(hints[name]) or (hints[name],)
            values: list[Any] = []
            if get_origin(hints[name]) is Literal:
                values = ["nonsense"]
            elif int in options:
                values = [-1, 1.5, True, "3"]
            elif float in options:
                values = [-0.5, float("nan"), float("inf"), True, "0.5"]
            for value in values:
                yield pytest.param(kind, name, value, id=f"{kind.__name__}-{name}-{value!r}")


@pytest.mark.parametrize(("kind", "name", "value"), list(bad_values()))
def test_a_value_out_of_range_is_refused_at_once(kind, name, value) -> None:
    with pytest.raises(UserError, match=rf"^{kind.__name__}: {name}={value!r}"):
        kind(**{name: value})


@pytest.mark.parametrize("kind", CLASSES)
def test_an_unknown_argument_is_refused(kind) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        kind(nonsense=1)
