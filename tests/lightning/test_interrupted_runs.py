"""Runs of the command line that are killed and continued."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import ROOT

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
]


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *TINY, f"--trainer.logger.save_dir={folder}", *arguments]


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command line and returns the last checkpoint."""
    finished = subprocess.run(command(folder, *arguments), capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    last = max(folder.glob("hopfield/*/checkpoints/last.ckpt"), key=os.path.getmtime)
    return torch.load(last, weights_only=True)


def test_a_killed_run_resumes_as_if_it_had_not_been(tmp_path: Path) -> None:
    # RBP, whose random start is the same in every solve.
    same = ["--estimator=RBP", "--trainer.max_epochs=40", "--trainer.devices=1"]
    whole = run(tmp_path / "whole", *same)
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(killed, *same), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = killed / "hopfield/version_0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(last, weights_only=True)["epoch"]
    assert reached < 39, "the run ended before it could be killed"

    resumed = run(killed, *same, f"--ckpt_path={last}")
    assert resumed["global_step"] == whole["global_step"] == 40
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], tensor), name
    assert resumed["estimator"] == whole["estimator"]
