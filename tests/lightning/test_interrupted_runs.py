"""Runs of the command line that are killed and resumed."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.options import ROOT
from tests.cli.runs import Run, Zygote

pytestmark = pytest.mark.slow

TINY = [
    "fit",
    f"--config={ROOT}/configs/hopfield.yaml",
    "--model.num_hidden=16",
    "--data.train_draws=2",
    "--data.eval_draws=1",
    "--data.batch_size=20",
    "--trainer.accelerator=cpu",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.callbacks.plot_every_n_steps=0",
]


def start(zygote: Zygote, folder: Path, *arguments: str) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(zygote, folder, [*TINY, f"--trainer.logger.save_dir={folder}", *arguments], {})


def run(zygote: Zygote, folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command line; returns the last checkpoint."""
    finished = start(zygote, folder, *arguments)
    assert finished.end(300) == 0, finished.error()[-3000:]
    last = max(folder.glob("hopfield/*/checkpoints/last.ckpt"), key=os.path.getmtime)
    return torch.load(last, weights_only=True)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(zygote: Zygote, tmp_path: Path) -> None:
    # RBP draws a random initial z, which must be the same after the resume.
    same = ["--estimator=RBP", "--trainer.max_epochs=15", "--trainer.devices=1"]
    whole = run(zygote, tmp_path / "whole", *same)
    killed = tmp_path / "killed"
    process = start(zygote, killed, *same)
    last = killed / "hopfield/version_0/checkpoints/last.ckpt"
    process.until(last.exists)
    process.kill()
    reached = torch.load(last, weights_only=True)["epoch"]
    assert reached < 14, "the run ended before it could be killed"

    resumed = run(zygote, killed, *same, f"--ckpt_path={last}")
    assert resumed["global_step"] == whole["global_step"] == 15
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], tensor), name
    assert resumed["estimator"] == whole["estimator"]
