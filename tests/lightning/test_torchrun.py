"""Reasoning networks trained by several processes: forks, and two machines of which one is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.cli.options import ROOT
from tests.cli.runs import Run, Zygote, free_port
from tests.lightning.test_long_runs import PARTS, same

# With odd numbers of puzzles to evaluate, one process has one more than the other.
OPTIONS = [f"--config={ROOT}/configs/prefix_sums.yaml", "--model.cell.num_hidden=4"]
OPTIONS += ["--data.length=6", "--data.num_train=24", "--data.val_lengths=[6]", "--data.num_val=5"]
OPTIONS += [
    "--data.test_lengths=[6,9]",
    "--data.num_test=3",
    "--model.eval_steps=[4,8]",
    "--checkpoint.monitor=val/loss_6",
]
OPTIONS += ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"]
OPTIONS += ["--trainer.accelerator=cpu", "--trainer.precision=64-true", "--trainer.logger.version=here"]
OPTIONS += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
ONE = ["--data.batch_size=4", "--trainer.devices=1"]
TWO = ["--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp_fork"]
RUN = Path("logs/prefix_sums/here")


def last(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / RUN / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint


def metrics(folder: Path) -> dict[str, float]:
    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("val/", "test/"))]
    return {tag: events.Scalars(tag)[-1].value for tag in tags}


def forked(zygote: Zygote, folder: Path, *arguments: str) -> None:
    run = Run(zygote, folder, list(arguments), {})
    assert run.end(300) == 0, run.error()[-3000:]


def test_two_processes_train_as_one_with_twice_the_batch(zygote: Zygote, tmp_path: Path) -> None:
    for name, options in {"one": ONE, "two": TWO}.items():
        (tmp_path / name).mkdir()
        forked(zygote, tmp_path / name, "fit", *OPTIONS, *options)
        forked(zygote, tmp_path / name, "test", "--ckpt_path=last", *OPTIONS, *options)
    one, two = (last(tmp_path / name) for name in ("one", "two"))
    assert one["global_step"] == two["global_step"] == 12
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=1e-9, atol=1e-11)
    expected, found = (metrics(tmp_path / name / RUN) for name in ("one", "two"))
    assert len(expected) >= 18
    assert found == pytest.approx(expected, rel=1e-6)


def test_two_machines_of_which_one_is_lost_and_restarted_train_as_without_a_loss(
    zygote: Zygote, tmp_path: Path
) -> None:
    """A process is killed in step 10; ``last.ckpt`` is of step 8, in the middle of the second epoch."""
    words = ["fit", *OPTIONS, "--model.random_steps=[2,9]", "--data.batch_size=2"]
    own = ["--checkpoint.every_n_train_steps=4", "--ckpt_path=auto"]
    own += ["--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.strategy=ddp"]
    killed = {"class_path": "tests.lightning.torchrun_callbacks.KilledOnce", "init_args": {"step": 10}}
    own += [f"--trainer.callbacks+={json.dumps(killed)}"]
    shared = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--monitor-interval=0.1", "--rdzv-backend=c10d"]
    shared += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=test", "--local-addr=127.0.0.1"]
    # Otherwise restarted processes would read the addresses of their predecessors.
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONPATH": str(ROOT)}
    # The agent searches all modules of its process repeatedly, so it runs in a process with few.
    launched = [sys.executable, "-m", "torch.distributed.run", *shared, str(ROOT / "train.py"), *words, *own]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    machines = [subprocess.Popen(launched, cwd=tmp_path, env=environment, **pipes) for _ in range(2)]
    printed = [machine.communicate(timeout=600)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed
    assert (tmp_path / "killed").exists()
    assert f"Checkpoint: {RUN}/checkpoints/last.ckpt" in "".join(printed), printed

    (tmp_path / "whole").mkdir()
    forked(zygote, tmp_path / "whole", *words, *TWO)
    found, expected = last(tmp_path), last(tmp_path / "whole")
    assert [part for part in PARTS if not same(expected[part], found[part])] == []
