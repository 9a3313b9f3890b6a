"""Runs that get signals, fail in one process, compete for a folder or cannot write."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rbp_lightning.checkpoint_file import load_checkpoint
from rbp_lightning.cli.claims import Claims
from tests.cli.faulty import OPTIONS
from tests.cli.runs import Run, Zygote

FOREVER = ["--trainer.max_epochs=100000", "--model.seconds=0.02"]
LAST = "checkpoints/last.ckpt"
VERSION = Path("logs/n/version_0")
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp_fork"]


@pytest.fixture
def start(zygote: Zygote, tmp_path: Path, monkeypatch) -> Callable[..., Run]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **environment: Run(zygote, tmp_path, list(arguments), environment)


def assert_one_line(run: Run, *words: str) -> None:
    assert "Traceback" not in run.error()
    (line,) = run.lines()
    assert [word for word in words if word not in line] == [], line


def test_a_signal_ends_a_training_after_its_batch_with_a_checkpoint(start) -> None:
    run = start("fit", *OPTIONS, *FOREVER)
    run.until((VERSION / LAST).exists)
    run.signal(signal.SIGINT)
    assert run.end(30) == 130
    assert_one_line(run, "SIGINT", f"--ckpt_path {VERSION / LAST}")
    step = load_checkpoint(VERSION / LAST)["global_step"]
    resumed = start("fit", *OPTIONS, "--ckpt_path=last", f"--trainer.max_epochs={step // 4 + 1}")
    assert resumed.end() == 0, resumed.error()


def test_a_slurm_job_is_saved_requeued_and_continued(start, tmp_path: Path) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" > asked\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    slurm["PATH"] = f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"
    run = start("fit", *OPTIONS, *FOREVER, **slurm)
    run.until((VERSION / LAST).exists)
    run.signal(signal.SIGUSR1)
    assert run.end(30) == 128 + signal.SIGUSR1, run.error()
    assert_one_line(run, "SIGUSR1", "--ckpt_path hpc_ckpt_1.ckpt")
    assert Path("asked").read_text() == "requeue 17\n"
    step = load_checkpoint("hpc_ckpt_1.ckpt")["global_step"]
    resumed = start("fit", *OPTIONS, f"--trainer.max_epochs={step // 4 + 1}", **slurm)  # the same command
    assert resumed.end() == 0, resumed.error()
    assert "Checkpoint: hpc_ckpt_1.ckpt" in resumed.printed()
    assert load_checkpoint(Path("logs/n/version_1", LAST))["global_step"] == 4 * (step // 4 + 1)


@pytest.mark.parametrize("subcommand", ["audit", "validate"])
def test_a_signal_ends_other_subcommands_at_once(start, subcommand: str) -> None:
    run = start(subcommand, *OPTIONS, "--model.fault=SIGTERM", "--model.at=0")
    assert run.end(60) == 143
    assert_one_line(run, "SIGTERM")


def test_a_second_signal_ends_a_slow_batch(start) -> None:
    run = start("fit", *OPTIONS, "--model.seconds=60")
    run.until((VERSION / "hparams.yaml").exists)
    time.sleep(0.5)
    run.signal(signal.SIGTERM)
    time.sleep(1.5)
    run.signal(signal.SIGTERM)
    assert run.end(20) == 143


@pytest.mark.parametrize("who", ["second", "all"])
def test_a_signal_to_one_process_ends_all_processes(start, who: str) -> None:
    run = start("fit", *OPTIONS, *FOREVER, *TWO)
    run.until((VERSION / LAST).exists)
    children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    if who == "second":
        os.kill(int(children[1]), signal.SIGTERM)
    else:
        os.killpg(run.pid, signal.SIGTERM)
    assert run.end(30) == 143, run.error()
    assert_one_line(run, "SIGTERM")
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    load_checkpoint(VERSION / LAST)


@pytest.mark.parametrize(("rank", "fault", "tracebacks"), [(0, "mistake", 0), (1, "bug", 1)])
def test_an_error_in_one_process_ends_both(start, rank: int, fault: str, tracebacks: int) -> None:
    run = start("fit", *OPTIONS, *TWO, f"--model.fault={fault}", f"--model.rank={rank}")
    assert run.end(60) == 1, run.error()
    assert run.error().count("Traceback") == tracebacks
    assert run.error().count("a bug" if tracebacks else "size=-1") in (
        1,
        2,
    )  # the traceback contains the line of code as well


def test_a_folder_is_used_by_one_run_at_a_time(start) -> None:
    here = [*OPTIONS, "--trainer.logger.version=here"]
    folder = Path("logs/n/here")
    first = start("fit", *here, *FOREVER)
    first.until((folder / LAST).exists)
    config = (folder / "config.yaml").read_text()
    second = start("fit", *here)
    assert second.end(60) == 1
    assert_one_line(second, "trainer.logger", str(folder))
    step = load_checkpoint(folder / LAST)["global_step"]
    first.until(lambda: load_checkpoint(folder / LAST)["global_step"] > step)  # the first run continues
    assert (folder / "config.yaml").read_text() == config
    first.kill()
    epochs = load_checkpoint(folder / LAST)["epoch"] + 2
    # A killed process holds no lock.
    resumed = start("fit", *here, "--ckpt_path=last", f"--trainer.max_epochs={epochs}")
    assert resumed.end(60) == 0, resumed.error()


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_runs_that_start_at_the_same_time_get_different_folders(tmp_path: Path, kind: Any) -> None:
    trainers = [Trainer(logger=kind(tmp_path, name="n"), enable_checkpointing=False) for _ in range(3)]
    claims = []
    for number, trainer in enumerate(trainers):
        claims.append(Claims(trainer, checkpoints=True))
        for other in trainers[number + 1 :]:
            other.loggers[0]._version = None  # is determined again, after this run
        trainer.loggers[0].log_metrics({"loss": 1.0})
    assert [trainer.loggers[0].version for trainer in trainers] == [0, 1, 2]
    for claim in claims:
        claim.release()
        claim.release()


@pytest.mark.filterwarnings("ignore:Experiment logs directory")  # which contains that file
@pytest.mark.parametrize("place", ["logs", "logs/n", "logs/n/version_0/checkpoints"])
def test_a_file_where_a_folder_should_be_is_named(cli, place: str) -> None:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    Path(place).write_text("mine")
    version = ["--trainer.logger.version=0"] if "version" in place else []
    status, _, err = cli("fit", *OPTIONS, *version)
    assert status == 1
    (line,) = [line for line in err.splitlines() if "error: " in line]
    assert place in line
    assert Path(place).read_text() == "mine"


def test_a_cycle_of_exception_causes_ends_a_run(start) -> None:
    run = start("fit", *OPTIONS, "--model.fault=cycle")
    assert run.end(60) == 1
    assert_one_line(run, "No space left")
