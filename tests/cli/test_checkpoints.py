"""Checkpoints that are named on the command line."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from models import HopfieldMemory
from rbp_lightning import UserError
from rbp_lightning.checkpoint_file import load_checkpoint
from tests.cli.options import RUN, TINY
from tests.cli.own import OPTIONS


class Other(LightningModule):
    """A model with other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("subcommand", ["fit", "predict"])
def test_bad_checkpoints_are_refused(cli, subcommand) -> None:
    assert cli("fit", *TINY)[0] == 0
    good = (RUN / "checkpoints/last.ckpt").read_bytes()
    checkpoint = torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)
    torch.save({**checkpoint, "state_dict": Other().state_dict()}, "other.ckpt")
    renamed = {**checkpoint["hyper_parameters"], "_class_path": "models.Another"}
    torch.save({**checkpoint, "hyper_parameters": renamed}, "renamed.ckpt")
    Path("cut.ckpt").write_bytes(good[: len(good) // 2])
    for name, message in {
        "cut": "is corrupt, or is no checkpoint",
        "other": "weight.original is missing there and (144, 144) in HopfieldMemory",
        "renamed": "is a checkpoint of models.Another, not of models.HopfieldMemory: set --model to models.Another.",
    }.items():
        status, _, err = cli(subcommand, *TINY, f"--ckpt_path={name}.ckpt")
        assert (status, message in err) == (1, True), err
    assert len(list(Path("logs").rglob("*.ckpt"))) == 2


@pytest.fixture
def sound(tmp_path) -> Path:
    path = tmp_path / "sound.ckpt"
    torch.save({"state_dict": {"weight": torch.ones(99)}, "pytorch-lightning_version": "2.6.0"}, path)
    return path


def test_damaged_files_and_other_files_are_told_from_checkpoints(sound: Path, tmp_path: Path) -> None:
    assert torch.equal(load_checkpoint(sound)["state_dict"]["weight"], torch.ones(99))
    content = sound.read_bytes()
    flipped = bytearray(content)
    start = content.index(torch.ones(8).numpy().tobytes())
    flipped[start : start + 8] = bytes(8)
    bad = tmp_path / "bad.ckpt"
    for damaged in (content[: len(content) // 2], bytes(flipped), b"no checkpoint", b""):
        bad.write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad.ckpt' is corrupt, or is no checkpoint"):
            load_checkpoint(bad)
    for other in ({"state_dict": {}}, [1, 2]):
        torch.save(other, bad)
        with pytest.raises(UserError, match=r"bad.ckpt' is corrupt, or is no checkpoint"):
            load_checkpoint(bad)
    with pytest.raises(UserError, match="is not a file"):
        load_checkpoint(tmp_path)


def test_a_sound_checkpoint_with_a_foreign_object_names_the_object(sound: Path) -> None:
    content = load_checkpoint(sound)
    torch.save({**content, "callbacks": {"Statistics": {"mean": np.float64(0.3)}}}, sound)
    with pytest.raises(UserError, match=r"holds numpy\._core\.multiarray\.scalar.*add_safe_globals") as raised:
        load_checkpoint(sound)
    assert "corrupt" not in str(raised.value)
    allowed = [np._core.multiarray.scalar, np.dtype, type(np.dtype("float64"))]
    with torch.serialization.safe_globals(allowed):  # the remedy
        assert load_checkpoint(sound)["callbacks"] == {"Statistics": {"mean": 0.3}}


def test_options_that_a_checkpoint_overrides_are_named(cli) -> None:
    assert cli("fit", *TINY)[0] == 0
    status, out, _ = cli("test", *TINY, f"--ckpt_path={RUN}/checkpoints/last.ckpt", "--model.gain=5")
    assert status == 0
    assert "The checkpoint's gain=1.5 overrides 5.0." in out
    assert "num_hidden" not in out  # the same in both


class Plain(HopfieldMemory):
    """A model that takes no arguments, with a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__(num_hidden=4)

    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"a": 1}


class Mapping(Other):
    """A model that saves more than its arguments, one of which is called ``estimator``."""

    def __init__(self, estimator: str = "mine", width: int = 2) -> None:
        super().__init__()
        self.chosen = estimator
        self.save_hyperparameters({"estimator": estimator, "width": width, "dataset": {"name": "Cora"}})

    def test_step(self, inputs: torch.Tensor) -> None:
        print(f"chosen: {self.chosen}")


def test_a_model_without_arguments(cli) -> None:
    small = ["--model=tests.cli.test_checkpoints.Plain", "--data=ImagePatterns", *OPTIONS]
    assert cli("fit", *small, "--data.train_draws=2", "--trainer.default_root_dir=run")[0] == 0
    (last,) = Path("run").rglob("*.ckpt")
    status, _, err = cli("test", *small, f"--ckpt_path={last}")
    assert status == 0, err


def test_a_model_s_own_hyperparameters_are_its_arguments(cli) -> None:
    """Only those that are arguments; an argument may have any name."""
    name = "tests.cli.test_checkpoints.Mapping"
    hyperparameters = {"_class_path": name, "estimator": "mine", "width": 2, "dataset": {"name": "Cora"}}
    content = {"state_dict": Mapping().state_dict(), "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 0}
    for saved in ({}, hyperparameters, {**hyperparameters, "estimator": "theirs"}):
        torch.save({**copy.deepcopy(content), "hyper_parameters": saved}, "model.ckpt")
        options = [f"--model={name}", "--data=ImagePatterns", *OPTIONS, "--data.eval_draws=1"]
        status, out, err = cli("test", *options, "--ckpt_path=model.ckpt")
        assert status == 0, err
        assert f"chosen: {saved.get('estimator', 'mine')}" in out
